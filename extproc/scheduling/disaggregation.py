"""Prefill and decode in different pods: who may do what, whether a request is split, and which pair serves it.

A ModelServer's `pdGroup` says by labels which pods prefill, which decode, and which belong together; without it the
label `llm-d.ai/role` does, where the configuration has a profile handler that disaggregates. The decode endpoint is
chosen first, by the decode profile; the decider hears how much of the prompt it holds; then the prefill profile orders
the prefill endpoints that may work with it. With several groups the group is chosen by the sum of both scores.

Pure: performing the legs is told by `extproc.prefilling`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import numpy as np

from extproc.scheduling.scheduler import Profile, Result, Scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Cycle

PREFILL: Final = "prefill"
DECODE: Final = "decode"
ROLE: Final = "llm-d.ai/role"  # label of a pod: prefill, decode, both, or names joined by "-"
PARTNER: Final = "prefill-partner"  # how the score of the other half of a pair is called in a decision
_NOBODY: Final[NDArray[np.intp]] = np.zeros(0, dtype=np.intp)


class Verdict(NamedTuple):
    """Whether a request gets a prefill leg."""

    remote: bool
    reason: str  # one stable word
    detail: str = ""


class Decider(Protocol):
    """Decides about each request."""

    def verdict(self, prompt_tokens: int, cached_tokens: int) -> Verdict:
        """Judge by the prompt's length and by how much of it the decode endpoint holds."""
        ...


class Labels(Protocol):
    """What of a ModelServer's `pdGroup` is read."""

    @property
    def group_key(self) -> str:
        """Label whose value names the group."""
        ...

    @property
    def prefill_labels(self) -> Mapping[str, str]:
        """Labels of prefill pods."""
        ...

    @property
    def decode_labels(self) -> Mapping[str, str]:
        """Labels of decode pods."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How prefill legs run; the profile handler's parameters."""

    leg: Literal["proxy", "gateway"] = "gateway"
    across_groups: bool = False
    fallback: Literal["engine", "always", "never"] = "engine"
    timeout_s: float = 45.0
    tries: int = 2
    bootstrap_port: int = 8998


@dataclass(frozen=True, slots=True)
class Roles:
    """Rows of one ModelServer's ready endpoints by what they may do; `group` is by row, in a mapping."""

    prefill: NDArray[np.intp] = field(default_factory=lambda: _NOBODY)
    decode: NDArray[np.intp] = field(default_factory=lambda: _NOBODY)
    both: frozenset[int] = frozenset()
    group: Mapping[int, str] = field(default_factory=dict)


class Pair(NamedTuple):
    """Who computes the prompt, best first, and who may answer."""

    prefill: Result
    decode: Result
    group: str | None  # of both; None: any


class Disaggregation:
    """The profiles of both halves, the decider, and the settings. Holds no state but the plugins' own."""

    def __init__(
        self, decode: Scheduler, prefill: Scheduler, *, decider: Decider | None, settings: Settings, by_label: bool
    ) -> None:
        """`decider` None: always split. `by_label`: without a `pdGroup`, read the pods' role labels."""
        self.settings = settings
        self.by_label = by_label
        self._decider = decider
        self._decode, self._prefill = decode, prefill
        self._partner = _Partner()
        self._quiet_decode = _quiet(decode.profile)
        self._quiet_prefill = _quiet(prefill.profile)
        self._paired = _quiet(_with_partner(decode.profile, self._partner))

    def verdict(self, prompt_tokens: int, cached_tokens: int) -> Verdict:
        """Ask the decider."""
        if self._decider is None:
            return Verdict(True, "always")
        return self._decider.verdict(prompt_tokens, cached_tokens)

    def first(self, cycle: Cycle) -> Result:
        """Order the decode endpoints of `cycle` for the decider; nobody is told that they were chosen."""
        return self._quiet_decode.schedule(cycle)

    def decode(self, cycle: Cycle) -> Result:
        """Order the decode endpoints of `cycle`, finally."""
        return self._decode.schedule(cycle, trace=True)

    def pair(self, cycle: Cycle, roles: Roles) -> Pair | None:
        """Choose a pair; None if no prefill endpoint may work with a decode endpoint.

        `cycle` holds all endpoints of the server. Raises Saturated.
        """
        halves = (among(cycle, roles.prefill), among(cycle, roles.decode))
        group: str | None = None
        if not self.settings.across_groups:
            common = {roles.group[row] for row in halves[0].rows.tolist()}
            common &= {roles.group[row] for row in halves[1].rows.tolist()}
            if not common:
                return None
            group = next(iter(common)) if len(common) == 1 else self._best_group(halves, roles, common)
            halves = (_in_group(halves[0], roles, {group}), _in_group(halves[1], roles, {group}))
        prefill, decode = halves
        if not len(prefill.rows):
            return None
        first = self._quiet_decode.schedule(decode)
        prefill = among(prefill, prefill.rows[prefill.rows != first.rows[0]])  # nobody is his own partner
        if not len(prefill.rows):
            return None
        near = prefill._replace(peer=first.rows[0])
        return Pair(self._prefill.schedule(near, trace=True), first, group)

    def _best_group(self, halves: tuple[Cycle, Cycle], roles: Roles, common: set[str]) -> str:
        """Return the group of the best sum of a prefill and a decode endpoint's score."""
        prefill, decode = (_in_group(half, roles, common) for half in halves)
        best: dict[str, float] = {}
        trace = self._quiet_prefill.schedule(prefill, trace=True).trace
        if trace is not None:
            for address, score in zip(trace.addresses, trace.total, strict=True):
                row = prefill.table.row(address)
                if row is not None:
                    group = roles.group[row]
                    best[group] = max(best.get(group, 0.0), score)
        decode = _in_group(decode, roles, set(best))  # the filters have left a prefill endpoint there
        self._partner.scores = {row: best[roles.group[row]] for row in decode.rows.tolist()}
        return roles.group[self._paired.schedule(decode).rows[0]]


