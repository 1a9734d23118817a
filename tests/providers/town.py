"""A stack with providers: their manifests, and the clients' own libraries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import openai

from tests.e2e.stack import manifests

if TYPE_CHECKING:
    from tests.e2e.stack import World
    from tests.providers.fakes import Provider

GROUP = "networking.matrixinfer.ai/v1alpha1"


def a_secret(provider: Provider, name: str = "credentials", **more: str) -> str:
    """The credential, and who signs the provider's certificate."""
    entries = {"key": provider.key, "ca.crt": provider.ca} | more
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {json.dumps(entries)}\n"


def a_provider(provider: Provider, name: str = "outside", *, type: str = "OpenAI", **spec: Any) -> str:  # noqa: A002
    """Manifest of an ExternalModelProvider."""
    given: dict[str, Any] = {
        "providerType": type,
        "baseURL": provider.url + "/v1",
        "model": "their-model",
        "auth": {"secretRef": {"name": "credentials", "key": "key"}},
        "caSecretRef": {"name": "credentials", "key": "ca.crt"},
        "trafficPolicy": {"retry": {"attempts": 1, "retryInterval": "10ms"}},
        **spec,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return f"apiVersion: {GROUP}\nkind: ExternalModelProvider\nmetadata: {{name: {name}}}\nspec: {json.dumps(given)}\n"


def a_route(model: str, *targets: dict[str, Any], **more: Any) -> str:
    """Manifest of a ModelRoute with one rule."""
    spec = {"modelName": model, "rules": [{"targetModels": list(targets)}], **more}
    return f"apiVersion: {GROUP}\nkind: ModelRoute\nmetadata: {{name: {model}}}\nspec: {json.dumps(spec)}\n"


def outside(name: str = "outside", **how: Any) -> dict[str, Any]:
    """A target."""
    return {"externalModelProviderName": name, **how}


def inside(name: str = "demo", **how: Any) -> dict[str, Any]:
    """A target."""
    return {"modelServerName": name, **how}


def chat(world: World) -> openai.AsyncOpenAI:
    """OpenAI's own client."""
    return openai.AsyncOpenAI(base_url=world.url + "/v1", api_key="sk-clients-own", max_retries=0)


def messages(world: World) -> anthropic.AsyncAnthropic:
    """Anthropic's own client."""
    return anthropic.AsyncAnthropic(base_url=world.url, api_key="sk-clients-own", max_retries=0)


__all__ = ["a_provider", "a_route", "a_secret", "chat", "inside", "manifests", "messages", "outside"]
