"""A rewritten body differs in what was asked, and in nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.requests import parse, rewrite
from extproc.types import HttpRequest, Usage

CHAT = "/v1/chat/completions"


def a_request(raw, path=CHAT):
    return parse.parse(HttpRequest("POST", path, {}, raw))


def test_the_model_is_replaced_in_place():
    request = a_request(b' { "messages" : [{"model":"x"}] , "model" :  "a\\u0062" ,"n":1.50}')

    body, usage = rewrite.rewritten(request, model='c"d')

    assert body == b' { "messages" : [{"model":"x"}] , "model" :  "c\\"d" ,"n":1.50}'
    assert usage is Usage.AS_IS


def test_the_model_that_counts_is_replaced():
    body, _ = rewrite.rewritten(a_request(b'{"model":"a","messages":[{}],"mod\\u0065l":"b"}'), model="c")

    assert body == b'{"model":"a","messages":[{}],"mod\\u0065l":"c"}'


def test_nothing_asked_changes_nothing():
    assert rewrite.rewritten(a_request(b'{"model":"a","messages":[{}]}'), model=None) == (None, Usage.AS_IS)


@pytest.mark.parametrize(
    ("options", "changed", "usage"),
    [
        ("", '"stream_options":{"include_usage":true,"continuous_usage_stats":true},', Usage.HIDE_ALL),
        (
            '"stream_options": null,',
            '"stream_options": {"include_usage":true,"continuous_usage_stats":true},',
            Usage.HIDE_ALL,
        ),
        (
            '"stream_options": { },',
            '"stream_options": {"include_usage":true,"continuous_usage_stats":true },',
            Usage.HIDE_ALL,
        ),
        (
            '"stream_options": {"include_usage": false, "x":1},',
            '"stream_options": {"continuous_usage_stats":true,"include_usage": true, "x":1},',
            Usage.HIDE_ALL,
        ),
        (
            '"stream_options": {"include_usage": true},',
            '"stream_options": {"continuous_usage_stats":true,"include_usage": true},',
            Usage.HIDE_RUNNING,
        ),
        ('"stream_options": {"include_usage": true, "continuous_usage_stats": true},', None, Usage.AS_IS),
    ],
)
def test_usage_is_asked_of_a_stream(options, changed, usage):
    raw = f'{{{options}"model":"a","messages":[{{}}],"stream":true}}'.encode()

    body, what = rewrite.rewritten(a_request(raw), model=None)

    assert what is usage
    assert body == (changed and f'{{{changed}"model":"a","messages":[{{}}],"stream":true}}'.encode())


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_protocols_that_always_tell_usage_are_left_alone(path):
    raw = b'{"model":"a","messages":[{}],"input":"x","stream":true}'

    assert rewrite.rewritten(a_request(raw, path), model=None) == (None, Usage.AS_IS)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", '"messages":[{}],"n":2'), ("/v1/completions", '"prompt":["a","b"]')],
)
def test_several_choices_tell_their_usage_at_the_end(path, body):
    raw = f'{{"model":"a",{body},"stream":true}}'.encode()

    made, hidden = rewrite.rewritten(a_request(raw, path), model=None)

    assert json.loads(made)["stream_options"] == {"include_usage": True}
    assert hidden is Usage.HIDE_ALL


def test_usage_is_not_asked_where_it_is_switched_off():
    raw = b'{"model":"a","messages":[{}],"stream":true}'

    assert rewrite.rewritten(a_request(raw), model=None, usage=False) == (None, Usage.AS_IS)


NAMES = st.text('abé你\\"/{}[]:, \n', min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.none() | st.dictionaries(
    st.sampled_from(["include_usage", "continuous_usage_stats", "extra"]), st.booleans(), max_size=3
)


@given(
    extra=st.dictionaries(NAMES, VALUES, max_size=4),
    options=st.one_of(st.just("absent"), OPTIONS),
    model=NAMES,
    other=st.none() | NAMES,
    stream=st.booleans(),
    order=st.randoms(use_true_random=False),
    form=st.fixed_dictionaries({"indent": st.sampled_from([None, 0, 2]), "ensure_ascii": st.booleans()}),
)
def test_only_what_was_asked_differs(*, extra, options, model, other, stream, order, form):
    fields = {**extra, "model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    if options != "absent":
        fields["stream_options"] = options
    items = list(fields.items())
    order.shuffle(items)
    raw = json.dumps(dict(items), **form).encode()
    try:
        request = a_request(raw)
    except errors.Rejection:  # a generated key met one that is checked
        return

    body, usage = rewrite.rewritten(request, model=other)

    expected = json.loads(raw)
    if other is not None:
        expected["model"] = other
    if stream:
        expected["stream_options"] = {
            **(expected.get("stream_options") or {}),
            "include_usage": True,
            "continuous_usage_stats": True,
        }
    assert json.loads(body if body is not None else raw) == expected
    assert usage is Usage.AS_IS or stream


@given(
    extra=st.dictionaries(NAMES, st.integers(), max_size=3),
    options=st.dictionaries(st.sampled_from(["include_usage", "x"]), st.booleans()),
)
def test_the_wish_for_usage_so_far_is_taken_back_and_nothing_else(extra, options):
    fields = {**extra, "model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    raw = json.dumps({**fields, "stream_options": options}).encode()
    body, _ = rewrite.rewritten(a_request(raw), model=None)

    back = rewrite.without_running(body)

    assert json.loads(back) == {**fields, "stream_options": {**options, "include_usage": True}}
    assert rewrite.without_running(back) is back


@pytest.mark.parametrize("options", [None, {}, {"include_usage": True}])
def test_a_body_without_that_wish_is_left_alone(options):
    body = json.dumps({"model": "m", "stream_options": options}).encode()

    assert rewrite.without_running(body) is body
    assert rewrite.without_running(b'{"model":"m"}') == b'{"model":"m"}'
