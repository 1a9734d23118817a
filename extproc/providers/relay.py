"""A request that goes on to an external provider because its engines have failed: what Envoy holds of it has the engine's words.

Nothing is kept for it beyond what the ledger has of every request. The client's name of the model is there, and the rest of
what was changed for engines can be told from the body. It is the same request still: it has one entry in the ledger,
its limits are reserved, and its one end is told by the listener that the client spoke to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc import errors
from extproc.providers.outward import outward
from extproc.requests import parse, rewrite
from extproc.types import Decision
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.providers.outward import Outward
    from extproc.traffic.ledger import Sent
    from extproc.traffic.routes import RouteTable
    from extproc.types import HttpRequest
    from matrixinfer.api import networking


class Relay:
    """Finds requests by their tickets."""

    def __init__(self, relay: Callable[[str], Sent | None], routes: Callable[[], RouteTable]) -> None:
        """`relay` takes that the request of a ticket goes on; None if it may not."""
        self._relay = relay
        self._routes = routes

    def decide(self, http: HttpRequest) -> Decision:
        """Tell how the request is said to its provider. Raises EngineFailed: for the client, that is what happened."""
        sent = self._relay(http.ticket)
        if sent is None:
            raise errors.EngineFailed("The engines failed, and this request is not known to the picker any more.")
        target = sent.further[dataplane.RELAY_ENDPOINT]
        provider = self._routes().usable(target.partition("/")[2])
        if provider is None:
            raise _failed("the provider that takes what overflows cannot be used any more")
        try:
            made = _made(http, sent.model, provider)
        except errors.Rejection as rejection:
            raise _failed(f"for {provider.metadata.name} it cannot be translated: {rejection.message}") from None
        return Decision(
            ticket=sent.ticket, endpoints=(made.address,), target=target, body=made.body, provider=made.note
        )


def _made(http: HttpRequest, model: str, provider: networking.ExternalModelProvider) -> Outward:
    """Say a request with the engine's words in the provider's."""
    request = parse.parse(http)
    body = rewrite.without_running(request.body)
    made = outward(request._replace(body=body), provider, usage=True, asked=model)
    return made._replace(body=body) if made.body is None and body is not request.body else made


def _failed(why: str) -> errors.EngineFailed:
    return errors.EngineFailed(f"The engines failed before they answered, and {why}.")
