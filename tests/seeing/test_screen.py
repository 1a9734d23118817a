import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cli.view import words
from matrixinfer.cli.view.screen import screen
from matrixinfer.cli.view.snapshot import ModelRow, Traffic
from tests.seeing.builders import a_decision, a_gateway, a_row, a_snapshot, text

AT_80 = """\
MatrixInfer http://127.0.0.1:8080  up 3:12  4/4 ready   Ctrl-C stops
6.0 req/s  480 tok/s  88% cached  TTFT 18ms/87ms  8 in flight  errors 3

ENDPOINT  STATE  IN FL  QUEUE     KV  REQ/S  TOK/S  CACHED  FAILED
demo-0    ready      2      0    42%    1.5    120     88%       0
demo-1    ready      2      0    42%    1.5    120     88%       0
demo-2    ready      2      0    42%    1.5    120     88%       0
demo-3    ready      2      0    42%    1.5    120     88%       0

MODEL  SERVED BY (READY)  REQ/S  TOK/S  CACHED  TTFT p50/p99  ERRORS
demo   demo 4/4             6.0    480     88%     18ms/87ms       3

  AGO  TICKET      MODEL  SENT TO  BLOCKS  TOKENS  END
   0s  40748ad5-0  demo   demo-0     9/10    ~160  complete
   1s  40748ad5-1  demo   demo-0     9/10    ~160  complete
   2s  40748ad5-2  demo   demo-0     9/10    ~160  complete
   3s  40748ad5-3  demo   demo-0     9/10    ~160  complete
   4s  40748ad5-4  demo   demo-0     9/10    ~160  complete"""

AT_140 = """\
MatrixInfer http://127.0.0.1:8080  up 3:12  1/1 ready   admin http://127.0.0.1:15000   matrixinfer explain ID tells why   Ctrl-C stops
6.0 req/s  480 tok/s  88% cached  TTFT 18ms/87ms  2 in flight  errors 3  100 prompt tok/s  1234 requests in all

ENDPOINT  ADDRESS         STATE  IN FL  QUEUE     KV            REQ/S  TOK/S  CACHED  FAILED  REQ/MIN
demo-0    127.0.0.0:8000  ready      2      0    42%  ━━━━━━━━    1.5    120     88%       0       90

MODEL  SERVED BY (READY)  REQ/S  TOK/S  CACHED  TTFT p50/p99  ERRORS  REQ/MIN
demo   demo 1/1             6.0    480     88%     18ms/87ms       3      360

  AGO  REQUEST    TICKET      MODEL  SENT TO  BLOCKS  TOKENS  END
   0s  request-0  40748ad5-0  demo   demo-0     9/10    ~160  complete"""


def test_four_endpoints_at_80_columns():
    assert text(screen(a_snapshot(), width=80, height=20), 80) == AT_80


def test_a_wide_terminal_shows_addresses_and_request_ids():
    shown = a_snapshot(1, decisions=(a_decision(),))

    assert text(screen(shown, width=140, height=30), 140) == AT_140


def test_of_sixty_endpoints_those_in_trouble_and_the_busiest_are_shown_and_the_others_summed_up():
    idle = Traffic()
    rows = [a_row(number, traffic=idle, inflight=0) for number in range(60)]
    rows[7] = a_row(7, state="not ready", traffic=idle, inflight=0)
    rows[30] = a_row(30)
    rows[59] = a_row(59, traffic=Traffic(errors=2))
    lines = text(screen(a_snapshot(endpoints=tuple(rows)), width=80, height=18), 80).splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("demo-")]

    assert len(lines) == 18
    assert {"demo-7", "demo-30", "demo-59"} <= set(listed)
    assert listed == sorted(listed, key=lambda name: int(name.removeprefix("demo-")))
    rest = next(line for line in lines if line.startswith("and "))
    assert rest == f"and {60 - len(listed)} more, {60 - len(listed)} ready: 0 in flight, 0 req/s, 0 tok/s, KV up to 42%"


