"""What Envoy has to do, in the gateway's own words: the values between `gateway`, which decides, and `xds`, which says it in Envoy's.

Nothing here is Envoy's vocabulary. Names of backends and models are the keys by which `xds` names resources, so that a
refusal can be traced back to the object that caused it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from matrixinfer.api import networking

AUTHORITIES: Final = "/etc/ssl/certs/ca-certificates.crt"  # where Debian, Alpine and Envoy's image have it


class Match(Enum):
    """How a text is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"  # RE2, found anywhere in the text


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A condition on a header's value or on the path."""

    kind: Match
    value: str


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Where an engine listens."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Retry:
    """What happens when an endpoint fails before it began to answer."""

    attempts: int = networking.DEFAULT_ATTEMPTS  # further attempts, after the first
    interval_s: float = 0.025  # before the first further attempt; doubles, with jitter, up to ten times this
    on: tuple[str, ...] = networking.RETRY_ON


@dataclass(frozen=True, slots=True)
class Backend:
    """The endpoints of one ModelServer, and how they are treated."""

    namespace: str
    name: str
    endpoints: tuple[Endpoint, ...] = ()
    timeout_s: float | None = None  # until the answer begins, for each attempt; None: no bound
    retry: Retry = field(default_factory=Retry)
    tls: bool = False  # engines speak HTTPS


@dataclass(frozen=True, slots=True)
class Mirror:
    """A backend that gets copies of requests."""

    name: str
    percent: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What a route says in place of its backends; None: what they say."""

    timeout_s: float | None = None
    idle_s: float | None = None  # of streams only
    retry: Retry | None = None


@dataclass(frozen=True, slots=True)
class Handling:
    """How requests of a rule are handled beyond what their backend says; the picker names it by its key."""

    key: str
    namespace: str
    targets: tuple[str, ...]  # backends that requests may be sent to
    together: tuple[str, ...] = ()  # those of them that fail over to one another; two or more, or none
    mirrors: tuple[Mirror, ...] = ()
    policy: Policy = field(default_factory=Policy)
    relayed: bool = False  # what all endpoints have failed may go on to a provider


@dataclass(frozen=True, slots=True)
class Credential:
    """What a provider knows the gateway by."""

    header: str
    value: str = field(repr=False)
    prefix: str = ""  # of the header's value


@dataclass(frozen=True, slots=True)
class Provider:
    """One ExternalModelProvider, and how it is treated."""

    namespace: str
    name: str
    host: str
    port: int
    tls: bool = True
    verify: bool = True  # its certificate
    ca: str = ""  # PEM of who signs that; "": those whom the machine trusts
    credential: Credential | None = None
    timeout_s: float | None = None  # until the answer begins, for each attempt
    retry: Retry = field(default_factory=Retry)
    most_requests: int = 1024  # under way at once


@dataclass(frozen=True, slots=True)
class Share:
    """One target of a rule: a backend and its relative weight."""

    namespace: str
    name: str
    weight: int


@dataclass(frozen=True, slots=True)
class Rule:
    """Where requests go whose headers and path fit. The first rule that fits wins."""

    shares: tuple[Share, ...]
    headers: tuple[tuple[str, TextMatch], ...] = ()
    path: TextMatch | None = None
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class Model:
    """A model name that clients may ask for, and its rules. Only used while the picker is away."""

    name: str
    rules: tuple[Rule, ...]
    outside: bool = False  # providers answer for it, too, which only the picker speaks with


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket, or a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Picker:
    """How the picker is asked, and what is done when it does not answer."""

    address: Address
    fail_open: bool = True  # balance without it; otherwise answer 503
    timeout_s: float = 1.0  # for one answer; the picker may ask for more time while it parks a request
    max_timeout_s: float = 660.0  # the most that it may ask for: the longest time in a queue, and a minute for all else
    translator: Address | None = None  # where it speaks with providers; None: beside its own socket


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of a listener. The files are secrets as Envoy reads them; replacing one changes what it says at once."""

    certificate: str  # file of the secret `certificate`
    clients: str = ""  # file of the secret `clients`: who signs clients' certificates; "": clients are not asked
    required: bool = False  # clients have to show one


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients connect."""

    name: str
    host: str
    port: int
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may send and how long they may be silent."""

    body_bytes: int = 32 * 1024 * 1024  # a prompt of 1M tokens is 4 to 6 MB as text; 32 leaves room for images
    headers_s: float = 10.0  # for a request's headers to arrive
    idle_s: float = 900.0  # without a byte in either direction: over the 600 s that OpenAI's clients wait


@dataclass(frozen=True, slots=True)
class Gateway:
    """What is the same for all models."""

    listeners: tuple[Listener, ...]
    picker: Picker
    limits: Limits = field(default_factory=Limits)
    module: bool = False  # Envoy finds our module (envoy/modules); without it Lua watches answers, and cannot end one
    authorities: str = AUTHORITIES  # file on Envoy's machine: who may sign the certificates of others
    access_log: str = ""  # a file for one JSON line a request; "-" for standard output; "" for none


@dataclass(frozen=True, slots=True)
class Jwks:
    """Where an issuer's public keys are: one of the three."""

    inline: str = ""
    file: str = ""  # on Envoy's machine, where it is read once, or on ours, where it is followed
    url: str = ""
    cache_s: float = 300.0  # how long what the URL gave is used


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are checked, and how."""

    issuer: str
    jwks: Jwks
    tenant_claim: str = "sub"
    forward: bool = False  # engines see the token


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, whom it stands for, and which policies (`namespace/name`) know it."""

    key: str = field(repr=False)
    client: str
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """Who may: whoever has one of the credentials, and is one of the tenants and has the claims, where they are named."""

    policy: str  # namespace/name
    issuers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # issuer, audiences: one of them; none: any
    keys: bool = False
    certificates: bool = False
    tenants: tuple[str, ...] = ()
    claims: tuple[tuple[str, tuple[str, ...]], ...] = ()  # path of a claim, its values: one of them


Grants = tuple[Grant, ...] | None  # one of them has to hold; None: everybody may


@dataclass(frozen=True, slots=True)
class Access:
    """Whose credentials are known, and which models need which."""

    issuers: tuple[Issuer, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    takes_keys: bool = False  # a policy names keys, though it may have none just now
    forward_keys: bool = False  # engines see them
    certificates: bool = False  # of clients, by TLS
    models: tuple[tuple[str, Grants], ...] = ()  # every name that is served or named by a policy
    otherwise: Grants = None  # every other name


@dataclass(frozen=True, slots=True)
class IR:
    """Everything Envoy has to do."""

    gateway: Gateway
    backends: tuple[Backend, ...] = ()
    providers: tuple[Provider, ...] = ()
    models: tuple[Model, ...] = ()
    handlings: tuple[Handling, ...] = ()
    limited: bool = False  # some route has limits, of which answers tell
    access: Access | None = None  # None: nobody is asked who they are


@dataclass(frozen=True, slots=True)
class Refusal:
    """Envoy did not take something, and goes on with what it had."""

    message: str  # Envoy's own words
    backends: frozenset[tuple[str, str]] | None  # namespaces and names; None: it may be any of them
    models: frozenset[str] | None
    providers: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the last IR that was published."""

    config: IR | None = None  # None: nothing was published yet
    envoys: int = 0  # that are connected
    settled: bool = False  # all of them have answered
    refusals: tuple[Refusal, ...] = ()
