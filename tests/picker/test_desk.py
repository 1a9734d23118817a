"""What is counted and logged of requests."""

import json
import logging
import sys

import prometheus_client
import pytest

from extproc import errors
from extproc.adapters import logs, telemetry
from extproc.adapters.desk import Desk
from extproc.adapters.errands import Errands
from extproc.scheduling import latency
from extproc.scheduling.latency import Sample
from extproc.types import HttpRequest
from tests.director.stage import Stage, a_chat, a_route, an_outcome


class Counting(Stage):
    """A stage with a desk before it."""

    def __init__(self, *, access_log=False, route=None):
        super().__init__(route=route)
        self.telemetry = telemetry.Telemetry(self.director._world, self.director.routes_know)
        self.errands = Errands()
        self.desk = Desk(self.director, self.telemetry, self.errands, access_log=access_log)
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(self.telemetry)

    def value(self, name, **labels):
        return self.registry.get_sample_value(name, labels)


def test_a_served_request_is_counted_once():
    stage = Counting()
    decision = stage.desk.decide(a_chat("hello " * 200, stream=True))
    outcome = an_outcome(decision)._replace(prompt_tokens=100, completion_tokens=11, cached_tokens=25, duration_s=1.1)
    stage.desk.settle(outcome)
    stage.desk.settle(outcome)

    assert stage.value("matrixinfer_requests_total", model="demo", status="200", reason="complete") == 1
    assert stage.value("matrixinfer_tokens_total", model="demo", type="input") == 100
    assert stage.value("matrixinfer_tokens_total", model="demo", type="output") == 11
    assert stage.value("matrixinfer_cached_tokens_total", model="demo") == 25
    assert stage.value("matrixinfer_prefix_hit_ratio_bucket", model="demo", le="0.25") == 1
    assert stage.value("matrixinfer_time_per_output_token_seconds_sum", model="demo") == pytest.approx(0.1)
    assert stage.value("matrixinfer_time_to_first_token_seconds_count", model="demo") == 1
    assert stage.value("matrixinfer_decision_duration_seconds_count") == 1
    assert stage.value("matrixinfer_ledger_total", event="duplicate") == 1
    assert stage.value("matrixinfer_ledger_open") == 0


