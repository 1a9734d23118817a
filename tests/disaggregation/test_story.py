"""A request's story where prefill and decode are in different pods."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc import errors
from extproc.decisions import described
from extproc.types import Called
from tests.director.stage import a_chat, an_outcome, words
from tests.disaggregation.stage import GROUPS, PARAMS, PREFILLED, Engines, a_stage, tell
from tests.flow.room import RULES

LONG = words(1, 2000)


def a_config(handler=None, decider=None, *, more=()):
    """An EndpointPickerConfig with a profile for each half."""
    deciders = [decider] if decider else []
    named = {"deciders": {"prefill": decider["type"]}} if decider else {}
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"type": "disagg-profile-handler", "parameters": {"prefillLeg": "gateway", **(handler or {}), **named}},
            {"type": "prefill-filter"},
            {"type": "decode-filter"},
            {"type": "prefix-cache-scorer"},
            {"type": "least-request-scorer"},
            *deciders,
            *more,
        ],
        "schedulingProfiles": [
            {
                "name": name,
                "plugins": [
                    {"pluginRef": f"{name}-filter"},
                    {"pluginRef": "prefix-cache-scorer"},
                    {"pluginRef": "least-request-scorer"},
                ],
            }
            for name in ("prefill", "decode")
        ],
    }


def told(stage, decision):
    return described(stage.director.recent[decision.ticket])["prefill"]


def hosts(calls):
    return [call.url.split("/")[2].rpartition(":")[0] for call in calls]


def test_the_prompt_is_computed_by_a_prefill_endpoint_of_the_decode_endpoints_group():
    stage, engines = a_stage(), Engines()
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    (host,) = hosts(engines.calls)
    role, group = GROUPS[host]
    assert role == "prefill"
    assert [GROUPS[one.rpartition(":")[0]] for one in decision.endpoints] == [("decode", group)]
    assert json.loads(decision.body)["kv_transfer_params"] == PARAMS
    assert told(stage, decision)["tries"][0]["result"] == "ok"


def test_while_the_leg_runs_it_counts_at_its_endpoint_and_then_no_more():
    stage = a_stage()
    story = stage.director.decide(a_chat(LONG))
    call = next(story)
    row = stage.table.row(call.url.split("/")[2])

    assert stage.table.inflight[row] == 1
    assert stage.table.inflight_tokens[row] > 1000
    with pytest.raises(StopIteration) as end:
        story.send(PREFILLED)
    decision = end.value.value
    assert stage.table.inflight[row] == 0
    assert stage.table.inflight[stage.table.row(decision.endpoints[0])] == 1
    stage.director.settle(an_outcome(decision))
    assert stage.inflight() == [0, 0, 0, 0]
    assert stage.table.inflight_tokens.sum() == 0


def test_a_client_that_leaves_takes_the_leg_with_it():
    stage = a_stage()
    story = stage.director.decide(a_chat(LONG))
    next(story)
    story.close()

    assert stage.inflight() == [0, 0, 0, 0]
    assert stage.director.prefilling.counts.legs == {"abandoned": 1}
    assert len(stage.ledger) == 0


def test_an_endpoint_that_leaves_while_its_leg_runs_leaves_nothing_behind():
    stage = a_stage()
    story = stage.director.decide(a_chat(LONG))
    address = next(story).url.split("/")[2]
    row = stage.table.remove(address)
    stage.director.endpoint_left(row)
    with pytest.raises(StopIteration):
        story.send(PREFILLED)

    assert stage.table.inflight[row] == 0


@pytest.mark.parametrize("said", [Called(fault="refused"), Called(fault="timeout"), Called(503), Called(500, b"{}")])
def test_a_prefill_endpoint_that_fails_is_followed_by_the_next_of_its_group(said):
    groups = {**GROUPS, "127.0.0.5": ("prefill", "a"), "127.0.0.3": ("decode", "a"), "127.0.0.4": ("decode", "a")}
    stage = a_stage(groups)
    first = []

    def fails_once(call):
        if not first:
            first.append(call)
            return said
        return PREFILLED

    engines = Engines(default=fails_once)
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    assert len(set(hosts(engines.calls))) == 2
    assert [one["result"] for one in told(stage, decision)["tries"]][1] == "ok"
    failed = stage.table.row(first[0].url.split("/")[2])
    assert stage.table.avoid_until[failed] > stage.clock()


def test_when_all_tries_fail_a_decode_endpoint_computes_the_prompt():
    stage = a_stage(document=a_config())
    decision = tell(stage.director.decide(a_chat("hello")), Engines(default=Called(fault="refused")))

    assert decision.body is None
    assert told(stage, decision)["reason"] == "prefill-failed"
    assert stage.director.prefilling.counts.requests == {("none", "prefill-failed"): 1}
    assert {GROUPS[one.rpartition(":")[0]][0] for one in decision.endpoints} == {"decode"}


def test_what_the_engine_says_of_the_request_is_left_to_the_decode_engine_to_say():
    stage, engines = a_stage(), Engines(default=Called(400, b"{}"))
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    assert len(engines.calls) == 1
    assert decision.body is None
    assert not stage.table.avoid_until.any()


def test_without_fallback_the_client_is_told():
    stage = a_stage(document=a_config({"aggregatedFallback": "never"}))

    with pytest.raises(errors.PrefillFailed):
        tell(stage.director.decide(a_chat("hello")), Engines(default=Called(fault="refused")))
    assert stage.inflight() == [0, 0, 0, 0]


def test_sglangs_decode_engines_compute_no_prompts():
    stage = a_stage(connector=None, engine="SGLang")

    with pytest.raises(errors.PrefillFailed):
        tell(stage.director.decide(a_chat("hello")), Engines(default=Called(fault="refused")))


def test_a_pod_with_both_labels_may_do_both():
    groups = {"127.0.0.1": ("prefill", "a"), "127.0.0.2": ("decode", "a")}
    stage = a_stage(groups, connector=None, engine="SGLang")
    labels = {"groupKey": "group", "prefillLabels": {"app": "x"}, "decodeLabels": {"app": "x"}}
    server = stage.director.routes.servers["ns/engines"]
    group = type(server.spec.workload_selector.pd_group).model_validate(labels)
    server.spec.workload_selector.__dict__["pd_group"] = group
    for host in groups:
        endpoint = stage.table.endpoints[stage.table.row(f"{host}:8000")]
        endpoint.labels["app"] = "x"
    decision = tell(stage.director.decide(a_chat("hello")), Engines(default=Called(fault="refused")))

    assert decision.endpoints


def test_no_prefill_endpoint_means_no_leg():
    groups = {host: one for host, one in GROUPS.items() if one[0] == "decode"}
    stage, engines = a_stage(groups), Engines()
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    assert not engines.calls
    assert told(stage, decision)["reason"] == "no-prefill"


def test_no_decode_endpoint_means_no_answer():
    groups = {host: one for host, one in GROUPS.items() if one[0] == "prefill"}

    with pytest.raises(errors.NoEndpoints):
        tell(a_stage(groups).director.decide(a_chat("hello")), Engines())


def test_across_groups_any_pair_will_do():
    groups = {"127.0.0.1": ("prefill", "a"), "127.0.0.2": ("decode", "b")}
    apart = a_stage(groups, document=a_config())
    together = a_stage(groups, document=a_config({"acrossGroups": True}))

    assert told(apart, tell(apart.director.decide(a_chat("hello")), Engines()))["reason"] == "no-prefill"
    assert told(together, tell(together.director.decide(a_chat("hello")), Engines()))["leg"] == "gateway"


def test_the_pair_with_the_better_sum_is_chosen():
    stage, engines = a_stage(document=a_config()), Engines()
    busy = [stage.table.row("127.0.0.1:8000"), stage.table.row("127.0.0.2:8000")]
    stage.table.inflight[busy[0]] = 8  # group a has a busy prefill endpoint; its decode endpoint is a little better
    stage.table.inflight[stage.table.row("127.0.0.4:8000")] = 1
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    assert hosts(engines.calls) == ["127.0.0.3"]
    assert decision.endpoints == ("127.0.0.4:8000",)


def test_uncached_tokens_decide():
    decider = {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": 200}}
    stage, engines = a_stage(document=a_config(decider=decider)), Engines()
    short = tell(stage.director.decide(a_chat("hello")), engines)
    first = tell(stage.director.decide(a_chat(LONG)), engines)
    again = tell(stage.director.decide(a_chat(LONG)), engines)

    assert told(stage, short)["reason"] == "cached"
    assert told(stage, first)["reason"] == "uncached"
    assert told(stage, again)["reason"] == "cached"  # the decode endpoint holds it by now
    assert again.endpoints[0] == first.endpoints[0]


@pytest.mark.parametrize(
    ("decider", "reason"),
    [
        ({"type": "never-disagg-pd-decider"}, "never"),
        ({"type": "prefix-based-pd-decider"}, "off"),
        ({"type": "prompt-length-pd-decider"}, "short-prompt"),
        (
            {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": 1, "promptTokens": 100}},
            "short-prompt",
        ),
    ],
)
def test_a_decider_may_say_no(decider, reason):
    stage, engines = a_stage(document=a_config(decider=decider)), Engines()
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    assert not engines.calls
    assert told(stage, decision) | {"detail": ""} == {"leg": "none", "reason": reason, "detail": ""}


def test_the_proxy_is_told_whom_to_ask_and_the_leg_counts_until_the_request_ends():
    stage, engines = a_stage(document=a_config({"prefillLeg": "proxy"})), Engines()
    decision = tell(stage.director.decide(a_chat(LONG)), engines)
    ((name, value),) = decision.headers

    assert not engines.calls
    assert name == "x-prefiller-host-port"
    row = stage.table.row(value)
    assert stage.table.inflight[row] == 1
    stage.director.settle(an_outcome(decision))
    assert stage.inflight() == [0, 0, 0, 0]


def test_role_labels_count_where_the_handler_disaggregates():
    labels = {"127.0.0.1": {"llm-d.ai/role": "prefill"}, "127.0.0.2": {"llm-d.ai/role": "decode"}}
    groups = {"127.0.0.1": ("x", "a"), "127.0.0.2": ("x", "a"), "127.0.0.3": ("x", "a")}
    stage = a_stage(groups, document=a_config(), labels=labels, pd_group=False)
    engines = Engines()
    decision = tell(stage.director.decide(a_chat("hello")), engines)

    assert hosts(engines.calls) == ["127.0.0.1"]
    assert set(decision.endpoints) <= {"127.0.0.2:8000", "127.0.0.3:8000"}  # an unlabelled pod decodes


def test_both_endpoints_are_known_to_hold_the_prefix():
    stage, engines = a_stage(), Engines()
    decision = tell(stage.director.decide(a_chat(LONG)), engines)
    first = engines.calls[0].url
    for _ in range(3):
        again = tell(stage.director.decide(a_chat(LONG)), engines)
        assert again.endpoints[0] == decision.endpoints[0]
        assert engines.calls[-1].url == first


def test_mooncakes_engine_id_is_asked_for_at_each_request():
    stage = a_stage(connector="mooncake")
    known = Called(200, b'{"0":{"engine_id":"e7","worker_addr":{}}}')
    engines = Engines(default=lambda call: known if call.url.endswith(":8998/query") else Called(200, b"{}"))
    decision = tell(stage.director.decide(a_chat("hello")), engines)
    params = json.loads(decision.body)["kv_transfer_params"]

    assert params["remote_engine_id"] == "e7"
    assert params["transfer_id"] == json.loads(engines.calls[1].body)["kv_transfer_params"]["transfer_id"]


def test_sglangs_legs_run_at_once_and_a_prefill_that_fails_ends_its_decode():
    stage, engines = a_stage(connector=None, engine="SGLang"), Engines(default=Called())
    decision = tell(stage.director.decide(a_chat("hello")), engines)
    (call,) = engines.calls
    row = stage.table.row(call.url.split("/")[2])
    sent = json.loads(decision.body)

    assert json.loads(call.body)["bootstrap_room"] == sent["bootstrap_room"]
    assert stage.table.inflight[row] == 1
    abort = call.ended(Called(fault="broken"))
    assert (abort.url, json.loads(abort.body)) == (
        f"http://{decision.endpoints[0]}/abort_request",
        {"rid": sent["rid"]},
    )
    assert stage.table.inflight[row] == 0


class OnePrompt:
    """A detector: the prefill endpoint, the first, takes one request at once, the decode endpoint nine."""

    def places(self, table, rows, _now):
        return [(9 if row else 1) - table.inflight[row] for row in rows]


def test_the_place_that_sglangs_prefill_leaves_goes_at_once_to_who_waits():
    pair = {host: GROUPS[host] for host in ("127.0.0.1", "127.0.0.2")}
    stage, engines, turns = a_stage(pair, connector=None, engine="SGLang"), Engines(default=Called()), []
    stage.director.gate.use(RULES, OnePrompt())
    tell(stage.director.decide(a_chat("hello")), engines)
    waiting = stage.director.decide(a_chat("hello"))
    next(waiting).then(turns.append)
    assert turns == []

    engines.calls[0].ended(Called(200, b"{}"))

    assert turns == [None]


def test_requests_of_other_apis_are_served_by_decode_endpoints_alone():
    stage, engines = a_stage(), Engines()
    http = a_chat("hello")._replace(
        path="/v1/embeddings", body=json.dumps({"model": "demo", "input": "hello"}).encode()
    )
    decision = tell(stage.director.decide(http), engines)

    assert not engines.calls
    assert told(stage, decision)["reason"] == "api"
    assert {GROUPS[one.rpartition(":")[0]][0] for one in decision.endpoints} == {"decode"}


SAID = st.sampled_from(
    [
        PREFILLED,
        Called(200, b"{}"),
        Called(200, b"<"),
        Called(503),
        Called(400),
        Called(429),
        Called(fault="refused"),
        Called(fault="timeout"),
        Called(fault="too-large"),
        errors.Busy(),
    ]
)


@settings(max_examples=60)
@given(
    said=st.lists(SAID, min_size=1, max_size=4),
    leaves_after=st.none() | st.integers(0, 3),
    connector=st.sampled_from(["http", "nixl", "mooncake", "lmcache"]),
    leg=st.sampled_from(["gateway", "proxy"]),
    end=st.sampled_from([200, 503, 0]),
)
def test_whatever_engines_say_and_whenever_the_client_leaves_no_load_is_left(said, leaves_after, connector, leg, end):
    stage = a_stage(document=a_config({"prefillLeg": leg}), connector=connector)
    story = stage.director.decide(a_chat(LONG))
    decision = None
    try:
        next(story)
        for number, one in enumerate(itertools.cycle(said)):
            if number == leaves_after:
                story.close()
                break
            if isinstance(one, errors.Busy):
                story.throw(errors.Busy())
            else:
                story.send(one)
    except StopIteration as told_:
        decision = told_.value
    if decision is not None:
        stage.director.settle(an_outcome(decision, status=end, flags=() if end else ("DC",)))

    assert stage.inflight() == [0, 0, 0, 0]
    assert stage.table.inflight_tokens.sum() == 0
    assert len(stage.ledger) == 0


def test_an_endpoint_is_not_held_slow_for_the_time_in_which_another_computed_the_prompt():
    learned = []
    for wait_s in (0.0, 3.0):
        stage = a_stage({"127.0.0.1": ("prefill", "a"), "127.0.0.2": ("decode", "a")})
        story = stage.director.decide(a_chat(LONG, stream=True))
        next(story)
        stage.clock.now += wait_s
        with pytest.raises(StopIteration) as end:
            story.send(PREFILLED)
        decision = end.value.value
        outcome = an_outcome(decision)._replace(first_token_s=wait_s + 0.5, duration_s=wait_s + 1.0)
        stage.director.settle(outcome)
        row = stage.table.row("127.0.0.2:8000")
        learned.append([stage.table.view[name][row] for name in ("ttft_samples", "ttft_s", "tpot_samples", "tpot_s")])

    assert learned[0] == learned[1]
    assert learned[0][0] > 0


def test_busy_decode_endpoints_are_told_as_any_others():
    plugins = [{"type": "least-request-filter"}]
    stage = a_stage(document={"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": plugins})
    for host, (role, _group) in GROUPS.items():
        stage.table.waiting[stage.table.row(f"{host}:8000")] = 50 if role == "decode" else 0

    with pytest.raises(errors.Saturated) as refused:
        tell(stage.director.decide(a_chat("hello")), Engines())
    assert refused.value.retry_after_s == 1
    assert stage.inflight() == [0, 0, 0, 0]


def test_busy_prefill_endpoints_are_done_without():
    plugins = [{"type": "least-request-filter"}]
    stage = a_stage(document={"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": plugins})
    for host, (role, _group) in GROUPS.items():
        stage.table.waiting[stage.table.row(f"{host}:8000")] = 50 if role == "prefill" else 0
    decision = tell(stage.director.decide(a_chat("hello")), Engines())

    assert told(stage, decision)["reason"] == "saturated"
