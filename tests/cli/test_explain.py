import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from matrixinfer.cli import pages
from matrixinfer.cli.explanation import explanation
from matrixinfer.cli.main import main
from tests.seeing.builders import text

DECISION = {
    "ticket": "40748ad5-3",
    "request_id": "why-1",
    "model": "demo",
    "engine_model": "llama",
    "route": "default/demo",
    "rule": "default",
    "target": "default/demo",
    "endpoints": ["10.0.0.2:8000", "10.0.0.1:8000"],
    "prompt_tokens": 165,
    "blocks": 11,
    "matched_blocks": 10,
    "profile": "default",
    "picker": "max-score-picker",
    "reason": "leads 10.0.0.1:8000 by 0.5455, most of it by prefix-cache-scorer (0.9091 against 0.0000)",
    "weights": {"prefix-cache-scorer": 3.0, "least-request-scorer": 2.0},
    "candidates": [
        {
            "endpoint": "10.0.0.2:8000",
            "score": 0.9455,
            "scores": {"prefix-cache-scorer": 0.9091, "least-request-scorer": 1.0},
        },
        {
            "endpoint": "10.0.0.1:8000",
            "score": 0.4,
            "scores": {"prefix-cache-scorer": 0.0, "least-request-scorer": 1.0},
        },
        {"endpoint": "[fe80::3]:8000", "dropped_by": "bounded-load-filter"},
    ],
    "s_ago": 75.2,
    "end": {
        "end": "complete",
        "served": "10.0.0.1:8000",
        "failed": ["10.0.0.2:8000"],
        "outcome": {
            "ticket": "40748ad5-3",
            "status": 200,
            "flags": [],
            "details": "via_upstream",
            "attempts": 2,
            "duration_s": 0.346,
            "first_token_s": 0.021,
            "prompt_tokens": 165,
            "completion_tokens": 38,
            "cached_tokens": 160,
        },
    },
}
AT_80 = """\
request why-1  ticket 40748ad5-3  1m ago
model   demo -> default/demo as llama (route default/demo, rule default)
prompt  about 165 tokens; 10 of its 11 prefix blocks known at the chosen
endpoint
chosen  10.0.0.2:8000 (default/demo-1): leads 10.0.0.1:8000 by 0.5455, most of
it by prefix-cache-scorer (0.9091 against 0.0000)

                               prefix-   least-
                                 cache  request
order   endpoint        score      x 3      x 2
chosen  10.0.0.2:8000  0.9455   0.9091   1.0000
2.      10.0.0.1:8000  0.4000   0.0000   1.0000
left out by bounded-load-filter: [fe80::3]:8000
profile default, max-score-picker; score: the scorers' mean by weight (sum 5), 0
to 1; 2., 3., ...: where Envoy goes next if the chosen one fails

ended   complete, status 200 from 10.0.0.1:8000 after 346ms, first token after
21ms
        165 prompt tokens (160 cached, 97%), 38 answered tokens
        tried before, and failed: 10.0.0.2:8000"""
ENDPOINTS = {"endpoints": [{"address": "10.0.0.2:8000", "pod": "default/demo-1", "ready": True}]}


def explained(width=80, **fields):
    decision = pages.read(json.dumps(DECISION | fields).encode(), pages.Decision)
    return text(explanation(decision, {"10.0.0.2:8000": "default/demo-1"}, width=width), width)


