"""Feature gates and sections of an EndpointPickerConfig beside plugins and profiles: what of them describes this picker, and what it lacks.

Upstream composes its data layer and its parsers of plugins. Here engines are always scraped and formats always recognised
by their path, so that a section which names the plugins for that is right as it stands, and anything else in it is
told by name. A plugin that stands for such a thing has the word for it as `SERVES`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from extproc.scheduling.parameters import named, near

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from extproc.scheduling.parameters import Report

    Serves = Callable[[str], str | None]  # name of a plugin -> what it serves as, None: not declared

SOURCE: Final = "data source"
EXTRACTOR: Final = "extractor"
PARSER: Final = "parser"
DETECTOR: Final = "saturation detector"
FAIRNESS: Final = "fairness policy"
ORDERING: Final = "ordering policy"

# Upstream's feature gates: the value that describes this picker.
_GATES: Final[Mapping[str, bool | None]] = MappingProxyType(
    {"flowControl": None, "haPopulateNonLeaderDatastore": True, "prepareDataPlugins": True}  # None: either
)
_ENDPOINTS: Final = "endpoints come from ModelServers and their pods"
_ALONE: Final = "pickers do not share what they know this way"
_LACKING: Final = MappingProxyType(
    {
        "saturationDetector": "its place is flowControl.saturationDetector",
    }
)
_LACKING_DATA: Final = MappingProxyType(
    {
        "discovery": _ENDPOINTS,
        "peerDiscovery": _ALONE,
        "crossReplicaSyncerPluginRef": _ALONE,
        "crossReplicaSyncInterval": _ALONE,
    }
)
_DATA: Final = ("injectDefaults", "sources")
NAMES: Final = ("dataLayer", "data", "requestHandler", "parser", *_LACKING)


def check(document: Mapping[str, object], serves: Serves, report: Report) -> None:
    """Report everything in the sections that this picker does not do."""
    sections = _Sections(serves, report)
    for key in NAMES:
        value = document.get(key)
        if not value:
            continue
        if key in _LACKING:
            report(key, f"is not supported: {_LACKING[key]}; remove this section")
        elif key == "parser":
            sections.reference(key, value, PARSER)
        elif key == "requestHandler":
            sections.parsers(key, value)
        else:
            sections.data(key, value)


def check_gate(path: str, gate: object, report: Report) -> None:
    """Report an entry of `featureGates` that does not describe this picker."""
    name, _equals, value = gate.partition("=") if isinstance(gate, str) else ("", "", "")
    if value not in ("", "true", "false"):
        report(path, f"must be a name, name=true or name=false, not {named(gate)}")
    elif name not in _GATES:
        report(path, f"unknown feature gate {named(gate)}{near(name, _GATES)}")
    elif _GATES[name] not in (None, value != "false"):
        report(path, f"{name} cannot be {value or 'true'} in this picker")


class _Sections:
    """Walks the sections whose content matters."""

    def __init__(self, serves: Serves, report: Report) -> None:
        self._serves = serves
        self._report = report

    def parsers(self, key: str, value: object) -> None:
        given = self._mapping(key, value, ("parsers",))
        for at, entry in enumerate(self._list(f"{key}.parsers", given.get("parsers"))):
            self.reference(f"{key}.parsers[{at}]", entry, PARSER)

    def data(self, key: str, value: object) -> None:
        given = self._mapping(key, value, (*_DATA, *_LACKING_DATA))
        for name in _LACKING_DATA.keys() & given.keys():
            self._report(f"{key}.{name}", f"is not supported: {_LACKING_DATA[name]}; remove it")
        if given.get("injectDefaults") not in (None, True):
            self._report(f"{key}.injectDefaults", "must be true: engines' metrics are always scraped")
        for at, entry in enumerate(self._list(f"{key}.sources", given.get("sources"))):
            self._source(f"{key}.sources[{at}]", entry)

    def _source(self, path: str, entry: object) -> None:
        self.reference(path, entry, SOURCE, more=("extractors",))
        extractors = entry.get("extractors") if isinstance(entry, dict) else None
        for at, one in enumerate(self._list(f"{path}.extractors", extractors)):
            self.reference(f"{path}.extractors[{at}]", one, EXTRACTOR, "producer")

    def reference(self, path: str, entry: object, *roles: str, more: tuple[str, ...] = ()) -> None:
        """Check `pluginRef` of an entry: a declared plugin that serves as one of `roles`."""
        given = self._mapping(path, entry, ("pluginRef", *more))
        name = given.get("pluginRef")
        if not isinstance(name, str):
            self._report(f"{path}.pluginRef", "is required" if name is None else f"must be a name, not {named(name)}")
        elif (found := self._serves(name)) is None:
            self._report(f"{path}.pluginRef", f"no plugin is called {named(name)}; add it to `plugins`")
        elif found and found not in roles:
            self._report(f"{path}.pluginRef", f"{name} is no {roles[0]}")

    def _mapping(self, path: str, value: object, known: Collection[str]) -> Mapping[str, object]:
        if not isinstance(value, dict):
            self._report(path, f"must be a mapping, not {named(value)}")
            return {}
        for key in value:
            if key not in known:
                self._report(f"{path}.{key}", f"unknown key{near(key, known)}")
        return value

    def _list(self, path: str, value: object) -> list[object]:
        if value is None:
            return []
        if not isinstance(value, list):
            self._report(path, f"must be a list, not {named(value)}")
            return []
        return value