def test_a_silent_picker_is_told_above_what_it_said_last():
    lines = text(screen(a_snapshot(gateways=(a_gateway(silent_s=12.0),)), width=100, height=30), 100).splitlines()

    assert lines[2] == "! the picker has not answered for 12s: what follows is the last it told"
    assert any(line.startswith("demo-0") for line in lines)


def test_several_gateways_are_named_and_decisions_say_whose_they_are():
    gateways = (a_gateway(1), a_gateway(2, 12.0))
    decisions = (a_decision(0, gateway=2), a_decision(1, gateway=1))
    lines = text(screen(a_snapshot(1, gateways=gateways, decisions=decisions), width=150, height=30), 150).splitlines()

    assert lines[0].startswith(
        "MatrixInfer http://127.0.0.1:8080, :8081  up 3:12  1/1 ready   admin http://127.0.0.1:15000, :15001"
    )
    assert (
        lines[2] == "! the picker of gateway 2 has not answered for 12s: its part of what follows is the last it told"
    )
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["AGO", "GW", "REQUEST"],
        ["0s", "2", "request-0"],
        ["1s", "1", "request-1"],
    ]


def test_of_very_many_gateways_some_are_named():
    gateways = tuple(a_gateway(number) for number in range(1, 10))
    title = text(screen(a_snapshot(gateways=gateways), width=80, height=30), 80).splitlines()[0]

    assert title.startswith("MatrixInfer http://127.0.0.1:8080, :8081, :8082, :8083 and 5 more  up")


def test_more_problems_than_lines_are_counted():
    shown = text(screen(a_snapshot(problems=tuple(f"p{at}" for at in range(9))), width=80, height=40), 80)

    assert shown.count("\n! ") == 3
    assert "! 7 more problems: see /routes of the admin pages" in shown


def test_a_stack_without_anything_says_what_is_missing():
    shown = text(screen(a_snapshot(0, models=(), decisions=()), width=80, height=20), 80)

    assert "no endpoints: no pod of a ModelServer has an address yet" in shown
    assert "no models: no ModelRoute is in use" in shown


names = st.text("abc-日本語", min_size=1, max_size=90)


@st.composite
def snapshots(draw):
    models = draw(st.lists(st.tuples(names, st.integers(0, 9)), max_size=12))
    return a_snapshot(
        draw(st.integers(0, 70)),
        models=tuple(ModelRow(name, (name,), served=bool(at), traffic=Traffic(requests=at)) for name, at in models),
        problems=tuple(draw(st.lists(st.text(max_size=200), max_size=6))),
        decisions=tuple(a_decision(at, request_id="r" * 90, model=draw(st.text())) for at in range(7)),
    )


@given(snapshots(), st.integers(40, 200), st.integers(18, 60))
def test_a_screen_never_outgrows_its_place(shown, width, height):
    lines = text(screen(shown, width=width, height=height), width).split("\n")

    assert len(lines) <= height
    assert all(line.isprintable() for line in lines)
    assert any(line.startswith(("demo-", "ENDPOINT", "no endpoints", "and ", "END")) for line in lines)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (words.number(950), "950"),
        (words.number(12_345), "12.3k"),
        (words.number(4_560_000), "4.56M"),
        (words.rate(0), "0"),
        (words.rate(0.254), "0.25"),
        (words.rate(12.34), "12.3"),
        (words.percent(1, 3), "33%"),
        (words.percent(0, 0), "-"),
        (words.seconds(0.00085), "850us"),
        (words.seconds(0.0042), "4.2ms"),
        (words.seconds(0.346), "346ms"),
        (words.seconds(1.25), "1.2s"),
        (words.seconds(75), "75s"),
        (words.ago(240), "4m"),
        (words.clock(7), "0:07"),
        (words.clock(10801), "3:00:01"),
    ],
)
def test_numbers_are_short(word, expected):
    assert word == expected
