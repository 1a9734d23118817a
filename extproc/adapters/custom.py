"""Custom plugins: found among the installed packages, and kept from doing harm while they run.

A package offers a plugin as an entry point in the group `matrixinfer.plugins`: a class like those in `extproc.plugins`,
a filter, scorer or picker. `Watch` stands between the scheduler and each of them: what raises, or returns anything
but what its role has to, is left out of that one decision, counted and logged by its name, and the time that it takes
is its own in the metrics. It runs on the picker's loop; that it returns at all is left to its author.
"""

from __future__ import annotations

import logging
import time
from dataclasses import is_dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from extproc import plugins
from extproc.adapters.telemetry import Counter, Histogram
from extproc.errors import ConfigError
from extproc.plugins.max_score_picker import best_first
from extproc.scheduling import parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from prometheus_client.metrics_core import Metric

    from extproc.scheduling.config import Config
    from extproc.scheduling.framework import Cycle

GROUP: Final = "matrixinfer.plugins"

_LOG = logging.getLogger(__name__)
_SECONDS: Final = (
    0.000005,
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.05,
    0.25,
    1,
)
_LOG_EVERY_S: Final = 60.0  # of one plugin: at hundreds of requests a second each line more would cost the others time
_FALLBACKS: Final = 4  # endpoints in the order that stands in for a picker's
_ROLES: Final = ("keep", "score", "order")
_BUILTIN: Final = frozenset(plugins.BUILTIN.types)

T = TypeVar("T")


class WrongResult(Exception):
    """A plugin returned what its role does not return."""


def found() -> tuple[type[Any], ...]:
    """Return the plugin types that installed packages offer. One that cannot be used is logged and left out."""
    types: dict[str, type[Any]] = {}
    for entry in metadata.entry_points(group=GROUP):
        where = {"plugin": entry.name, "object": entry.value}
        try:
            plugin = entry.load()
        except (Exception, SystemExit):  # noqa: BLE001 - importing somebody else's package may do anything
            _LOG.exception("a custom plugin cannot be imported", extra=where)
            continue
        fault = _unfit(plugin, types)
        if fault:
            _LOG.error("a custom plugin cannot be used: %s", fault, extra=where)
        else:
            types[plugin.TYPE] = plugin
    return tuple(types.values())


def try_out(config: Config) -> None:
    """Make each custom plugin of a configuration, and forget it: so a fault is found before anything changes. Raises ConfigError for one that cannot be made."""
    for spec in config.plugins:
        if spec.type not in _BUILTIN:
            try:
                spec.type(spec.params)
            except (Exception, SystemExit) as error:
                raise ConfigError(f"plugins.{spec.name}", f"the plugin cannot be made: {error!r}") from error


def _unfit(plugin: Any, others: dict[str, type[Any]]) -> str:
    """Say why `plugin` cannot be one, "" if it can."""
    if not isinstance(plugin, type):
        return "the entry point must name a class"
    kind = getattr(plugin, "TYPE", None)
    if not isinstance(kind, str) or not kind:
        return "it must have a TYPE, the name that a configuration gives it"
    if kind in others or plugins.BUILTIN.type(kind) is not None:
        return f"there is a plugin of the type {kind} already"
    if fault := _unfit_params(getattr(plugin, "Params", None)):
        return fault
    roles = [role for role in _ROLES if callable(getattr(plugin, role, None))]
    if not roles or ("order" in roles and len(roles) > 1):
        return "it must be a filter (method keep), a scorer (score), both, or a picker (order) and nothing else"
    return ""


def _unfit_params(params: Any) -> str:
    if not isinstance(params, type) or not is_dataclass(params):
        return "it must have Params, a dataclass (NoParams of extproc.scheduling.framework if there are none)"
    unread = parameters.unreadable(params)
    return f"Params.{unread}" if unread else ""


