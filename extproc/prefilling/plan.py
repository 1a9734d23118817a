"""What can be done for one request: whether it gets a prefill leg, with whom, and who may answer it without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from extproc import errors
from extproc.prefilling.told import Told
from extproc.scheduling.disaggregation import among
from extproc.types import Api
from matrixinfer.api import transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from extproc.prefilling.story import Prefilling
    from extproc.scheduling.disaggregation import Disaggregation, Pair, Roles, Verdict
    from extproc.scheduling.framework import Cycle
    from extproc.scheduling.scheduler import Result
    from extproc.traffic.ledger import Loan
    from extproc.types import InferenceRequest, Prefix
    from matrixinfer.api import networking

_SPLIT: Final = frozenset({Api.CHAT, Api.COMPLETIONS})
_GENERATES: Final = frozenset({Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES})


class Split(NamedTuple):
    """How the request goes on, whether it was split or not."""

    cycle: Cycle
    result: Result
    body: bytes | None  # None: as it was
    headers: tuple[tuple[str, str], ...]
    loan: Loan | None  # given back when the request ends
    told: Told
    predicted: int | None = None  # cached tokens that the decode engine will report, where its own cache does not say


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as the legs need it."""

    request: InferenceRequest
    prefix: Prefix
    body: bytes  # as it goes to the engine
    server: networking.ModelServer
    ticket: str
    fresh: Callable[[], Cycle]  # the cycle over the server's candidates as they are now
    learn: Callable[[Cycle, int], None]  # remember that an endpoint of a cycle, by its row, will hold the prefix
    freed: Callable[[], None]  # take that a leg, which ran beside its request, has left its place

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, counted or estimated."""
        return self.request.prompt_tokens if self.prefix.tokens is None else self.prefix.tokens


class Plan:
    """What can be done for one request."""

    def __init__(self, owner: Prefilling, asked: Asked, how: Disaggregation, roles: Roles) -> None:
        self.owner = owner
        self.asked = asked
        self.how = how
        self.roles = roles
        spec = asked.server.spec
        kind = spec.kv_connector.type if spec.kv_connector is not None else None
        self.connector = transfer.connector(spec.inference_engine, kind)
        self.legs: transfer.Legs | None = None
        self.cycle = asked.fresh()
        self.decode = among(self.cycle, roles.decode)

    def judged(self) -> Told | None:
        """Say why the request has no prefill leg; None if it gets one."""
        asked = self.asked
        if not len(self.decode.rows):
            raise errors.NoEndpoints("no decode endpoint of the pool is ready")
        if asked.request.api not in _SPLIT:
            return Told("none", "api")
        try:
            self.legs = transfer.Legs(self.connector, asked.body, vllm=asked.server.spec.inference_engine == "vLLM")
        except transfer.NotTransferable as error:
            return Told("none", str(error))
        self.verdict: Verdict = self.how.verdict(asked.tokens, self._cached())
        if not self.verdict.remote and len(self._able(self.decode)):
            return Told("none", self.verdict.reason, self.verdict.detail)
        return None

    def _cached(self) -> int:
        """Tokens of the prompt that the best decode endpoint holds."""
        cycle = self.decode
        if not cycle.blocks or not cycle.matched.any():
            return 0
        first = self.how.first(cycle).rows[0]
        matched = int(cycle.matched[cycle.rows == first][0])
        return self.asked.tokens * matched // cycle.blocks

    def paired(self) -> tuple[Pair | None, Told]:
        """Choose who prefills, and what is said of it."""
        reason, detail = self.verdict.reason, self.verdict.detail
        if not self.verdict.remote:
            reason, detail = "decode-only", "decode endpoints of this engine compute no prompts"
        try:
            pair = self.how.pair(self.cycle, self.roles)
        except errors.Saturated as error:
            return None, Told("none", "saturated", error.message)
        if pair is None:
            return None, Told("none", "no-prefill", "no prefill endpoint is ready for the decode endpoints")
        told = Told(
            self.how.settings.leg, reason, detail, self.connector, pair.prefill.addresses[0], pair.group or None
        )
        told.chosen = pair.prefill
        return pair, told

    def by_proxy(self, pair: Pair, told: Told) -> Split:
        """Let the proxy in the decode pod perform the leg."""
        asked, tries = self.asked, pair.prefill.addresses[: self.how.settings.tries]
        self.learn(tries[0])
        cycle = self.answering(self.cycle, self.roles, pair.group)
        return Split(
            cycle,
            self.how.decode(cycle),
            transfer.stripped(asked.body),
            ((transfer.PREFILLER, ",".join(tries)),),
            self.owner.lend(tries[0], asked.tokens),
            told,
            self.predicted(tries[0]),
        )

    def learn(self, address: str) -> None:
        """Remember that a prefill endpoint holds the prefix."""
        at = self._at(address)
        if at is not None:
            self.asked.learn(self.cycle, at)

    def predicted(self, address: str) -> int | None:
        """Return the cached tokens that the decode engine will report: with NIXL, what the prefill engine has."""
        at, cached = self._at(address), self.cycle.cached_tokens
        if at is None or cached is None or self.connector != "nixl":
            return None
        tokens = int(cached[self.cycle.rows.tolist().index(at)])
        return None if tokens < 0 else tokens

    def _at(self, address: str) -> int | None:
        """Return the row of an address, if it is still that of a candidate."""
        row = self.owner.row(address)
        return row if row is not None and row in self.cycle.rows.tolist() else None

    def alone(self, told: Told) -> Split:
        """Let a decode endpoint compute everything. Raises PrefillFailed where none may."""
        cycle = self.asked.fresh()
        roles = self.roles_now()
        cycle = among(cycle, roles.decode)
        if self.asked.request.api in _GENERATES:
            able = self._able(cycle)
            if len(cycle.rows) and not len(able):
                raise errors.PrefillFailed(
                    f"this request needs a prefill endpoint ({told.reason}), and decode endpoints may not replace it",
                    retry_after_s=1,
                )
            cycle = among(cycle, able)
        if not len(cycle.rows):
            raise errors.NoEndpoints("no decode endpoint of the pool is ready")
        body = transfer.stripped(self.asked.body)
        return Split(cycle, self.how.decode(cycle), body, (), None, told)

    def answering(self, cycle: Cycle, roles: Roles, group: str | None) -> Cycle:
        """Return the cycle over the decode endpoints that may take the blocks of a prefill endpoint of `group`."""
        rows = [row for row in roles.decode.tolist() if group is None or roles.group[row] == group]
        return among(cycle, _rows(rows))

    def roles_now(self) -> Roles:
        """Return the roles as they are after a wait; pods may have come and gone."""
        server = self.asked.server
        name = f"{server.metadata.namespace}/{server.metadata.name}"
        return self.owner.roles(name, server, self.how) or self.roles

    def _able(self, cycle: Cycle) -> NDArray[np.intp]:
        """Rows that may compute a prompt and answer it, too."""
        fallback = self.how.settings.fallback
        if fallback == "always" or (fallback == "engine" and self.connector != "sglang"):
            return cycle.rows
        return _rows([row for row in cycle.rows.tolist() if row in self.roles.both])


def _rows(rows: list[int]) -> NDArray[np.intp]:
    return np.array(rows, dtype=np.intp)
