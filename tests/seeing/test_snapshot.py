import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cli import pages
from matrixinfer.cli.view.snapshot import Seen, kept, snapshot
from tests.seeing.builders import a_gateway, a_look, an_endpoint


def shown(*looks, silent_s=None):
    return snapshot([Seen(a_gateway(silent_s=silent_s), looks)], up_s=1.0)


def together(*gateways):
    """What several gateways' looks say together; a number of seconds before them: their picker is silent for so long."""
    seen = []
    for number, looks in enumerate(gateways, 1):
        silent_s = looks[0] if isinstance(looks[0], float) else None
        seen.append(Seen(a_gateway(number, silent_s), looks[silent_s is not None :]))
    return snapshot(seen, up_s=1.0)


def requests(count, *, model="demo", reason="complete", status=200):
    return f'matrixinfer_requests_total{{model="{model}",reason="{reason}",status="{status}"}} {count}\n'


def test_rates_are_those_of_the_last_ten_seconds_and_shares_those_of_the_last_minute():
    tokens = 'matrixinfer_tokens_total{{model="demo",type="{}"}} {}\n'
    cached = 'matrixinfer_cached_tokens_total{{model="demo"}} {}\n'
    looks = [
        a_look(0, requests(0)),
        a_look(50, requests(100) + tokens.format("input", 1000) + tokens.format("output", 50) + cached.format(900)),
        a_look(60, requests(130) + tokens.format("input", 2000) + tokens.format("output", 250) + cached.format(1000)),
    ]
    total = shown(*looks).total

    assert (total.requests_s, total.input_s, total.output_s) == (3, 100, 20)
    assert (total.requests, total.prompt, total.cached) == (130, 2000, 1000)


def test_refused_failed_and_expired_requests_are_errors_and_clients_that_left_are_not():
    ended = (
        requests(5)
        + requests(2, reason="client-gone", status=0)
        + requests(1, reason="failed", status=503)
        + requests(1, reason="expired", status=0)
        + requests(1, model="unknown", reason="unknown-model", status=404)
    )
    found = shown(a_look(0), a_look(5, ended))

    assert found.total.errors == 3
    assert found.total.requests == 10
    assert {row.name: row.traffic.errors for row in found.models} == {"demo": 2, "unknown": 1}


def test_time_to_first_token_is_told_of_each_model_and_of_all():
    bucket = 'matrixinfer_time_to_first_token_seconds_bucket{{le="{}",model="{}"}} {}\n'
    fast = "".join(bucket.format(le, "demo", 10) for le in (0.1, 0.2, "+Inf"))
    slow = bucket.format(0.1, "slow", 0) + bucket.format(0.2, "slow", 10) + bucket.format("+Inf", "slow", 10)
    found = shown(a_look(0), a_look(5, fast + slow, routes=pages.Routes(("demo", "slow"))))

    assert [row.traffic.ttft_p50_s for row in found.models] == [pytest.approx(0.05), pytest.approx(0.15)]
    assert found.total.ttft_p50_s == pytest.approx(0.1)


def test_endpoints_have_their_state_their_load_and_their_share():
    metrics = (
        'matrixinfer_endpoint_requests_total{endpoint="127.0.0.1:8000"} 20\n'
        'matrixinfer_endpoint_tokens_total{endpoint="127.0.0.1:8000",type="input"} 100\n'
        'matrixinfer_endpoint_tokens_total{endpoint="127.0.0.1:8000",type="cached"} 25\n'
        'matrixinfer_endpoint_failures_total{endpoint="127.0.0.1:8000"} 2\n'
    )
    endpoints = (
        an_endpoint(10, ready=False, scraped_s_ago=None),
        an_endpoint(2, avoided_for_s=2.6),
        an_endpoint(1, inflight=3, waiting=1, kv_usage=0.5),
    )
    first, second, third = shown(a_look(0), a_look(10, metrics, endpoints=endpoints)).endpoints

    assert (first.pod, first.state, first.inflight, first.waiting, first.kv_usage) == ("demo-1", "ready", 3, 1, 0.5)
    assert (first.traffic.requests_s, first.traffic.errors) == (2, 2)
    assert (first.traffic.cached, first.traffic.prompt) == (25, 100)
    assert (second.pod, second.state) == ("demo-2", "avoided 3s")
    assert (third.pod, third.state, third.waiting, third.kv_usage) == ("demo-10", "not ready", None, None)


