"""A request made ready for a provider: its body in the provider's words, and the note for the filter before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from extproc import errors
from extproc.providers import chat_to_messages, fields, messages_to_chat, note
from extproc.providers.note import Note, Speech
from extproc.requests import rewrite
from extproc.types import Api, Usage

if TYPE_CHECKING:
    from extproc.types import InferenceRequest
    from matrixinfer.api import networking

_PATHS: Final = {
    Speech.OPENAI: frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}),
    Speech.ANTHROPIC: frozenset({"/v1/messages", "/v1/messages/count_tokens"}),
}
_CHAT, _MESSAGES = "/v1/chat/completions", "/v1/messages"


class Outward(NamedTuple):
    """What is sent to a provider."""

    body: bytes | None  # None: as it came
    usage: Usage
    note: str
    address: str  # "host:port"


def knows(request: InferenceRequest, provider: networking.ExternalModelProvider) -> bool:
    """Tell whether the provider answers such requests, in its own words or in the client's."""
    path, speaks = request.path, Speech(provider.spec.provider_type)
    if path in _PATHS[speaks]:
        return True
    return path == _CHAT if speaks is Speech.ANTHROPIC else path == _MESSAGES and request.api is Api.MESSAGES


def outward(
    request: InferenceRequest, provider: networking.ExternalModelProvider, *, usage: bool, asked: str = ""
) -> Outward:
    """Make a request ready; with `usage`, streams are asked for it. Raises BadRequest for what cannot be translated.

    `asked` is the client's name of the model, where the body has another one by now.
    """
    spec = provider.spec
    speaks = Speech(spec.provider_type)
    name = f"{provider.metadata.namespace}/{provider.metadata.name}"
    client = next((one for one, paths in _PATHS.items() if request.path in paths), None)
    model = spec.model or asked or request.model
    hidden, path = Usage.AS_IS, request.path
    body: bytes | None
    if client is speaks:
        body, hidden = rewrite.rewritten(
            request, model=model if model != request.model else None, usage=usage, running=False
        )
    elif request.path == _CHAT and speaks is Speech.ANTHROPIC:
        made = chat_to_messages.translated(
            fields.document(request.body), model=model, max_tokens=spec.default_max_tokens
        )
        body, path = fields.encode(made), _MESSAGES
        if request.stream and not request.wants_usage:
            hidden = Usage.HIDE_ALL
    elif request.path == _MESSAGES and request.api is Api.MESSAGES and speaks is Speech.OPENAI:
        body, path = fields.encode(messages_to_chat.translated(fields.document(request.body), model=model)), _CHAT
    else:
        served = ", ".join(sorted({_CHAT, _MESSAGES} | _PATHS[speaks]))
        raise errors.BadRequest(
            f"the model {request.model!r} is served by a provider of the {speaks.value} API, which does not know"
            f" {request.path}; it answers {served}",
            param="model",
        )
    host, port = spec.address
    shown = f"[{host}]" if ":" in host else host
    default = 443 if spec.url.scheme == "https" else 80
    told = Note(
        host=shown if port == default else f"{shown}:{port}",
        path=_joined(spec.url.path, path),
        speaks=speaks,
        client=client or speaks,
        name=name,
        headers=dict(spec.headers),
    )
    return Outward(body, hidden, note.written(told), f"{shown}:{port}")


def _joined(base: str, path: str) -> str:
    """Put the path behind that of the base, which may end in the version or leave it out."""
    base = base.rstrip("/")
    return (base if base.endswith("/v1") else f"{base}/v1") + path.removeprefix("/v1")
