"""AccessPolicy: who may use which models, and how they show who they are."""

from __future__ import annotations

import json
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from matrixinfer.api.meta import INT64, Conditions, Duration, Items, ObjectMeta, Owned, Rule, Status

Text = Annotated[str, Field(min_length=1, max_length=256)]


def _key_set(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list) or not found["keys"]:
        raise PydanticCustomError("jwks", 'is not a JSON Web Key Set: write {{"keys": [...]}} with at least one key')
    return text


class TargetRef(Owned):
    """What a policy protects."""

    RULES: ClassVar = (
        Rule(
            "name the ModelRoute or the Model",
            ("kind", "name"),
            lambda ref: ref.kind == "Gateway" or ref.name is not None,
            cel="self.kind == 'Gateway' || has(self.name)",
        ),
    )
    kind: Annotated[
        Literal["Gateway", "ModelRoute", "Model"],
        Field(
            description="Gateway: everything that it serves. ModelRoute: the names of that route of this namespace. Model: "
            "one name, as requests give it."
        ),
    ]
    name: Annotated[
        str | None, Field(min_length=1, max_length=256, description="The route's or the model's name; not for Gateway.")
    ] = None


class KeySet(Owned):
    """The public keys of an issuer (JWKS)."""

    RULES: ClassVar = (
        Rule(
            "set exactly one of inline, file and url",
            ("inline", "file", "url"),
            lambda keys: sum(way is not None for way in (keys.inline, keys.file, keys.url)) == 1,
            cel="[has(self.inline), has(self.file), has(self.url)].filter(set, set).size() == 1",
        ),
    )
    inline: Annotated[str | None, Field(max_length=65536, description="The JSON text."), AfterValidator(_key_set)] = (
        None
    )
    file: Annotated[
        str | None,
        Field(
            max_length=1024,
            pattern="^/.+",
            description="Absolute path of a file with it. Followed when it changes, if it is on the machine of the "
            "controllers; else Envoy reads it there where it runs, when the policy is taken.",
        ),
    ] = None
    url: Annotated[
        str | None,
        Field(
            max_length=1024,
            pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[^ ]*)?$",
            description="Where it is fetched.",
        ),
    ] = None
    cache_duration: Annotated[Duration, Field(description="How long what `url` gave is used.")] = Duration("5m")


class TokenIssuer(Owned):
    """An issuer of JSON Web Tokens. Tokens have to expire; `alg: none` is never taken."""

    issuer: Annotated[str, Field(min_length=1, max_length=256, description="What the claim `iss` has to be.")]
    audiences: Annotated[
        Items[Text], Field(max_length=16, description="One of these has to be in `aud`; empty: any.")
    ] = ()
    jwks: Annotated[KeySet, Field(description="The issuer's public keys.")]
    tenant_claim: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            description="Claim that names the tenant; dots lead into objects. A token without it is nobody's.",
        ),
    ] = "sub"
    forward: Annotated[bool, Field(description="Whether engines see the token.")] = False


class SecretRef(Owned):
    """A Secret of the policy's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret.")]


class ApiKeys(Owned):
    """API keys: `Authorization: Bearer KEY` or `x-api-key: KEY`."""

    secret_refs: Annotated[
        Items[SecretRef],
        Field(
            min_length=1,
            max_length=16,
            description="Secrets of which every entry is a key, under the name of the tenant. Changes take effect at once.",
        ),
    ]
    forward: Annotated[bool, Field(description="Whether engines see the key.")] = False


class Claim(Owned):
    """A condition on a claim of a token."""

    name: Annotated[str, Field(min_length=1, max_length=256, description="The claim; dots lead into objects.")]
    values: Annotated[
        Items[Text],
        Field(min_length=1, max_length=64, description="One of these has to be its value, or in its list."),
    ]


class AccessRule(Owned):
    """Whom the policy lets use what. All conditions that are set have to hold."""

    tenants: Annotated[Items[Text], Field(max_length=256, description="Tenants; empty: all.")] = ()
    claims: Annotated[
        Items[Claim], Field(max_length=16, description="Conditions on the token; with any, keys do not suffice.")
    ] = ()
    models: Annotated[
        Items[Text],
        Field(max_length=256, description="Model names, out of those that the policy protects; empty: all."),
    ] = ()


class AccessPolicySpec(Owned):
    """Who may use which models."""

    RULES: ClassVar = (
        Rule(
            "name at least one of jwt, apiKeys and clientCertificates: without, nobody could come in",
            ("jwt", "api_keys", "client_certificates"),
            lambda spec: bool(spec.jwt or spec.api_keys or spec.client_certificates),
            cel="(has(self.jwt) && size(self.jwt) > 0) || has(self.apiKeys) || (has(self.clientCertificates) && self.clientCertificates)",
        ),
    )
    target_refs: Annotated[
        Items[TargetRef],
        Field(
            min_length=1,
            max_length=16,
            description="What is protected. Of several policies for one model the narrowest kind decides: Model before "
            "ModelRoute before Gateway; what policies of the same kind grant adds up.",
        ),
    ]
    jwt: Annotated[Items[TokenIssuer], Field(max_length=8, description="Whose tokens are taken.")] = ()
    api_keys: Annotated[ApiKeys | None, Field(description="Which API keys are taken.")] = None
    client_certificates: Annotated[
        bool,
        Field(
            description="Whether certificates of clients are taken, where TLS asks for them: the tenant is the first URI or "
            "DNS name in the certificate."
        ),
    ] = False
    rules: Annotated[
        Items[AccessRule],
        Field(max_length=64, description="Grants; left out, everybody who is known may use everything."),
    ] = ()


class AccessPolicyStatus(Status):
    """What the controllers found."""

    observed_generation: Annotated[
        int, Field(ge=0, json_schema_extra=INT64, description="Generation of the spec that this status is about.")
    ] = 0
    conditions: Conditions = ()


class AccessPolicy(Owned):
    """AccessPolicy says who may use which models, and how they show who they are. What no policy protects is open."""

    model_config = ConfigDict(title="AccessPolicy")

    api_version: Literal["networking.matrixinfer.ai/v1alpha1"] = "networking.matrixinfer.ai/v1alpha1"
    kind: Literal["AccessPolicy"] = "AccessPolicy"
    metadata: ObjectMeta
    spec: Annotated[AccessPolicySpec, Field(description="What is wanted.")]
    status: Annotated[AccessPolicyStatus | None, Field(description="What is.")] = None
