"""A gate before a pool whose places a test decides, and requests that come, go, are sent and end."""

import json

import numpy as np

from extproc.errors import Rejection
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.scheduling.flow import Band, FlowControl, Prices
from extproc.traffic.flow.gate import Gate
from extproc.traffic.ledger import End, Sent, Settlement
from extproc.types import Api, HttpRequest, InferenceRequest, Outcome

POOL = "ns/engines"
FAIR = Prices(input=1.0, cached=0.1, output=2.0)
BAND = Band(max_requests=5000, max_bytes=1 << 30, ttl_s=60.0, prices=FAIR)
RULES = FlowControl(detector="", default=BAND, negative=BAND._replace(waits=False), bands={})


class Slots:
    """A detector: so many requests at once at each endpoint."""

    def __init__(self, most):
        self.most = most

    def places(self, table, rows, now):
        return [self.most - table.inflight[row] for row in rows]


class Asked:
    """A request at the gate."""

    def __init__(self, ticket, story):
        self.ticket = ticket
        self.story = story
        self.over = False
        self.passed = None
        self.refusal = None

    def heard(self, verdict):
        """Take the end of the wait, as the loop would."""
        self.over = True
        try:
            if verdict is None:
                self.story.send(None)
            else:
                self.story.throw(verdict)
        except StopIteration as end:
            self.passed = end.value
        except Rejection as refusal:
            self.refusal = refusal

    @property
    def waits(self):
        return not self.over


class Room:
    """One pool of endpoints behind a gate."""

    def __init__(self, rules=RULES, *, slots=1, endpoints=1):
        self.now = 1000.0
        self.table = EndpointTable()
        for number in range(endpoints):
            self.table.upsert(Endpoint(f"127.0.0.{number + 1}:8000", f"ns/{number}", "vLLM"))
        self.rows = np.array(self.table.rows(), dtype=np.intp)
        self.detector = Slots(slots)
        self.gate = Gate(self.table, lambda _server: (self.rows,), lambda: self.now)
        self.gate.use(rules, self.detector)
        self.sent = {}  # ticket: row
        self.asked = {}
        self.order = []  # tickets as they were sent
        self.number = 0

    def ask(self, tenant="", *, prompt=100, output=None, key="", headers=None, known=lambda: 0, size=100, pool=POOL):
        """Let a request come; one that may go is sent."""
        self.number += 1
        ticket = f"t{self.number}"
        http = HttpRequest("POST", "/", headers or {}, b"x" * size, tenant=tenant, key=key)
        request = InferenceRequest(
            "", Api.CHAT, "/", {}, "demo", False, b"", prompt, output, False, "", b"", False, None
        )
        asked = Asked(ticket, self.gate.turn(ticket, pool, http=http, request=request, known=known))
        self.asked[ticket] = asked
        try:
            turn = next(asked.story)
        except StopIteration as end:
            asked.over, asked.passed = True, end.value
        except Rejection as refusal:
            asked.over, asked.refusal = True, refusal
        else:
            turn.then(lambda verdict: self._heard(asked, verdict))
        if asked.passed is not None:
            self._send(asked)
        return asked

    def _heard(self, asked, verdict):
        asked.heard(verdict)
        if asked.passed is not None:
            self._send(asked)

    def _send(self, asked):
        avoided, inflight = self.table.avoid_until, self.table.inflight
        row = min(self.rows.tolist(), key=lambda row: (avoided[row], inflight[row]))
        self.table.inflight[row] += 1
        self.sent[asked.ticket] = row
        self.order.append(asked.ticket)
        self.gate.sent(asked.ticket, 0)

    def end(self, asked, *, prompt=None, output=0, cached=0, served=True, expired=False):
        """Let a request that was sent end."""
        row = self.sent.pop(asked.ticket, None)
        if row is not None:
            self.table.inflight[row] -= 1
        outcome = an_outcome(asked.ticket, prompt, output, cached, served=served)
        self.gate.settle(a_settlement(asked.ticket, None if expired else outcome))

    def leave(self, asked):
        """Let the client go away."""
        asked.over = True
        asked.story.close()
        self.gate.leave(asked.ticket)

    def waiting(self):
        return [one for one in self.asked.values() if one.waits]


def an_outcome(ticket, prompt, output, cached=0, *, served=True):
    return Outcome(
        ticket=ticket,
        request_id="",
        model="",
        endpoint="127.0.0.1:8000" if served else "",
        status=200 if served else 503,
        flags=(),
        details="",
        attempts=1,
        started_at=0.0,
        duration_s=1.0,
        first_token_s=None,
        prompt_tokens=prompt if served else None,
        completion_tokens=output if served and prompt is not None else None,
        cached_tokens=cached,
    )


def a_settlement(ticket, outcome):
    sent = Sent(ticket, "", "demo", "demo", POOL, "ns/r", "/", False, ("127.0.0.1:8000",), 0, 0, 0, 0.0)
    return Settlement(sent, End.COMPLETE, outcome, "", ())


def rules(text):
    """Rules as a configuration has them."""
    from extproc import plugins
    from extproc.scheduling import config

    document = {"apiVersion": config.API_VERSIONS[0], "kind": config.KIND, "flowControl": json.loads(text)}
    return config.load(document, plugins.BUILTIN).flow