class Watch:
    """Counts, times and logs what custom plugins do. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.failures = Counter(
            "matrixinfer_custom_plugin_failures",
            "Decisions that a custom plugin was left out of: it raised, or what it returned was wrong.",
            ("plugin", "reason"),
        )
        self._clock = clock
        self._seconds = Histogram(
            "matrixinfer_custom_plugin_seconds", "Time that a custom plugin took in one call.", ("plugin",), _SECONDS
        )
        self._silent_until: dict[str, float] = {}
        self._watched = False

    def guarded(self, name: str, plugin: Any) -> Any:
        """Return `plugin`, called `name` in the configuration, as it may run: one of ours as it is, others watched."""
        if type(plugin) in _BUILTIN:
            return plugin
        self._watched = True
        return _Guarded(name, plugin, self)

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics; none where no custom plugin is configured."""
        if self._watched:
            yield self._seconds.family()
            yield self.failures.family()

    def run(self, name: str, work: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """Do `work`; where that fails, what `otherwise` gives."""
        started = self._clock()
        try:
            return work()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a foreign plugin does, requests go on
            self._failed(name, error)
            return otherwise()
        finally:
            self._seconds.observe((name,), self._clock() - started)

    def _failed(self, name: str, error: BaseException) -> None:
        reason = "result" if isinstance(error, WrongResult) else "raised"
        self.failures.add((name, reason))
        now = self._clock()
        if now >= self._silent_until.get(name, now):
            self._silent_until[name] = now + _LOG_EVERY_S
            _LOG.error(
                "a custom plugin failed; decisions are made without it",
                exc_info=error,
                extra={
                    "plugin": name,
                    "failures": sum(self.failures.values[name, why] for why in ("raised", "result")),
                },
            )


class _Guarded:
    """A plugin of somebody else's, with the methods that it has, none of which fails."""

    def __init__(self, name: str, plugin: Any, watch: Watch) -> None:
        self.TYPE = plugin.TYPE
        self._name, self._plugin, self._watch = name, plugin, watch
        for role in (*_ROLES, "observe"):  # what a plugin is, the scheduler tells by its methods
            if hasattr(plugin, role):
                setattr(self, role, getattr(self, f"_{role}"))

    def _keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        n = len(cycle.rows)
        return self._watch.run(
            self._name, lambda: _marks(self._plugin.keep(cycle), n), lambda: np.ones(n, dtype=np.bool_)
        )

    def _score(self, cycle: Cycle) -> NDArray[np.float64]:
        n = len(cycle.rows)
        return self._watch.run(self._name, lambda: _scores(self._plugin.score(cycle), n), lambda: np.zeros(n))

    def _order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        return self._watch.run(
            self._name,
            lambda: _positions(self._plugin.order(cycle, scores.copy()), len(scores)),
            lambda: best_first(scores, _FALLBACKS, cycle.draw),
        )

    def _observe(self, cycle: Cycle, row: int) -> None:
        self._watch.run(self._name, lambda: self._plugin.observe(cycle, row), lambda: None)


def _array(value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise WrongResult(f"what it returned is no array: {error}") from error


def _marks(value: Any, n: int) -> NDArray[np.bool_]:
    marks = _array(value)
    if marks.shape != (n,) or marks.dtype != np.bool_:
        raise WrongResult(f"keep must return {n} booleans, not shape {marks.shape} of {marks.dtype}")
    return marks


def _scores(value: Any, n: int) -> NDArray[np.float64]:
    """Return the scores; those beyond 0 or 1 are cut off there, as upstream does."""
    given = _array(value)
    if given.shape != (n,) or given.dtype.kind not in "fiub":
        raise WrongResult(f"score must return {n} numbers, not shape {given.shape} of {given.dtype}")
    scores = given.astype(np.float64)
    if not np.isfinite(scores).all():
        raise WrongResult("score must return finite numbers, not NaN or infinity")
    return scores.clip(0.0, 1.0)


def _positions(value: Any, n: int) -> NDArray[np.intp]:
    given = _array(value)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
        raise WrongResult(f"order must return positions, not shape {given.shape} of {given.dtype}")
    positions = given.astype(np.intp)
    if positions.min() < 0 or positions.max() >= n or len(np.unique(positions)) != len(positions):
        raise WrongResult(f"order must return different positions from 0 to {n - 1}")
    return positions
