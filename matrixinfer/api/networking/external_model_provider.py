"""ExternalModelProvider: a service outside of the cluster that answers requests for a model, and how it is spoken to."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from matrixinfer.api.meta import INT32, INT64, Conditions, ObjectMeta, Owned, Rule, Status
from matrixinfer.api.networking.model_server import TrafficPolicy  # noqa: TC001 - pydantic reads it at run time

_URL: Final = r"^https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~%/-]*)?$"
_PORT_MAX: Final = 65535
_HEADER: Final = r"^[A-Za-z0-9][A-Za-z0-9-]*$"
# Headers that say who asks, how the message is framed, or what it is: none of them is the provider's setting.
RESERVED_HEADERS: Final = (
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
)
_RESERVED: Final = "^(?i:" + "|".join(RESERVED_HEADERS) + "|x-envoy-.*|x-matrixinfer-.*|x-gateway-.*)$"
_PRINTABLE: Final = r"^[\x20-\x7e]*$"


def _url(text: str) -> str:
    host, port = "", None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        port = 0
    if not host or port == 0 or (port is not None and port > _PORT_MAX):
        raise PydanticCustomError("url", "names no host and port that could be reached, as https://api.example.com/v1")
    return text


def _header(name: str) -> str:
    if not re.fullmatch(_HEADER, name):
        raise PydanticCustomError("header_name", "is not a header name: write letters, digits and '-'")
    if re.fullmatch(_RESERVED, name):
        raise PydanticCustomError(
            "header_name", "is the gateway's to set: a credential goes into `auth`, the rest follows from the request"
        )
    return name


def _header_value(value: str) -> str:
    if not re.fullmatch(_PRINTABLE, value):
        raise PydanticCustomError("header_value", "must be printable ASCII on one line")
    return value


class SecretKeyRef(Owned):
    """One entry of a Secret of the object's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret.")]
    key: Annotated[
        str, Field(min_length=1, max_length=253, pattern="^[-._a-zA-Z0-9]+$", description="Name of its entry.")
    ]


class ProviderAuth(Owned):
    """The credential of the gateway at the provider."""

    scheme: Annotated[
        Literal["Bearer", "APIKey"] | None,
        Field(
            description="Bearer: `Authorization: Bearer VALUE`; APIKey: `x-api-key: VALUE`. Left out: Bearer for OpenAI, "
            "APIKey for Anthropic."
        ),
    ] = None
    secret_ref: Annotated[
        SecretKeyRef, Field(description="Where the value is. Changes take effect at once, without a restart.")
    ]


class ExternalModelProviderSpec(Owned):
    """Where the provider is, what it speaks, and what it is told."""

    RULES: ClassVar = (
        Rule(
            "a credential is sent over https only: write an https baseURL, or leave out auth",
            ("base_url", "auth"),
            lambda spec: spec.auth is None or spec.base_url.startswith("https://"),
            cel="!has(self.auth) || self.baseURL.startsWith('https://')",
            blames="baseURL",
        ),
        Rule(
            "insecureSkipVerify and caSecretRef contradict each other: leave one out",
            ("insecure_skip_verify", "ca_secret_ref"),
            lambda spec: not (spec.insecure_skip_verify and spec.ca_secret_ref is not None),
            cel="!has(self.caSecretRef) || !has(self.insecureSkipVerify) || !self.insecureSkipVerify",
        ),
    )
    provider_type: Annotated[
        Literal["OpenAI", "Anthropic"],
        Field(
            description="The API that it speaks. Clients may speak either: bodies, streams and errors are translated."
        ),
    ] = "OpenAI"
    model: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=256,
            description="Model name that the provider knows; it replaces `model` in requests. Left out, the name is "
            "passed on as it came.",
        ),
    ] = None
    base_url: Annotated[
        str,
        Field(
            alias="baseURL",
            max_length=1024,
            pattern=_URL,
            description="Where its API begins, with or without the `/v1` at its end: `https://api.openai.com/v1`. "
            "http only without `auth`.",
        ),
        AfterValidator(_url),
    ]
    auth: Annotated[
        ProviderAuth | None, Field(description="The gateway's credential. Left out, requests go without one.")
    ] = None
    headers: Annotated[
        dict[
            Annotated[str, AfterValidator(_header)],
            Annotated[
                str, Field(max_length=1024, json_schema_extra={"pattern": _PRINTABLE}), AfterValidator(_header_value)
            ],
        ],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {
                        "rule": f"self.all(name, name.matches(r'{_HEADER}') && !name.matches(r'{_RESERVED}'))",
                        "message": "every key must be a header name, and none that the gateway sets itself",
                    }
                ]
            },
            description="Headers that every request gets, such as `OpenAI-Organization` or `anthropic-version` "
            "(2023-06-01, if neither this nor the client says another).",
        ),
    ] = Field(default_factory=dict)
    default_max_tokens: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            json_schema_extra=INT32,
            description="Bound on the answer for requests of the OpenAI API that set none, where the provider is of type "
            "Anthropic, whose API demands one.",
        ),
    ] = 4096
    max_concurrent_requests: Annotated[
        int,
        Field(
            ge=1,
            le=100_000,
            json_schema_extra=INT32,
            description="Requests under way at once, for each Envoy; further ones get 503.",
        ),
    ] = 1024
    insecure_skip_verify: Annotated[
        bool, Field(description="Whether the provider's certificate is taken unseen. For tests.")
    ] = False
    ca_secret_ref: Annotated[
        SecretKeyRef | None,
        Field(
            description="Who signs the provider's certificate (PEM). Left out, the authorities that Envoy's machine trusts."
        ),
    ] = None
    traffic_policy: Annotated[
        TrafficPolicy | None,
        Field(description="Timeout and retries; an answer of 429, 503, 504 or 529 is tried again, too."),
    ] = None

    def secrets(self) -> tuple[tuple[tuple[str, ...], SecretKeyRef], ...]:
        """Give the entries of Secrets that are named, each with the path of its field below `spec`."""
        auth = () if self.auth is None else ((("auth", "secretRef"), self.auth.secret_ref),)
        ca = () if self.ca_secret_ref is None else ((("caSecretRef",), self.ca_secret_ref),)
        return (*auth, *ca)

    @property
    def url(self) -> SplitResult:
        """`baseURL` in parts."""
        return urlsplit(self.base_url)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.url.hostname or "", self.url.port or (443 if self.url.scheme == "https" else 80)


class ExternalModelProviderStatus(Status):
    """What the controllers found."""

    observed_generation: Annotated[
        int, Field(ge=0, json_schema_extra=INT64, description="Generation of the spec that this status is about.")
    ] = 0
    conditions: Conditions = ()


class ExternalModelProvider(Owned):
    """ExternalModelProvider is a service outside of the cluster that routes may send requests to: an OpenAI or Anthropic API."""

    model_config = ConfigDict(title="ExternalModelProvider")

    api_version: Literal["networking.matrixinfer.ai/v1alpha1"] = "networking.matrixinfer.ai/v1alpha1"
    kind: Literal["ExternalModelProvider"] = "ExternalModelProvider"
    metadata: ObjectMeta
    spec: Annotated[ExternalModelProviderSpec, Field(description="What is wanted.")]
    status: Annotated[ExternalModelProviderStatus | None, Field(description="What is.")] = None