class _Partner:
    """A scorer: how good the best prefill endpoint of a candidate's group is. Set before each use, on the loop."""

    TYPE = PARTNER

    def __init__(self) -> None:
        self.scores: Mapping[int, float] = {}

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        return np.array([self.scores[row] for row in cycle.rows.tolist()])


def roles_by_group(table: EndpointTable, rows: NDArray[np.intp], labels: Labels) -> Roles:
    """Return who of `rows` prefills and decodes by a `pdGroup`; who has neither's labels takes no requests."""

    def fits(row: int, wanted: Mapping[str, str]) -> bool:
        endpoint = table.endpoints[row]
        return endpoint is not None and all(endpoint.labels.get(key) == value for key, value in wanted.items())

    def group(row: int) -> str:
        endpoint = table.endpoints[row]
        return "" if endpoint is None else endpoint.labels.get(labels.group_key, "")

    listed = rows.tolist()
    prefill = [row for row in listed if fits(row, labels.prefill_labels)]
    decode = [row for row in listed if fits(row, labels.decode_labels)]
    return _roles(prefill, decode, {row: group(row) for row in listed})


def roles_by_label(table: EndpointTable, rows: NDArray[np.intp]) -> Roles:
    """Return who of `rows` prefills and decodes by the label `llm-d.ai/role`; without it a pod decodes."""
    listed = rows.tolist()
    prefill = [row for row in listed if role_of(table, row) and _has(role_of(table, row), PREFILL)]
    decode = [row for row in listed if not role_of(table, row) or _has(role_of(table, row), DECODE)]
    return _roles(prefill, decode, dict.fromkeys(listed, ""))


def role_of(table: EndpointTable, row: int) -> str:
    """Return a pod's role label; "" if it has none."""
    endpoint = table.endpoints[row]
    return "" if endpoint is None else endpoint.labels.get(ROLE, "")


def with_role(cycle: Cycle, role: str) -> NDArray[np.bool_]:
    """Mark the candidates whose label allows `role`, and those without the label."""
    given = [role_of(cycle.table, row) for row in cycle.rows.tolist()]
    return np.array([not one or _has(one, role) for one in given], dtype=np.bool_)


def among(cycle: Cycle, rows: NDArray[np.intp]) -> Cycle:
    """Return the cycle over those of its candidates that are in `rows`."""
    return cycle.narrowed(np.isin(cycle.rows, rows))


def _has(role: str, wanted: str) -> bool:
    return role == "both" or wanted in role.split("-")


def _roles(prefill: list[int], decode: list[int], group: Mapping[int, str]) -> Roles:
    return Roles(
        np.array(prefill, dtype=np.intp),
        np.array(decode, dtype=np.intp),
        frozenset(prefill) & frozenset(decode),
        group,
    )


def _in_group(cycle: Cycle, roles: Roles, groups: set[str]) -> Cycle:
    return cycle.narrowed(np.array([roles.group[row] in groups for row in cycle.rows.tolist()], dtype=np.bool_))


def _quiet(profile: Profile) -> Scheduler:
    return Scheduler(replace(profile, observers=()))


def _with_partner(profile: Profile, partner: _Partner) -> Profile:
    weight = sum(weight for _name, weight, _scorer in profile.scorers) or 1.0
    return replace(profile, scorers=(*profile.scorers, (PARTNER, weight, partner)))
