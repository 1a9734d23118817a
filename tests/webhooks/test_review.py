"""What the API server is answered: all problems at once, and never what would lock somebody out."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.webhooks import review
from tests.webhooks.builders import a_review, a_route, a_server, an_infer


def response(body):
    return review.answer(body)[0]["response"]


def faults(answered):
    return [
        (cause["field"], cause["message"]) for cause in answered.get("status", {}).get("details", {}).get("causes", ())
    ]


@pytest.mark.parametrize("manifest", [a_server(), a_route(), an_infer()], ids=lambda one: one["kind"])
def test_what_is_valid_is_allowed_without_a_word(manifest):
    assert response(a_review(manifest)) == {"uid": "u-1", "allowed": True}


def test_all_problems_come_in_one_answer_with_their_fields():
    wrong = a_server(inferenceEngine="TGI", workloadPort={"port": 0}, unknown=1)
    answered = response(a_review(wrong))

    assert not answered["allowed"]
    assert answered["status"]["code"] == 422
    assert {field for field, _ in faults(answered)} == {
        "spec.inferenceEngine",
        "spec.workloadPort.port",
        "spec.unknown",
    }
    for field, message in faults(answered):
        assert f"{field}: {message}" in answered["status"]["message"]


def test_what_the_schema_cannot_say_is_refused():
    lookahead = a_route(rules=[{"modelMatch": {"uri": {"regex": "(?=a)"}}, "targetModels": [{"modelServerName": "x"}]}])
    twice = a_route(loraAdapters=["a", "a"])

    assert "RE2" in faults(response(a_review(lookahead)))[0][1]
    assert faults(response(a_review(twice))) == [("spec.loraAdapters", "must not name the same adapter twice")]


def test_a_field_that_cannot_change_is_refused():
    answered = response(a_review(a_route(modelName="next"), a_route(modelName="demo")))

    assert [field for field, _ in faults(answered)] == ["spec.modelName"]


def test_a_fault_of_before_may_stay_and_is_said():
    old = a_route(loraAdapters=["a", "a"])
    new = copy.deepcopy(old)
    new["metadata"]["labels"] = {"team": "blue"}
    new["spec"]["rules"][0]["targetModels"][0]["weight"] = 50
    answered = response(a_review(new, old))

    assert answered["allowed"]
    assert answered["warnings"] == [
        "was wrong before and still is: spec.loraAdapters: must not name the same adapter twice"
    ]


def test_a_fault_that_moved_in_its_list_is_the_one_of_before():
    bad = {"modelMatch": {"uri": {"regex": "(?=a)"}}, "targetModels": [{"modelServerName": "x"}]}
    good = {"modelMatch": {"uri": {"prefix": "/a"}}, "targetModels": [{"modelServerName": "x"}]}

    assert response(a_review(a_route(rules=[good, bad]), a_route(rules=[bad])))["allowed"]
    assert not response(a_review(a_route(rules=[bad, bad]), a_route(rules=[bad])))["allowed"]


def test_a_second_fault_beside_one_of_before_is_refused():
    answered = response(a_review(a_server(workloadPort={"port": 0}, model=5), a_server(workloadPort={"port": 0})))

    assert [field for field, _ in faults(answered)] == ["spec.model"]


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "DELETE", "object": None},
        {"subResource": "status"},
        {"subResource": "scale"},
        {"operation": "CONNECT"},
    ],
    ids=str,
)
def test_nobody_is_kept_from_deleting_scaling_or_saying_how_it_goes(request_):
    assert response(a_review(a_server(workloadPort={"port": 0}), a_server(), **request_)) == {
        "uid": "u-1",
        "allowed": True,
    }


def test_an_object_on_its_way_out_may_lose_its_finalizers():
    old = a_server(workloadPort={"port": 0})
    old["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/x"]}
    new = copy.deepcopy(old) | {"spec": {}}
    new["metadata"]["finalizers"] = []

    assert response(a_review(new, old))["allowed"]


def test_kinds_of_others_are_let_through_with_a_word():
    answered = response(a_review({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}))

    assert answered["allowed"]
    assert "Deployment of apps/v1" in answered["warnings"][0]


@pytest.mark.parametrize(
    ("manifest", "warning"),
    [
        (a_server(kvConnector={"type": "nixl"}), "spec.kvConnector: has no effect"),
        (a_route(parentRefs=[{"name": "public"}]), "spec.parentRefs"),
        (
            a_route(
                rules=[
                    {"targetModels": [{"modelServerName": "a"}]},
                    {"modelMatch": {"uri": {"prefix": "/b"}}, "targetModels": [{"modelServerName": "b"}]},
                ]
            ),
            "spec.rules[1]: is never reached",
        ),
        (
            a_route(rules=[{"targetModels": [{"modelServerName": "a"}, {"modelServerName": "b", "weight": 0}]}]),
            "spec.rules[0].targetModels[1].weight: 0 takes no requests",
        ),
        (a_route(rules=[{"targetModels": [{"externalModelProviderName": "openai"}]}]), "external providers"),
        (an_infer(revisionHistoryLimit=0), "spec.revisionHistoryLimit"),
        (
            an_infer(replicas=2, rolloutStrategy={"rollingUpdateConfiguration": {"partition": "100%"}}),
            "keeps all 2 groups",
        ),
    ],
)
def test_what_is_hardly_meant_is_allowed_and_said(manifest, warning):
    answered = response(a_review(manifest))

    assert answered["allowed"], answered
    assert any(warning in one for one in answered["warnings"])


def test_the_older_form_of_gangs_is_said():
    manifest = an_infer()
    manifest["spec"]["template"]["gangSchedule"] = {"minRoleReplicas": {}}

    assert "is the older form" in response(a_review(manifest))["warnings"][0]


def test_warnings_are_as_short_as_the_api_server_wants_them():
    answered = response(a_review({"apiVersion": "x" * 500, "kind": "y" * 500}))

    assert [len(one) for one in answered["warnings"]] == [256]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "must be an AdmissionReview"),
        ([], "must be an AdmissionReview"),
        ({"kind": "Pod"}, "must be an AdmissionReview"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}, "admissionReviewVersions"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}, "a request with a uid"),
        ({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": 1}}, "with a uid"),
    ],
)
def test_what_is_no_review_is_named(body, message):
    with pytest.raises(review.NotAReview, match=message):
        review.answer(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.builds(
    lambda kind, metadata, spec: {
        "apiVersion": kind["apiVersion"],
        "kind": kind["kind"],
        "metadata": metadata,
        "spec": spec,
    },
    st.sampled_from([a_server(), a_route(), an_infer()]),
    JSON,
    JSON,
)


@given(OBJECTS | JSON, OBJECTS | JSON | st.none(), st.sampled_from(["CREATE", "UPDATE", "DELETE", ""]))
def test_any_object_gets_an_answer(new, old, operation):
    answered = response(a_review(new, old, operation=operation))

    assert answered["uid"] == "u-1"
    assert answered["allowed"] == ("status" not in answered)


@given(OBJECTS)
def test_an_object_may_always_be_stored_again_as_it_is(manifest):
    assert response(a_review(manifest, copy.deepcopy(manifest)))["allowed"]
