"""Times: how long whoever serves requests takes for them, engines and external providers, as settled requests told.

An engine's times stand in its row of the endpoint table, where scheduling reads them. A provider has no endpoints that are
chosen among; its times serve to infer what it did for a request that its client left, and are kept here, for each
model that it is asked for: models of one provider differ more than engines do. They go when the provider goes, or becomes
another: another place, or another model there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.traffic import latency, unfinished
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.traffic.ledger import Done, Settlement
    from matrixinfer.api import networking

_MOST: Final = 256  # models of providers whose times are kept: those that told of themselves last


class Times:
    """Learns from requests that were settled, and infers from what it learned. Written on the loop only."""

    def __init__(self, engines: EndpointTable) -> None:
        self.providers = EndpointTable(capacity=8)  # by target and model
        self._engines = engines
        self._known: dict[str, networking.ExternalModelProviderSpec] = {}  # by target

    def use(self, providers: Mapping[str, networking.ExternalModelProvider]) -> None:
        """Take these as the providers that there are."""
        known = {
            dataplane.provider_name(one.metadata.namespace, one.metadata.name): one.spec for one in providers.values()
        }
        for row in self.providers.rows():
            name = self.providers.address(row)
            target = name.partition(" ")[0]
            before, now = self._known[target], known.get(target)
            if now is None or (now.base_url, now.model) != (before.base_url, before.model):
                self.providers.remove(name)
        self._known = known

    def learn(self, settlement: Settlement, now: float) -> None:
        """Take what a request that was served took."""
        name = self._provider(settlement)
        if not name:
            latency.learn(self._engines, settlement, now)
        elif settlement.served:
            if self.providers.row(name) is None:
                self._make_room()
                self.providers.upsert(Endpoint(name, "", ""))
            latency.learn(self.providers, settlement._replace(served=name), now)

    def done(self, settlement: Settlement) -> Done | None:
        """Return what was done for a request that broke off; None if that is told, or nothing is known of the times."""
        name = self._provider(settlement)
        if not name:
            return unfinished.done(self._engines, settlement)
        assert settlement.outcome is not None  # noqa: S101 - for the types: who has no outcome was not served
        return unfinished.done(self.providers, settlement._replace(outcome=settlement.outcome._replace(endpoint=name)))

    def _provider(self, settlement: Settlement) -> str:
        """Return the name of the provider's model that had the request; "" if it was an engine's, or nobody's."""
        if not self._known or settlement.outcome is None or not settlement.outcome.endpoint:
            return ""
        spec = self._known.get(settlement.target)
        return "" if spec is None else f"{settlement.target} {spec.model or settlement.sent.model}"

    def _make_room(self) -> None:
        rows = self.providers.rows()
        if len(rows) >= _MOST:
            self.providers.remove(self.providers.address(min(rows, key=self.providers.view["latency_at"].__getitem__)))
