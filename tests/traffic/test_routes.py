"""Which ModelServer a request reaches."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.traffic import listing, routes, targets
from extproc.types import Api, InferenceRequest
from matrixinfer.api import networking


def a_request(model="demo", path="/v1/chat/completions", **headers):
    return InferenceRequest(
        id="r",
        api=Api.CHAT,
        path=path,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        model=model,
        stream=False,
        prefix=b"",
        prompt_tokens=1,
        max_tokens=None,
        wants_usage=False,
        cache_salt="",
        body=b"",
    )


def a_target(server="a", weight=100):
    return {"modelServerName": server, "weight": weight}


def a_route(name="r", *targets, model="demo", created="2026-01-01T00:00:00Z", rules=None, **spec):
    rules = rules or [{"targetModels": list(targets) or [a_target()]}]
    return networking.ModelRoute.model_validate(
        {
            "metadata": {"namespace": "ns", "name": name, "creationTimestamp": created},
            "spec": {"modelName": model, "rules": rules, **spec},
        }
    )


def a_server(name="a", model=None):
    spec = {
        "inferenceEngine": "vLLM",
        "workloadSelector": {"matchLabels": {"app": name}},
        "workloadPort": {"port": 8000},
    }
    if model:
        spec["model"] = model
    return networking.ModelServer.model_validate({"metadata": {"namespace": "ns", "name": name}, "spec": spec})


def a_table(*made, servers=("a", "b", "c")):
    return routes.RouteTable.build(
        made, [server if isinstance(server, networking.ModelServer) else a_server(server) for server in servers]
    )


def resolved(table, request=None, draw=0.0, ready=("ns/a", "ns/b", "ns/c")):
    return table.resolve(request or a_request(), draw=draw, has_endpoints=lambda server: server in ready)


def test_the_model_names_the_route():
    table = a_table(a_route("r"), a_route("s", a_target("b"), model="other"))

    assert resolved(table) == routes.Placement("ns/r", "", "ns/a", "demo")
    assert resolved(table, a_request("other")).server == "ns/b"


@pytest.mark.parametrize(
    ("user_type", "server"), [("premium", "ns/b"), (None, "ns/a"), ("", "ns/a"), ("basic", "ns/a")]
)
def test_the_first_rule_that_fits_decides(user_type, server):
    rules = [
        {
            "name": "premium",
            "modelMatch": {"headers": {"User-Type": {"exact": "premium"}}},
            "targetModels": [a_target("b")],
        },
        {"targetModels": [a_target("a")]},
    ]
    headers = {} if user_type is None else {"user_type": user_type}

    assert resolved(a_table(a_route(rules=rules)), a_request(**headers)).server == server


@pytest.mark.parametrize(
    ("match", "request_", "fits"),
    [
        ({"headers": {"x": {"prefix": "ab"}, "y": {"regex": "^c+$"}}}, a_request(x="abc", y="cc"), True),
        ({"headers": {"x": {"prefix": "ab"}, "y": {"regex": "^c+$"}}}, a_request(x="abc", y="cd"), False),
        ({"headers": {"x": {"regex": "b"}}}, a_request(x="abc"), True),
        ({"headers": {"x": {}}}, a_request(), True),
        ({"uri": {"exact": "/v1/completions"}}, a_request(path="/v1/completions"), True),
        ({"uri": {"prefix": "/v1/completions"}}, a_request(path="/v1/chat/completions"), False),
        ({"body": {"model": "demo"}}, a_request(), True),
        ({"body": {"model": "demo"}}, a_request("adapter"), False),
    ],
)
def test_all_conditions_must_hold(match, request_, fits):
    table = a_table(a_route(rules=[{"modelMatch": match, "targetModels": [a_target()]}], loraAdapters=["adapter"]))
    if fits:
        assert resolved(table, request_).server == "ns/a"
    else:
        with pytest.raises(errors.UnknownModel, match="no rule"):
            resolved(table, request_)


def test_weights_share_the_requests():
    table = a_table(a_route("r", a_target("a", 50), a_target("b", 30)))

    shares = Counter(resolved(table, draw=step / 800).server for step in range(800))

    assert shares == {"ns/a": 500, "ns/b": 300}


def test_a_target_without_endpoints_is_replaced_by_another():
    table = a_table(a_route("r", a_target("a", 98), a_target("b", 1), a_target("c", 1)))

    shares = Counter(resolved(table, draw=step / 1000, ready=("ns/b", "ns/c")).server for step in range(1000))

    assert set(shares) == {"ns/b", "ns/c"}
    assert abs(shares["ns/b"] - shares["ns/c"]) < 30


def test_weight_zero_gets_nothing_even_when_nothing_else_is_there():
    table = a_table(a_route("r", a_target("a", 100), a_target("b", 0)))

    with pytest.raises(errors.NoEndpoints) as caught:
        resolved(table, ready=("ns/b",))

    assert caught.value.retry_after_s


def test_the_oldest_route_of_a_name_wins_and_the_next_is_its_fallback():
    young = a_route("young", a_target("b"), created="2026-01-02T00:00:00Z")
    old = a_route("old", a_target("a"), created="2026-01-01T00:00:00Z")

    assert resolved(a_table(young, old)).route == "ns/old"
    assert resolved(a_table(young, old), ready=("ns/b",)).route == "ns/young"
    assert resolved(a_table(young)).route == "ns/young"


def test_routes_of_one_age_are_tried_by_name():
    assert resolved(a_table(a_route("b", a_target("b")), a_route("a", a_target("a")))).route == "ns/a"


def test_the_server_names_the_model_of_a_base_route_and_not_of_an_adapter():
    table = a_table(a_route("r", loraAdapters=["adapter"]), servers=[a_server("a", model="org/demo-7b")])

    assert resolved(table).model == "org/demo-7b"
    assert resolved(table, a_request("adapter")) == routes.Placement("ns/r", "", "ns/a", "adapter", adapter=True)


def test_a_base_route_goes_before_an_adapter_of_the_same_name():
    table = a_table(
        a_route("adapters", a_target("b"), model="", loraAdapters=["demo"], created="2025-01-01T00:00:00Z"),
        a_route("base", a_target("a")),
    )

    assert resolved(table).route == "ns/base"
    assert resolved(table, ready=("ns/b",)).route == "ns/adapters"


def test_an_unknown_model_is_told_where_to_look():
    with pytest.raises(errors.UnknownModel, match="GET /v1/models") as caught:
        resolved(a_table(a_route()), a_request("x" * 5000))

    assert caught.value.param == "model"
    assert len(caught.value.message) < 400


def test_a_missing_server_is_named():
    with pytest.raises(errors.NoEndpoints, match="ModelServer ns/a does not exist"):
        resolved(a_table(a_route(), servers=()))


def test_a_route_for_other_gateways_is_not_served_here():
    table = a_table(a_route("r", parentRefs=[{"name": "elsewhere"}]))

    assert "parentRefs" in table.skipped["ns/r"]
    assert table.models() == []
    with pytest.raises(errors.UnknownModel):
        resolved(table)


def test_models_and_adapters_are_listed():
    table = a_table(a_route("r", loraAdapters=["z", "adapter"]), a_route("s", model="", loraAdapters=["only"]))

    listed = table.models()

    assert [(each.name, each.parent) for each in listed] == [
        ("adapter", "demo"),
        ("demo", None),
        ("only", None),
        ("z", "demo"),
    ]
    assert listing.entry(listed[1])["created"] == 1767225600
    assert listing.entry(listed[1])["created_at"] == "2026-01-01T00:00:00Z"


@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=6).filter(any),
    st.floats(0, 1, exclude_max=True),
    st.sets(st.integers(0, 5)),
)
def test_a_target_is_found_whenever_one_of_some_weight_is_ready(weights, draw, ready):
    found = [networking.TargetModel(model_server_name=f"s{i}", weight=weight) for i, weight in enumerate(weights)]
    able = [f"s{i}" for i, weight in enumerate(weights) if weight and i in ready]

    order = [target.model_server_name for target in targets.drawn(found, draw)]

    assert sorted(order) == sorted(f"s{i}" for i, weight in enumerate(weights) if weight)
    assert bool(able) == any(name in able for name in order)