@contextmanager
def answering(answers):
    """Serves pages: path -> (status, body)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers.get(self.path, (404, b'{"error": "no recent decision"}'))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_decision_is_told_with_its_candidates_its_reason_and_its_end():
    assert explained() == AT_80


def test_a_wide_terminal_shows_pods_and_whole_names_of_scorers():
    shown = explained(160)

    assert "prefix-cache-scorer  least-request-scorer" in shown
    assert "chosen  10.0.0.2:8000  default/demo-1  0.9455" in shown


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ({"end": "open"}, "not yet: the answer is on its way"),
        ({"end": "expired", "outcome": None, "served": "", "failed": []}, "ended   expired"),
        (
            {"end": "failed", "outcome": {"status": 503, "duration_s": 0.1, "flags": ["UF"], "details": "refused"}},
            "failed, status 503 after 100ms\n        the engine told no usage\n        Envoy's flags UF, refused",
        ),
        (
            {"end": "client-gone", "outcome": {"status": 0, "duration_s": 2.0}},
            "client-gone, without an answer after 2.0s",
        ),
        (
            {
                "end": "complete",
                "served": "10.0.0.9:8000",
                "target": "default/spare",
                "outcome": {"status": 200, "duration_s": 2.0},
            },
            "complete, status 200 from 10.0.0.9:8000 of default/spare after 2.0s",
        ),
    ],
)
def test_every_end_has_its_words(end, says):
    assert says in explained(end=end)


def test_what_a_client_sent_does_nothing_to_the_terminal():
    shown = explained(request_id="\x1b[2J", model="[red]\nx")

    assert "\x1b" not in shown
    assert "[red] x -> default/demo" in shown


def test_explain_asks_the_picker_and_prints(capsys):
    answers = {
        "/decisions/why%2F1": (200, json.dumps(DECISION).encode()),
        "/endpoints": (200, json.dumps(ENDPOINTS).encode()),
    }
    with answering(answers) as admin:
        code = main(["explain", "why/1", "--admin", admin])

    assert code == 0
    assert "10.0.0.2:8000 (default/demo-1): leads 10.0.0.1:8000" in capsys.readouterr().out


def test_json_is_the_pickers_own_answer(capsys):
    with answering({"/decisions/why-1": (200, json.dumps(DECISION).encode())}) as admin:
        code = main(["explain", "why-1", "--json", "--admin", admin.removeprefix("http://")])

    assert (code, json.loads(capsys.readouterr().out)) == (0, DECISION)


def test_a_refusal_is_explained_as_well(capsys):
    refusal = {"error": "no endpoint was chosen", "end": "refused", "request_id": "bad-1", "path": "/v1/completions"}
    refusal |= {"model": "nope", "status": 404, "reason": "unknown-model", "message": "no model nope", "s_ago": 1.0}
    with answering({"/decisions/bad-1": (404, json.dumps(refusal).encode())}) as admin:
        code = main(["explain", "bad-1", "--admin", admin])

    assert code == 0
    assert capsys.readouterr().out == (
        "request bad-1 was sent nowhere: refused with 404 (unknown-model)\nno model nope\n"
    )


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            (404, b'{"error": "no recent decision with ticket or request id"}'),
            "explain: no recent decision with ticket",
        ),
        ((404, b"<html>"), "is not the admin port of a picker: it answers 404"),
        ((404, b'{"error": {"message": "x"}}'), "is not the admin port of a picker: it answers 404"),
        ((500, b""), "is not the admin port of a picker: it answers 500"),
        ((200, b'{"ticket": 7}'), "what answers there is not a picker of this version"),
        ((200, b"\xff"), "what answers there is not a picker of this version"),
    ],
)
def test_without_an_answer_explain_says_why_and_exits_with_1(answer, says, capsys):
    with answering({"/decisions/x": answer}) as admin:
        code = main(["explain", "x", "--admin", admin])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert says in err


def test_without_a_picker_explain_says_how_to_name_it(unused_tcp_port, capsys):
    assert main(["explain", "x", "--admin", f"127.0.0.1:{unused_tcp_port}"]) == 1

    err = capsys.readouterr().err
    assert f"no picker answers at http://127.0.0.1:{unused_tcp_port}" in err
    assert "--admin http://127.0.0.1:15001" in err


def test_an_admin_that_is_no_address_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["explain", "x", "--admin", "ftp://x"])

    assert stopped.value.code == 2
    assert "'ftp://x' is not an admin address, such as http://127.0.0.1:15000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prefill", "said"),
    [
        (
            {
                "leg": "gateway",
                "reason": "always",
                "connector": "nixl",
                "endpoint": "10.0.0.9:8000",
                "tries": [{"endpoint": "10.0.0.9:8000", "result": "ok", "seconds": 0.25}],
                "choice": {"picker": "max-score-picker"},
            },
            "prefill by the gateway, at 10.0.0.9:8000 (default/p-0) over nixl (always); default/p-0 ok after 0.250 s",
        ),
        (
            {"leg": "none", "reason": "cached", "detail": "3 tokens uncached"},
            "prefill no leg (cached: 3 tokens uncached)",
        ),
    ],
)
def test_it_says_what_became_of_the_prefill_leg(prefill, said):
    decision = pages.read(json.dumps({**DECISION, "prefill": prefill}).encode(), pages.Decision)

    assert said in text(explanation(decision, {"10.0.0.9:8000": "default/p-0"}, width=160), 160)
