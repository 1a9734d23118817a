"""EndpointPickerConfig: the ecosystem's scheduler configuration, read strictly, and the scheduler built from it.

`load` turns a document (YAML that was read already) into a frozen `Config` and reports every problem at once, each
with its path; `build` makes a scheduler of a Config. Building again from a changed file leaves the endpoint table and
the prefix index as they are. Which plugins exist and what is injected is the caller's `Catalogue`.

The shape is upstream's (llm-d.ai/v1alpha1, and the same under its old group). What upstream knows and this picker
does not do is refused by name, never skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from extproc import errors
from extproc.scheduling import flow, parameters, sections
from extproc.scheduling.disaggregation import Disaggregation, Settings
from extproc.scheduling.parameters import fault, named, near
from extproc.scheduling.scheduler import Profile, Scheduler

API_VERSIONS: Final = ("llm-d.ai/v1alpha1", "llm-d.ai/v1", "inference.networking.x-k8s.io/v1alpha1")
KIND: Final = "EndpointPickerConfig"

_DOCUMENT: Final = ("apiVersion", "kind", "featureGates", "plugins", "schedulingProfiles", "flowControl")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The plugin types that exist, and what a configuration means where it is silent."""

    types: tuple[type[Any], ...]
    default: Mapping[str, Any]  # the document used where neither plugins nor profiles are given
    every_profile: tuple[str, ...]  # filters put at the head of each profile that does not name them
    picker: str  # of a profile without one
    handler: str  # where there is none
    producer: str  # whose parameters are the prefix index's
    prefixes: tuple[str, ...] = ()  # further producers of which a plugin may say that it reads their prefixes
    lacking: Mapping[str, str] = field(default_factory=dict)  # types that others have: what stands in their place

    def type(self, name: str) -> type[Any] | None:
        """Return the plugin type called `name`."""
        return next((one for one in self.types if name == one.TYPE), None)


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """One entry of `plugins`."""

    name: str
    type: type[Any]
    params: Any  # of the type's Params; None while problems are collected, if it has one


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """One entry of `schedulingProfiles`: names of plugins with their weights, in order."""

    name: str
    plugins: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Disaggregated:
    """How prefill and decode in different pods are told."""

    settings: Settings = field(default_factory=Settings)
    decider: str = ""  # name of the plugin; "": always
    by_label: bool = False  # the profile handler asks for it, so that pods' own labels count, too


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without mistakes, with everything injected."""

    plugins: tuple[PluginSpec, ...]
    profile: ProfileSpec  # the one that the profile handler chose; of two, the one for endpoints that answer
    prefill: ProfileSpec | None  # the other one; None: where a ModelServer has a pdGroup, `profile` serves for both
    disaggregation: Disaggregated
    prefix: Any  # Params of the catalogue's producer: how prefixes are cut and how many blocks are remembered
    flow: flow.FlowControl | None = None  # None: no request waits for its turn


def parse(text: str) -> object:
    """Read YAML for `load`. Raises ConfigError with the line."""
    try:
        return yaml.load(text, Loader=_Strict)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise errors.ConfigError(where, f"not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise errors.ConfigError("", f"not YAML: {error}") from error


def load(document: object, catalogue: Catalogue) -> Config:
    """Read a configuration. Raises ConfigError that names every problem, at the path of the first."""
    return _Reader(catalogue).read(document)


def problems(document: object, catalogue: Catalogue) -> list[tuple[str, str]]:
    """Return every problem of a configuration: its path, and what to change; none if it loads."""
    reader = _Reader(catalogue)
    try:
        reader.read(document)
    except errors.ConfigError as error:
        return reader.problems or [(error.path, error.message)]
    return []


def build(config: Config, guarded: Callable[[str, Any], Any] = lambda _name, plugin: plugin) -> Scheduler:
    """Make the scheduler that `config` describes, with plugins of its own; `guarded` may put something before each."""
    plugins = {spec.name: guarded(spec.name, spec.type(spec.params)) for spec in config.plugins}
    scheduler = Scheduler(_profile(config.profile, plugins))
    given = config.disaggregation
    scheduler.disaggregation = Disaggregation(
        scheduler,
        scheduler if config.prefill is None else Scheduler(_profile(config.prefill, plugins)),
        decider=plugins[given.decider] if given.decider else None,
        settings=given.settings,
        by_label=given.by_label,
    )
    return scheduler


def detector(config: Config) -> Any:
    """Make the saturation detector that `config` describes; None where no request waits for its turn."""
    if config.flow is None:
        return None
    spec = next(one for one in config.plugins if one.name == config.flow.detector)
    return spec.type(spec.params)


def _profile(spec: ProfileSpec, plugins: Mapping[str, Any]) -> Profile:
    members = [(name, weight, plugins[name]) for name, weight in spec.plugins]
    return Profile(
        name=spec.name,
        filters=tuple((name, one) for name, _weight, one in members if hasattr(one, "keep")),
        scorers=tuple((name, weight, one) for name, weight, one in members if hasattr(one, "score")),
        picker=next((name, one) for name, _weight, one in members if hasattr(one, "order")),
        observers=tuple(one for _name, _weight, one in members if hasattr(one, "observe")),
    )


class _Reader:
    """Reads one document; collects problems as it goes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.problems: list[tuple[str, str]] = []
        self._specs: dict[str, PluginSpec] = {}
        self._refused: set[str] = set()  # names of plugins that are told already, and may be referred to

    def read(self, document: object) -> Config:
        """Return the configuration or raise one ConfigError for all problems."""
        given = self._mapping("", document)
        self._head(given)
        if given.get("plugins") in (None, []) and given.get("schedulingProfiles") in (None, []):
            given = {**given, **{key: self._catalogue.default[key] for key in ("plugins", "schedulingProfiles")}}
        self._plugins(given.get("plugins"))
        sections.check(given, self._serves, self._problem)
        profiles = self._profiles(given.get("schedulingProfiles"))
        chosen, prefill, disaggregated = self._chosen(profiles)
        prefix = self._prefix()
        self._attributes()
        controlled = self._flow(given)
        if self.problems or chosen is None:
            (path, message), *rest = self.problems
            raise errors.ConfigError(path, "\n".join([message, *(f"{where}: {what}" for where, what in rest)]))
        return Config(tuple(self._specs.values()), chosen, prefill, disaggregated, prefix, controlled)

    def _head(self, document: Mapping[str, object]) -> None:
        for key, known in (("apiVersion", API_VERSIONS), ("kind", (KIND,))):
            if document.get(key) not in known:
                self._problem(key, f"must be {' or '.join(known)}, not {named(document.get(key))}")
        for key in document:
            if key not in _DOCUMENT and key not in sections.NAMES:
                self._problem(str(key), f"unknown key{near(key, _DOCUMENT)}")
        for at, gate in enumerate(self._list("featureGates", document.get("featureGates"))):
            sections.check_gate(f"featureGates[{at}]", gate, self._problem)

    def _plugins(self, value: object) -> None:
        for at, entry in enumerate(self._list("plugins", value)):
            path = f"plugins[{at}]"
            given = self._mapping(path, entry, ("name", "type", "parameters"))
            type_name = given.get("type")
            plugin = self._catalogue.type(type_name) if isinstance(type_name, str) else None
            if plugin is None:
                self._problem(f"{path}.type", self._unknown_type(type_name))
            name = given.get("name") or type_name
            if not isinstance(name, str):
                if plugin is not None:
                    self._problem(f"{path}.name", f"must be a string, not {named(name)}")
                continue
            if name in self._specs:
                self._problem(f"{path}.name", f"another plugin is called {name}, too; give each its own name")
            if plugin is not None:
                self._specs.setdefault(name, self._spec(name, plugin, f"{path}.parameters", given.get("parameters")))
            else:
                self._refused.add(name)

    def _unknown_type(self, name: object) -> str:
        if isinstance(name, str) and name in self._catalogue.lacking:
            return f"{name} is not supported: {self._catalogue.lacking[name]}"
        what = f"unknown plugin type {named(name)}" if name else "is required"
        return what + near(name, [one.TYPE for one in self._catalogue.types])

    def _serves(self, name: str) -> str | None:
        """Say what a declared plugin serves as in a section, "" for one that is refused already; None: not declared."""
        if name in self._specs:
            plugin = self._specs[name].type
            return getattr(plugin, "SERVES", "") or _role(plugin)
        return "" if name in self._refused else None

    def _spec(self, name: str, plugin: type[Any], path: str, value: object) -> PluginSpec:
        given = {} if value is None else value
        return PluginSpec(name, plugin, parameters.read(plugin.Params, given, path, self._problem, owner=plugin.TYPE))

    def _profiles(self, value: object) -> list[ProfileSpec]:
        entries = self._list("schedulingProfiles", value)
        if not entries:
            placed = [name for name, spec in self._specs.items() if _role(spec.type) in _PLACED]
            entries = [{"name": "default", "plugins": [{"pluginRef": name} for name in placed]}]
        profiles: list[ProfileSpec] = []
        for at, entry in enumerate(entries):
            path = f"schedulingProfiles[{at}]"
            given = self._mapping(path, entry, ("name", "plugins"))
            name = given.get("name")
            if not isinstance(name, str) or not name:
                self._problem(f"{path}.name", "is required" if name is None else f"must be a name, not {named(name)}")
            elif name in [one.name for one in profiles]:
                self._problem(f"{path}.name", f"another profile is called {name}, too; give each its own name")
            members = self._members(f"{path}.plugins", given.get("plugins"))
            profiles.append(ProfileSpec(str(name), members))
        return profiles

    def _members(self, path: str, value: object) -> tuple[tuple[str, float], ...]:
        members: list[tuple[str, float]] = []
        for at, entry in enumerate(self._list(path, value)):
            where = f"{path}[{at}]"
            given = self._mapping(where, entry, ("pluginRef", "weight"))
            spec = self._referenced(f"{where}.pluginRef", given.get("pluginRef"))
            if spec is None:
                continue
            role = _role(spec.type)
            weight = given.get("weight")
            if role == "producer" and weight is None:
                continue  # upstream's configurations name some here; it does its work for every profile
            if role not in _PLACED:
                self._problem(
                    f"{where}.pluginRef", f"{spec.name} is no filter, scorer or picker; `plugins` is its place"
                )
            elif spec.name in [name for name, _weight in members]:
                self._problem(f"{where}.pluginRef", f"{spec.name} stands in this profile already")
            elif role == "picker" and any(_role(self._specs[name].type) == "picker" for name, _weight in members):
                self._problem(f"{where}.pluginRef", f"{spec.name} is a second picker; a profile has one")
            elif weight is not None and not hasattr(spec.type, "score"):
                self._problem(f"{where}.weight", f"only scorers have a weight, and {spec.name} is a {role}")
            elif weight is not None and (wanted := fault(weight, float, 0, None)):
                self._problem(f"{where}.weight", f"must be {wanted}, not {named(weight)}")
            else:
                members.append((spec.name, 1.0 if weight is None else float(str(weight))))
        return self._completed(members)

    def _referenced(self, path: str, name: object) -> PluginSpec | None:
        if isinstance(name, str) and name in self._specs:
            return self._specs[name]
        if isinstance(name, str) and name in self._refused:
            return None
        if name is None:
            self._problem(path, "is required")
        elif isinstance(name, str) and self._catalogue.type(name):
            self._problem(path, f"{name} is not among `plugins`; add `- type: {name}` there")
        else:
            self._problem(path, f"no plugin is called {named(name)}{near(name, self._specs)}")
        return None

    def _completed(self, members: list[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        """Add what every profile has: its picker at the end, the standing filters at the head."""
        here = {self._specs[name].type.TYPE for name, _weight in members}
        head = [(self._injected(one), 1.0) for one in self._catalogue.every_profile if one not in here]
        picks = any(_role(self._specs[name].type) == "picker" for name, _weight in members)
        tail = [] if picks else [(self._injected(self._catalogue.picker), 1.0)]
        return (*head, *members, *tail)

    def _injected(self, type_name: str) -> str:
        """Name of a plugin of this type: one that was declared, or a new one with default parameters."""
        for name, spec in self._specs.items():
            if type_name == spec.type.TYPE:
                return name
        plugin = self._catalogue.type(type_name)
        if plugin is None:
            raise errors.ConfigError("", f"plugin type {type_name} is injected but does not exist")
        name = type_name if type_name not in self._specs else f"{type_name}-injected"
        self._specs[name] = PluginSpec(name, plugin, plugin.Params())
        return name

    def _chosen(self, profiles: list[ProfileSpec]) -> tuple[ProfileSpec | None, ProfileSpec | None, Disaggregated]:
        handlers = [spec for spec in self._specs.values() if _role(spec.type) == "profile handler"]
        if len(handlers) > 1:
            names = ", ".join(spec.name for spec in handlers)
            self._problem("plugins", f"there can be one profile handler only, not {names}")
        handler = handlers[0] if handlers else self._specs[self._injected(self._catalogue.handler)]
        disaggregated = Disaggregated()
        if handler.params is None:  # one of its parameters is wrong, which is told
            return None, None, disaggregated
        plugin: Any = handler.type(handler.params)
        try:
            names = plugin.profiles(tuple(one.name for one in profiles))
        except ValueError as error:
            self._problem("schedulingProfiles", str(error))
            return None, None, disaggregated
        chosen, *prefill = [next(one for one in profiles if one.name == name) for name in names]
        if prefill:
            disaggregated = self._disaggregated(handler)
        return chosen, prefill[0] if prefill else None, disaggregated

    def _disaggregated(self, handler: PluginSpec) -> Disaggregated:
        given: Any = handler.params
        named_in = f"plugins.{handler.name}.parameters"
        decider = given.decider
        if decider and (decider not in self._specs or _role(self._specs[decider].type) != "decider"):
            deciders = [name for name, spec in self._specs.items() if _role(spec.type) == "decider"]
            self._problem(named_in, f"no decider among `plugins` is called {named(decider)}{near(decider, deciders)}")
            decider = ""
        return Disaggregated(
            Settings(
                leg=given.prefill_leg,
                across_groups=given.across_groups,
                fallback=given.aggregated_fallback,
                timeout_s=given.prefill_timeout_seconds,
                tries=given.max_prefill_tries,
                bootstrap_port=given.bootstrap_port,
            ),
            decider,
            by_label=True,
        )

    def _prefix(self) -> object:
        producers = [spec for spec in self._specs.values() if self._catalogue.producer == spec.type.TYPE]
        if len(producers) > 1:
            names = ", ".join(spec.name for spec in producers)
            self._problem("plugins", f"there is one prefix index, so one {self._catalogue.producer} only, not {names}")
        spec = producers[0] if producers else self._specs[self._injected(self._catalogue.producer)]
        known = [spec.name, *(one.name for one in self._specs.values() if one.type.TYPE in self._catalogue.prefixes)]
        for other in self._specs.values():
            named = getattr(other.params, "prefix_match_info_producer_name", "")
            if named and named not in known:
                self._problem(
                    f"plugins.{other.name}.parameters.prefixMatchInfoProducerName",
                    f"no prefix producer is called {named!r}{near(named, known)}",
                )
        return spec.params

    def _attributes(self) -> None:
        """Hold what plugins read (`reads` of their Params) against what others offer (`offers`)."""
        params = {name: spec.params for name, spec in self._specs.items()}
        offered = [name for one in params.values() for name in getattr(one, "offers", ())]
        for name, one in params.items():
            wanted = getattr(one, "reads", "")
            if wanted and wanted not in offered:
                what = f"no metric is called {named(wanted)}{near(wanted, offered)}; customMetrics of core-metrics-extractor"
                self._problem(f"plugins.{name}.parameters", f"{what} names them")

    def _flow(self, document: Mapping[str, object]) -> flow.FlowControl | None:
        """Read `flowControl`: in force where it is given, or its gate is named without it; not if the gate says so."""
        gates = [gate for gate in self._list("featureGates", document.get("featureGates")) if isinstance(gate, str)]
        section = document.get("flowControl")
        controlled = None
        if section is not None or "flowControl" in gates or "flowControl=true" in gates:
            controlled = flow.read(section or {}, self, self._problem)
        return None if "flowControl=false" in gates else controlled

    def serving(self, path: str, name: str, role: str, default: str) -> tuple[str, Any]:
        """Return name and plugin called `name` ("": of type `default`), which has to serve as `role`; None if it does not."""
        if not name:
            name = self._injected(default)
        spec = self._specs.get(name)
        if spec is None:
            if name not in self._refused:
                self._problem(path, f"no plugin is called {named(name)}{near(name, self._specs)}; add it to `plugins`")
            return "", None
        if getattr(spec.type, "SERVES", "") != role:
            self._problem(path, f"{name} is no {role}")
            return name, None
        return name, None if spec.params is None else spec.type(spec.params)

    def _mapping(self, path: str, value: object, known: tuple[str, ...] | None = None) -> Mapping[str, object]:
        """Return `value` if it is a mapping whose keys are all `known` (None: any strings), else what is good of it."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._problem(path, f"must be a mapping, not {named(value)}")
            return {}
        for key in value:
            if known is not None and key not in known:
                self._problem(f"{path}.{key}", f"unknown key{near(key, known)}")
        return {str(key): one for key, one in value.items()}

    def _list(self, path: str, value: object) -> list[object]:
        if value is None:
            return []
        if not isinstance(value, list):
            self._problem(path, f"must be a list, not {named(value)}")
            return []
        return value

    def _problem(self, path: str, message: str) -> None:
        self.problems.append((path, message))


_PLACED: Final = ("filter", "scorer", "picker")


def _role(plugin: type[Any]) -> str:
    """Say what a plugin is by the method it has."""
    for method, role in (
        ("keep", "filter"),
        ("score", "scorer"),
        ("order", "picker"),
        ("profiles", "profile handler"),
        ("verdict", "decider"),
    ):
        if hasattr(plugin, method):
            return role
    return "producer"


class _Strict(yaml.SafeLoader):
    """YAML in which a key that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - the base's signature
        """Refuse duplicate keys."""
        seen: set[object] = set()
        for key_node, _value in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)