def test_pods_of_several_namespaces_keep_them():
    endpoints = (an_endpoint(1), an_endpoint(2, pod="other/demo-2"))

    assert [row.pod for row in shown(a_look(endpoints=endpoints)).endpoints] == ["default/demo-1", "other/demo-2"]


def test_models_name_their_servers_and_who_of_them_is_ready():
    rule = pages.Rule((pages.Target("big"), pages.Target("small")))
    routes = pages.Routes(
        ("demo", "sql"),
        (pages.Route("default/demo", pages.RouteSpec("demo", ("sql",), (rule,))),),
        servers={"default/big": pages.Server(("a", "b"), 1), "default/small": pages.Server(("c",), 0)},
    )
    found = shown(a_look(routes=routes)).models

    assert [(row.name, row.targets, row.served) for row in found] == [
        ("demo", ("big 1/2", "small 0/1"), True),
        ("sql", ("big 1/2", "small 0/1"), True),
    ]


def test_decisions_and_refusals_are_one_list_newest_first():
    line = pages.Line("t-1", "r-1", 2.0, "demo", "default/demo", "127.0.0.1:8000", 10, "1/2", "open")
    refusal = pages.Refusal("r-2", 1.0, "nope", "/v1/completions", 404, "unknown-model", "no such model")
    found = shown(a_look(endpoints=(an_endpoint(1),), decisions=(line,), refusals=(refusal,))).decisions

    assert [(row.request_id, row.pod, row.end) for row in found] == [
        ("r-2", "", "404 unknown-model"),
        ("r-1", "demo-1", "open"),
    ]


def test_what_limits_the_trust_is_told():
    now = a_look(
        10,
        "matrixinfer_feed_connected 0\nmatrixinfer_config_problem 1\nmatrixinfer_bypassed_total 4\n"
        'matrixinfer_ledger_total{event="expired"} 2\n'
        'matrixinfer_resource_conditions_unmet{condition="Programmed",kind="ModelRoute"} 1\n',
        routes=pages.Routes((), skipped={"ns/r": "no Gateway"}, problems={"ModelServer ns/s": "spec: wrong"}),
    )
    problems = shown(a_look(0), now).problems

    assert len(problems) == 7
    assert "does not hear the cluster" in problems[0]
    assert "ModelServer ns/s: spec: wrong" in problems
    assert "ModelRoute ns/r is not served: no Gateway" in problems
    assert "4 requests in the last minute went past the picker" in problems
    assert "2 requests in the last minute were given up: no record of their end came" in problems
    assert shown(a_look(0)).problems == ()


def test_a_picker_that_started_again_makes_no_negative_rates():
    total = shown(a_look(0, requests(100)), a_look(10, requests(20))).total

    assert total.requests_s == 2


def test_looks_of_the_last_minute_are_kept_and_one_before_them():
    looks = [a_look(at) for at in range(0, 100, 10)]

    assert [look.at for look in kept(looks, 90)] == [20, 30, 40, 50, 60, 70, 80, 90]


def test_before_the_first_answer_there_is_a_snapshot_too():
    found = shown(silent_s=3.0)

    assert (found.gateways[0].silent_s, found.endpoints) == (3.0, ())


def test_what_several_gateways_count_is_added_up():
    bucket = 'matrixinfer_time_to_first_token_seconds_bucket{{le="{}",model="demo"}} {}\n'
    tokens = 'matrixinfer_tokens_total{{model="demo",type="{}"}} {}\n'
    cached = 'matrixinfer_cached_tokens_total{{model="demo"}} {}\n'

    def counted(count, *, fast):
        times = bucket.format(0.1, fast) + bucket.format(0.2, 10) + bucket.format("+Inf", 10)
        output = tokens.format("input", count * 10) + tokens.format("output", count * 5) + cached.format(count * 4)
        return requests(count) + requests(1, reason="failed", status=503) + times + output

    found = together(
        [a_look(0), a_look(10, counted(100, fast=10))], [a_look(2), a_look(7, counted(20, fast=0), endpoints=())]
    )

    assert (found.total.requests_s, found.total.output_s) == (101 / 10 + 21 / 5, 500 / 10 + 100 / 5)
    assert (found.total.requests, found.total.errors, found.served) == (122, 2, 122)
    assert (found.total.cached, found.total.prompt) == (480, 1200)
    assert (found.total.ttft_p50_s, found.total.ttft_p99_s) == (pytest.approx(0.1), pytest.approx(0.198))
    assert [(row.name, row.traffic.requests) for row in found.models] == [("demo", 122)]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(1, 4))