MONTH = {"unit": "month", "inputTokensPerUnit": 100_000, "outputTokensPerUnit": 100_000}
MESSAGES = "/v1/messages"
LEFT, DIED, REFUSED = {"flags": ("DC",), "status": 0}, {"flags": ("UC",)}, {"status": 500}
SILENT = {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": None}
OF_ONE = {"prompt_tokens": 40, "completion_tokens": 150}  # of three choices
BEGUN, UNBEGUN = {"first_token_s": 1.5}, {"first_token_s": None}


@pytest.mark.parametrize(
    ("asked", "facts", "told", "estimated", "charged"),
    [
        ({}, {}, (10, 5), (0, 0), ("usage", 10, 5)),
        ({"stream": True}, {}, (10, 5), (0, 0), ("usage", 10, 5)),
        ({"n": 3, "stream": True}, {}, (10, 5), (0, 0), ("usage", 10, 5)),
        ({}, SILENT, (0, 0), (0, 0), ("reservation", 101, 900)),
        ({"stream": True}, LEFT | BEGUN, (10, 5), (0, 0), ("passed-on", 10, 5)),
        ({"stream": True}, DIED | BEGUN, (10, 5), (0, 0), ("passed-on", 10, 5)),
        ({"stream": True}, LEFT | SILENT | UNBEGUN, (0, 0), (0, 0), ("passed-on", 101, 0)),
        ({}, LEFT | SILENT | UNBEGUN, (0, 0), (101, 151), ("estimate", 101, 151)),
        ({"n": 3, "stream": True}, LEFT | SILENT | BEGUN, (0, 0), (101, 453), ("estimate", 101, 453)),
        ({"n": 3, "stream": True}, DIED | SILENT | BEGUN, (0, 0), (101, 453), ("estimate", 101, 453)),
        ({"n": 3, "stream": True}, LEFT | OF_ONE | BEGUN, (40, 150), (61, 303), ("estimate", 101, 453)),
        ({"n": 3, "stream": True}, DIED | OF_ONE | BEGUN, (40, 150), (61, 303), ("estimate", 101, 453)),
        ({"stream": True, "path": MESSAGES}, LEFT | BEGUN, (10, 5), (0, 146), ("estimate", 10, 151)),
        ({"stream": True, "path": MESSAGES}, DIED | BEGUN, (10, 5), (0, 0), ("passed-on", 10, 5)),
        ({"unknown": True}, LEFT | SILENT | UNBEGUN, (0, 0), (0, 0), ("reservation", 101, 900)),
        ({}, LEFT | SILENT | UNBEGUN | {"sent_s": None}, (0, 0), (0, 0), ("nothing", 0, 0)),
        ({}, REFUSED | SILENT, (0, 0), (0, 0), ("nothing", 0, 0)),
    ],
)
def test_what_engines_told_is_counted_what_they_did_beyond_it_apart_and_both_are_charged(
    asked, facts, told, estimated, charged
):
    stage = Counting(route=a_route(rateLimit=MONTH))
    for row in stage.table.rows() if "unknown" not in asked else ():
        latency.record(stage.table, row, Sample(0.5, 101.0, 0.01, 1), stage.clock.now)
    body = {"max_tokens": 900 // asked.get("n", 1), "n": asked.get("n", 1), "stream": asked.get("stream", False)}
    http = a_chat("x" * 372, **body)._replace(path=asked.get("path", "/v1/chat/completions"))
    decision = stage.desk.decide(http)

    stage.desk.settle(an_outcome(decision)._replace(**({"sent_s": 1.0, "duration_s": 3.005} | facts)))

    found = stage.director.recent[decision.ticket].settlement.charged
    counted = {
        name: tuple(
            stage.value(f"matrixinfer_{name}_total", model="demo", type=kind) or 0 for kind in ("input", "output")
        )
        for name in ("tokens", "estimated_tokens")
    }
    assert counted == {"tokens": told, "estimated_tokens": estimated}
    assert (found.by, found.input_tokens, found.output_tokens) == charged


def test_a_model_that_is_no_text_is_refused_and_counted():
    stage = Counting()
    with pytest.raises(errors.BadRequest, match="not UTF-8"):
        stage.desk.decide(HttpRequest("POST", "/v1/completions", {}, b'{"model":"\x80"}'))

    assert stage.value("matrixinfer_requests_total", model="unknown", status="400", reason="bad-request") == 1


def test_models_that_no_route_names_are_no_labels():
    stage = Counting()
    for number in range(5):
        with pytest.raises(errors.UnknownModel):
            stage.desk.decide(HttpRequest("POST", "/v1/completions", {}, b'{"model":"x%d","prompt":"hi"}' % number))
    with pytest.raises(errors.BadRequest):
        stage.desk.decide(HttpRequest("POST", "/v1/completions", {}, b"["))

    assert stage.value("matrixinfer_requests_total", model="unknown", status="404", reason="unknown-model") == 5
    assert stage.value("matrixinfer_requests_total", model="unknown", status="400", reason="bad-request") == 1


def test_requests_that_went_round_the_picker_are_counted():
    stage = Counting()
    outcome = an_outcome(stage.desk.decide(a_chat("hi")))._replace(ticket="")

    stage.desk.settle(outcome)
    stage.desk.settle(outcome._replace(endpoint=""))

    assert stage.value("matrixinfer_bypassed_total") == 1
    assert stage.value("matrixinfer_ledger_total", event="stranger") == 0


def test_a_request_that_went_on_before_its_decision_came_is_counted_as_round_the_picker_and_settled():
    stage = Counting()
    outcome = an_outcome(stage.desk.decide(a_chat("hi")))._replace(placed=False)

    stage.desk.settle(outcome)

    assert stage.value("matrixinfer_bypassed_total") == 1
    assert stage.value("matrixinfer_ledger_total", event="settled") == 1


def test_a_lost_record_is_an_outcome_of_its_own(caplog):
    stage = Counting()
    stage.desk.decide(a_chat("hi"))
    stage.clock.now += 1000
    stage.table.scraped_at[:] = stage.clock.now

    stage.desk.expire()

    assert stage.value("matrixinfer_requests_total", model="demo", status="0", reason="expired") == 1
    assert caplog.records[-1].end == "expired"


def test_a_gateway_without_access_log_settles_by_the_stream():
    stage = Counting()
    first, second = stage.desk.decide(a_chat("hi")), stage.desk.decide(a_chat("hi"))
    stage.desk.served(first.ticket, first.endpoints[1], 200)
    stage.desk.released(first.ticket)
    stage.desk.released(second.ticket)

    assert stage.value("matrixinfer_requests_total", model="demo", status="200", reason="complete") == 1
    assert stage.value("matrixinfer_requests_total", model="demo", status="0", reason="client-gone") == 1
    assert sum(stage.inflight()) == 0


def test_failures_are_always_logged_and_the_rest_when_asked(caplog):
    caplog.set_level(logging.INFO)
    quiet, talkative = Counting(), Counting(access_log=True)
    for stage in (quiet, talkative):
        stage.desk.settle(an_outcome(stage.desk.decide(a_chat("hi"))))
    good = [record.message for record in caplog.records]
    quiet.desk.settle(an_outcome(quiet.desk.decide(a_chat("hi")), status=503, flags=("UF",)))

    assert good == ["served"]
    assert (caplog.records[-1].message, caplog.records[-1].request_id) == ("failed", "r-1")


def test_a_log_line_is_json_with_its_extras():
    record = logging.LogRecord("extproc", logging.ERROR, __file__, 1, "it %s", ("broke",), None)
    record.request_id = "r-1"
    try:
        raise ValueError("why")  # noqa: TRY301 - to have a traceback
    except ValueError:
        record.exc_info = sys.exc_info()

    line = json.loads(logs.JsonFormatter().format(record))

    assert (line["message"], line["level"], line["request_id"]) == ("it broke", "error", "r-1")
    assert "ValueError: why" in line["exception"]


def test_endpoints_are_counted_as_long_as_they_are_there():
    stage = Counting()
    outcome = an_outcome(stage.desk.decide(a_chat("hi")))
    stage.desk.settle(outcome._replace(prompt_tokens=100, completion_tokens=11, cached_tokens=25))

    assert stage.value("matrixinfer_endpoint_requests_total", endpoint=outcome.endpoint) == 1
    tokens = {
        kind: stage.value("matrixinfer_endpoint_tokens_total", endpoint=outcome.endpoint, type=kind)
        for kind in ("input", "output", "cached")
    }
    assert tokens == {"input": 100, "output": 11, "cached": 25}

    stage.table.remove(outcome.endpoint)

    assert stage.value("matrixinfer_endpoint_requests_total", endpoint=outcome.endpoint) is None


def test_an_end_that_is_told_before_the_decision_settles_it():
    stage = Counting()
    request = a_chat("hello")._replace(ticket="t-1")
    gone = an_outcome(stage.desk.decide(a_chat("hello")))._replace(ticket="t-1", endpoint="", status=0, flags=("DC",))
    stage.desk.settle(gone._replace(placed=False))
    before = stage.value("matrixinfer_ledger_open")
    decision = stage.desk.decide(request)

    assert decision.ticket == "t-1"
    assert stage.value("matrixinfer_ledger_open") == before
    assert stage.value("matrixinfer_ledger_total", event="settled") == 1
