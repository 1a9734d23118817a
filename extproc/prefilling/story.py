"""The prefill leg: the part of a request's story that a ModelServer with prefill and decode pods adds.

It owns the order of its steps: may the request be split, who decodes, what does the decider say, who prefills; then the
leg itself, try after try, or the header that lets the proxy in the decode pod perform it. Whatever fails, the request
goes on: a decode endpoint that may computes the prompt itself, and every reason is counted. A decode engine is asked
only when the prompt's blocks are there (SGLang excepted: its engines want both legs at once).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from extproc.prefilling.leg import Leg
from extproc.prefilling.plan import Plan
from extproc.prefilling.told import Counts
from extproc.scheduling.disaggregation import roles_by_group, roles_by_label

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.prefilling.plan import Asked, Split
    from extproc.prefilling.told import Try
    from extproc.scheduling.disaggregation import Disaggregation, Roles
    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Draw
    from extproc.traffic.ledger import Ledger, Loan
    from extproc.traffic.pools import Pools
    from extproc.types import Errand
    from matrixinfer.api import networking

Telling = Generator["Errand", Any, "Split"]
_FAULTS: Final = frozenset({"refused", "broken", "timeout"})  # words of `Called.fault` that speak against an endpoint


class Prefilling:
    """Knows the roles of every ModelServer's pods, and tells the prefill leg."""

    def __init__(self, *, table: EndpointTable, pools: Pools, ledger: Ledger) -> None:
        self.counts = Counts()
        self._table = table
        self._pools = pools
        self._ledger = ledger
        self._known: dict[str, tuple[object, object, bool, Roles | None]] = {}

    def roles(self, name: str, server: networking.ModelServer | None, how: Disaggregation | None) -> Roles | None:
        """Return who prefills and decodes for a ModelServer; None where every pod does both."""
        if server is None or how is None:
            return None
        group = server.spec.workload_selector.pd_group
        if group is None and not how.by_label:
            return None
        rows = self._pools.ready(name)
        known = self._known.get(name)
        if known is None or known[0] is not rows or known[1] is not server or known[2] is not how.by_label:
            found = self._found(rows, group, by_label=how.by_label)
            known = self._known[name] = (rows, server, how.by_label, found)
        return known[3]

    def _found(self, rows: NDArray[np.intp], group: networking.PDGroup | None, *, by_label: bool) -> Roles | None:
        if group is not None:
            return roles_by_group(self._table, rows, group)
        roles = roles_by_label(self._table, rows) if by_label else None
        return roles if roles is not None and len(roles.prefill) else None

    def story(
        self, asked: Asked, how: Disaggregation, roles: Roles, *, clock: Callable[[], float], draw: Draw
    ) -> Telling:
        """Tell how the request is served. Raises NoEndpoints, Saturated, PrefillFailed."""
        plan = Plan(self, asked, how, roles)
        told = plan.judged()
        if told is None:
            pair, told = plan.paired()
            if pair is not None:
                if how.settings.leg == "proxy":
                    return self._counted(plan.by_proxy(pair, told))
                split = yield from Leg(plan, pair, told, clock=clock, draw=draw).story()
                if split is not None:
                    return self._counted(split)
        return self._counted(plan.alone(told))

    def _counted(self, split: Split) -> Split:
        self.counts.requests[split.told.leg, split.told.reason] += 1
        return split

    # ---- what the legs of a request write

    def lend(self, address: str, tokens: int) -> Loan:
        """Count a leg at its endpoint."""
        return self._ledger.lend(address, tokens)

    def give_back(self, loan: Loan) -> None:
        """End that."""
        self._ledger.give_back(loan)

    def row(self, address: str) -> int | None:
        """Return an endpoint's row, None if it has left."""
        return self._table.row(address)

    def ended(self, one: Try, *, sent_at: float, now: float) -> None:
        """Count a leg, and draw the conclusions for its endpoint."""
        self.counts.leg(one.result, one.seconds)
        if one.result == "ok":
            self._ledger.leg_served(one.endpoint)
        elif one.result in _FAULTS or one.result.startswith("5"):
            self._ledger.leg_failed(one.endpoint, sent_at=sent_at, now=now)