def test_it_does_not_matter_which_gateway_counted(counts, gateways):
    parts = [counts[at::gateways] for at in range(gateways)]
    several = together(*([a_look(0), a_look(10, requests(sum(part)))] for part in parts))
    one = shown(a_look(0), a_look(10, requests(sum(counts))))

    assert (several.served, several.total.requests) == (one.served, one.total.requests) == (sum(counts), sum(counts))
    assert several.total.requests_s == pytest.approx(one.total.requests_s)


def test_a_picker_of_several_that_started_again_makes_no_negative_rates():
    found = together([a_look(0, requests(100)), a_look(10, requests(20))], [a_look(0), a_look(10, requests(30))])

    assert found.total.requests_s == 5


def test_an_endpoint_of_several_gateways_is_one_row():
    sent = 'matrixinfer_endpoint_requests_total{endpoint="127.0.0.1:8000"} 20\n'
    first = an_endpoint(1, inflight=2, waiting=7, kv_usage=0.7, scraped_s_ago=0.9)
    second = an_endpoint(1, inflight=3, waiting=1, kv_usage=0.1, scraped_s_ago=0.2, avoided_for_s=4.0)
    found = together(
        [a_look(0), a_look(10, sent, endpoints=(first, an_endpoint(2)))],
        [a_look(0), a_look(10, sent, endpoints=(second,))],
    )

    row, other = found.endpoints
    assert (row.address, other.address) == ("127.0.0.1:8000", "127.0.0.2:8000")
    assert (row.inflight, row.state, row.traffic.requests_s) == (5, "avoided 4s", 4)
    assert (row.waiting, row.kv_usage) == (1, 0.1)
    assert found.inflight == 5


def test_what_a_silent_picker_told_of_endpoints_that_are_gone_is_not_shown():
    stale = a_look(3, endpoints=(an_endpoint(1, inflight=1, waiting=9, scraped_s_ago=0.1), an_endpoint(2)))
    fresh = a_look(10, endpoints=(an_endpoint(1, inflight=2, waiting=0, scraped_s_ago=0.5),))
    found = together([7.0, stale], [fresh])

    assert [(row.pod, row.inflight, row.waiting) for row in found.endpoints] == [("demo-1", 3, 0)]
    assert [one.silent_s for one in found.gateways] == [7.0, None]
    assert [row.pod for row in together([7.0, stale], [2.0]).endpoints] == ["demo-1", "demo-2"]


def test_decisions_and_refusals_of_all_gateways_are_one_list_that_says_whose_they_are():
    def line(request_id, s_ago):
        return pages.Line("t", request_id, s_ago, "demo", "default/demo", "127.0.0.1:8000", 10, "1/2", "open")

    refusal = pages.Refusal("r-3", 2.0, "nope", "/v1/completions", 404, "unknown-model", "no such model")
    found = together(
        [a_look(10, decisions=(line("r-1", 1.0), line("r-4", 6.0)))],
        [7.0, a_look(8, decisions=(line("r-2", 1.5),), refusals=(refusal,))],
    )

    told = [(row.request_id, row.gateway, row.s_ago) for row in found.decisions]
    assert told == [("r-1", 1, 1.0), ("r-2", 2, 3.5), ("r-3", 2, 4.0), ("r-4", 1, 6.0)]


def test_problems_of_a_picker_say_whose_and_those_of_resources_are_told_once():
    routes = pages.Routes((), problems={"ModelServer ns/s": "spec: wrong"})
    deaf = "matrixinfer_feed_connected 0\nmatrixinfer_bypassed_total 3\n"
    found = together([a_look(0), a_look(9, routes=routes)], [a_look(0), a_look(9, deaf, routes=routes)])

    assert found.problems == (
        "gateway 2: the picker does not hear the cluster: it works with what it knew last",
        "ModelServer ns/s: spec: wrong",
        "3 requests in the last minute went past the picker",
    )
