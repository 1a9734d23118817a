"""The `flowControl` section of an EndpointPickerConfig: what is read, and what it means.

Upstream's fields under upstream's names; ours are `tenants`, `keys`, `objectives`, `trustRequestHeaders` and `redis`. `read`
makes a `FlowControl` of the section; which plugins exist is the catalogue's, and what they do is theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

from extproc.scheduling import parameters, sections
from extproc.scheduling.framework import parameter
from extproc.scheduling.parameters import named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.scheduling.parameters import Report

LONGEST_TTL_S: Final = (
    600.0  # OpenAI's clients wait as long; Envoy's idle timeout and reservations of limits outlive it
)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITIES: Final = {
    "": 1,
    **{unit: 1000 ** (at + 1) for at, unit in enumerate(("k", "M", "G", "T"))},
    **{unit: 1024 ** (at + 1) for at, unit in enumerate(("Ki", "Mi", "Gi", "Ti"))},
}
_NUMBERS: Final = ("maxRequests", "maxBytes")
_MOST_REQUESTS: Final = "5000"  # upstream's bounds of a band; a request that waits takes some 10 KB here, and its body
_MOST_BYTES: Final = "1G"
# The plugins that are meant where none is named.
DETECTOR: Final = "utilization-detector"
FAIRNESS: Final = "virtual-token-counter-fairness-policy"
ORDERING: Final = "fcfs-ordering-policy"


def seconds(text: str, name: str) -> float:
    """Read a duration such as 60s, 1m30s or 500ms. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{name} must be a duration such as 60s or 1m30s, not {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _quantity(text: str, name: str) -> int:
    """Read a number such as 5000, 1k or 1Gi. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,15})(k|M|G|T|Ki|Mi|Gi|Ti)?", text)
    if found is None:
        raise ValueError(f"{name} must be a number such as 5000 or 1Gi, not {text!r}")
    unit: int = _QUANTITIES[found[2] or ""]
    return int(found[1]) * unit


def _ttl(text: str, name: str) -> float:
    found = seconds(text, name)
    if not 0 < found <= LONGEST_TTL_S:
        raise ValueError(f"{name} must be more than 0s and at most {LONGEST_TTL_S / 60:g}m, not {text!r}")
    return found


# ---- as it is written


@dataclass(frozen=True, slots=True, kw_only=True)
class _Band:
    """`defaultPriorityBand`, `defaultNegativePriorityBand`."""

    max_requests: str = ""
    max_bytes: str = ""
    default_request_ttl: str = parameter("", name="defaultRequestTTL")
    fairness_policy_ref: str = ""
    ordering_policy_ref: str = ""

    def __post_init__(self) -> None:
        for text, name in ((self.max_requests, "maxRequests"), (self.max_bytes, "maxBytes")):
            if text:
                _quantity(text, name)
        if self.default_request_ttl:
            _ttl(self.default_request_ttl, "defaultRequestTTL")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbered(_Band):
    """An entry of `priorityBands`."""

    priority: int


@dataclass(frozen=True, slots=True)
class _Detector:
    plugin_ref: str = ""


@dataclass(frozen=True, slots=True)
class _Redis:
    address: str = ""

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if self.address and not (host and colon and port.isascii() and port.isdigit()):
            raise ValueError(f"address must be host:port, not {self.address!r}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An entry of `tenants`: how urgent a tenant's requests are, and how much of a band is its."""

    name: str = ""  # "": every other one, each for itself
    weight: float = parameter(1.0, minimum=0.001, maximum=1000)
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Named:
    """An entry of `keys` (API keys) or `objectives`."""

    name: str
    priority: int


@dataclass(frozen=True, slots=True)
class _Written:
    LACKS: ClassVar = {
        "enableEviction": "what an engine computes is not taken away from it again",
        "usageLimitPolicyPluginRef": "a band may use whatever the pool has left",
        "bandSelectionPolicyPluginRef": "the highest priority that waits is next",
    }

    max_requests: str = "0"
    max_bytes: str = "0"
    default_request_ttl: str = parameter("60s", name="defaultRequestTTL")
    no_endpoint_request_ttl: str = parameter("", name="noEndpointRequestTTL")
    default_priority_band: _Band = _Band()
    default_negative_priority_band: _Band = _Band()
    priority_bands: tuple[_Numbered, ...] = ()
    saturation_detector: _Detector = _Detector()
    tenants: tuple[Tenant, ...] = ()
    keys: tuple[Named, ...] = ()
    objectives: tuple[Named, ...] = ()
    trust_request_headers: bool = False
    redis: _Redis = _Redis()

    def __post_init__(self) -> None:
        _quantity(self.max_requests, "maxRequests")
        _quantity(self.max_bytes, "maxBytes")
        _ttl(self.default_request_ttl, "defaultRequestTTL")
        if self.no_endpoint_request_ttl:
            _ttl(self.no_endpoint_request_ttl, "noEndpointRequestTTL")


# ---- as it is meant


class Prices(NamedTuple):
    """What tokens count among tenants, and how far locality may go against their order."""

    request: float = 0.0
    input: float = 0.0
    cached: float = 0.0
    output: float = 0.0
    locality: float = 0.0

    def weighed(self, prompt: int, cached: int, output: int) -> float:
        """Return what a request counts."""
        return self.request + self.input * (prompt - cached) + self.cached * cached + self.output * output


class Band(NamedTuple):
    """The bounds of one priority, in each pool."""

    max_requests: int
    max_bytes: int
    ttl_s: float
    prices: Prices | None  # None: tenants do not count
    waits: bool = True  # False: refused where it would have to wait


@dataclass(frozen=True, slots=True)
class FlowControl:
    """The section without mistakes."""

    detector: str  # name of the plugin
    default: Band
    negative: Band
    bands: Mapping[int, Band]
    max_requests: int = 0  # of all pools; 0: no bound
    max_bytes: int = 0
    no_endpoint_ttl_s: float = 0.0  # 0: nothing is held for a pool without endpoints
    tenants: Mapping[str, Tenant] = field(default_factory=dict)  # "": all others
    keys: Mapping[str, int] = field(default_factory=dict)
    objectives: Mapping[str, int] = field(default_factory=dict)
    trusted: bool | None = None  # headers; None: nothing is said of them
    redis: str = ""

    def band(self, priority: int) -> Band:
        """Return the rule of a priority."""
        return self.bands.get(priority) or (self.negative if priority < 0 else self.default)

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        bands = {
            "default": self.default,
            "negative": self.negative,
            **{str(at): band for at, band in self.bands.items()},
        }
        return {
            "detector": self.detector,
            "max_requests": self.max_requests,
            "max_bytes": self.max_bytes,
            "no_endpoint_ttl_s": self.no_endpoint_ttl_s,
            "bands": {
                name: band._asdict() | {"prices": None if band.prices is None else band.prices._asdict()}
                for name, band in bands.items()
            },
            "tenants": {name: {"weight": one.weight, "priority": one.priority} for name, one in self.tenants.items()},
            "keys": dict(self.keys),
            "objectives": dict(self.objectives),
            "trusted": self.trusted,
            "redis": self.redis,
        }

    @property
    def longest_s(self) -> float:
        """The longest that a request may wait."""
        bands = (self.default, self.negative, *self.bands.values())
        return max(self.no_endpoint_ttl_s, *(band.ttl_s for band in bands))


class Plugins(Protocol):
    """Knows which plugins were declared."""

    def serving(self, path: str, name: str, role: str, default: str) -> tuple[str, Any]:
        """Return name and plugin called `name` ("": of type `default`), which has to serve as `role`; None if it does not."""
        ...


def read(value: object, plugins: Plugins, report: Report) -> FlowControl | None:
    """Read the section; None if there are mistakes, which are told."""
    written: _Written | None = parameters.read(_Written, _texts(value), "flowControl", report, owner="flowControl")
    if written is None:
        return None
    bands: dict[int, Band] = {}
    reader = _Bands(plugins, written)
    for at, one in enumerate(written.priority_bands):
        path = f"flowControl.priorityBands[{at}]"
        if one.priority in bands:
            report(f"{path}.priority", f"another band has priority {one.priority}, too; each has one entry")
        bands[one.priority] = reader.band(path, one)
    negative = "defaultNegativePriorityBand"
    given = {key for key, one in value.items() if one is not None} if isinstance(value, dict) else set()
    return FlowControl(
        detector=plugins.serving(
            "flowControl.saturationDetector.pluginRef",
            written.saturation_detector.plugin_ref,
            sections.DETECTOR,
            DETECTOR,
        )[0],
        default=reader.band("flowControl.defaultPriorityBand", written.default_priority_band),
        negative=reader.band(f"flowControl.{negative}", written.default_negative_priority_band)._replace(
            waits=negative in given
        ),
        bands=bands,
        max_requests=_quantity(written.max_requests, "maxRequests"),
        max_bytes=_quantity(written.max_bytes, "maxBytes"),
        no_endpoint_ttl_s=seconds(written.no_endpoint_request_ttl, "") if written.no_endpoint_request_ttl else 0.0,
        tenants=_by_name("tenants", written.tenants, report),
        keys={name: one.priority for name, one in _by_name("keys", written.keys, report).items()},
        objectives={name: one.priority for name, one in _by_name("objectives", written.objectives, report).items()},
        trusted=written.trust_request_headers if "trustRequestHeaders" in given else None,
        redis=written.redis.address,
    )


class _Bands:
    """Reads bands, each as its entry says, else as `defaultPriorityBand`, else as upstream."""

    def __init__(self, plugins: Plugins, written: _Written) -> None:
        self._plugins = plugins
        self._default = written.default_priority_band
        self._ttl = written.default_request_ttl

    def band(self, path: str, given: _Band) -> Band:
        default = self._default
        policy = self._plugins.serving(
            f"{path}.fairnessPolicyRef",
            given.fairness_policy_ref or default.fairness_policy_ref,
            sections.FAIRNESS,
            FAIRNESS,
        )[1]
        self._plugins.serving(
            f"{path}.orderingPolicyRef",
            given.ordering_policy_ref or default.ordering_policy_ref,
            sections.ORDERING,
            ORDERING,
        )
        return Band(
            _quantity(given.max_requests or default.max_requests or _MOST_REQUESTS, "maxRequests"),
            _quantity(given.max_bytes or default.max_bytes or _MOST_BYTES, "maxBytes"),
            seconds(given.default_request_ttl or default.default_request_ttl or self._ttl, "defaultRequestTTL"),
            None if policy is None else policy.prices(),
        )


Entry = TypeVar("Entry", Tenant, Named)


def _by_name(key: str, entries: tuple[Entry, ...], report: Report) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for at, one in enumerate(entries):
        if one.name in found:
            report(f"flowControl.{key}[{at}].name", f"another entry is called {named(one.name)}, too")
        found[one.name] = one
    return found


def _texts(value: object) -> object:
    """Return the section with its quantities as text: YAML reads 5000 as a number, and 1Gi as none."""
    if isinstance(value, dict):
        return {
            key: str(one) if key in _NUMBERS and type(one) is int else _texts(one) if key != "tenants" else one
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_texts(one) for one in value]
    return value
