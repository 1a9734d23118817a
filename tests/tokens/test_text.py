from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extproc.tokens.text import TextBlocks, message_ends
from extproc.types import Api, InferenceRequest


def a_request(prefix, *, salt=""):
    return InferenceRequest(
        id="1",
        api=Api.CHAT,
        path="/v1/chat/completions",
        headers={},
        model="demo",
        stream=False,
        prefix=prefix,
        prompt_tokens=1,
        max_tokens=None,
        wants_usage=False,
        cache_salt=salt,
        body=b"",
    )


def messages(*contents):
    return json.dumps([{"role": "user", "content": one} for one in contents]).encode().removesuffix(b"]")


def test_only_full_blocks_of_text_count():
    sizes = {size: len(TextBlocks().chain(a_request(b"x" * size), "demo")) for size in (0, 63, 64, 127, 128)}

    assert sizes == {0: 0, 63: 0, 64: 1, 127: 1, 128: 2}


def test_a_message_ends_its_last_block_however_short():
    assert len(TextBlocks().chain(a_request(messages("hi")), "demo")) == 1
    assert len(TextBlocks().chain(a_request(messages("hi", "x" * 100)), "demo")) == 4


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("order", [("role", "content"), ("content", "role")])
def test_messages_are_told_apart_however_the_json_is_written(separators, indent, order):
    turns = [{"role": "system", "content": "a" * 80}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    ordered = [{key: turn[key] for key in order} for turn in turns]
    prefix = json.dumps(ordered, separators=separators, indent=indent).encode().rstrip(b"] \n")

    first, last = message_ends(prefix)

    assert prefix[:first].endswith(b"}")
    assert prefix[first:].lstrip(b", \n").startswith(b"{")
    assert last == len(prefix)


@given(
    st.lists(st.sampled_from([b'"role"', b"}", b"{", b",", b" ", b"]", b"x" * 70, b'{"role": "a"}, {']), max_size=30)
)
def test_ends_never_go_back(parts):
    prefix = b"".join(parts)

    ends = message_ends(prefix)

    assert ends == sorted(ends)
    assert ends == [] or ends[-1] == len(prefix)


def test_text_about_messages_is_no_message():
    quoted = json.dumps([{"role": "user", "content": json.dumps([{"role": "x"}, {"role": "y"}])}]).encode()[:-1]

    assert message_ends(quoted) == [len(quoted)]
    assert message_ends(b'"role" is a word') == [16]
    assert message_ends(b"role") == []


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5), st.lists(st.text(max_size=200), min_size=1, max_size=3))
def test_the_next_turn_begins_with_the_whole_chain_of_the_one_before(before, after):
    one = TextBlocks().chain(a_request(messages(*before)), "demo")
    more = TextBlocks().chain(a_request(messages(*before, *after)), "demo")

    assert more[: len(one)] == one
    assert len(more) > len(one)


@given(st.text(max_size=300), st.text(max_size=300))
def test_conversations_that_differ_in_a_word_differ_in_a_block(one, other):
    left, right = (TextBlocks().chain(a_request(messages("system", text)), "demo") for text in (one, other))

    assert (left[-1] == right[-1]) == (one == other)


def test_equal_blocks_at_different_places_have_different_hashes():
    chain = TextBlocks().chain(a_request(b"x" * 640), "demo")

    assert len(set(chain)) == 10


def test_chains_are_cut_at_the_bound():
    assert len(TextBlocks(max_blocks=3).chain(a_request(b"x" * 1000), "demo")) == 3
    assert len(TextBlocks(max_blocks=3).chain(a_request(messages("x", "y", "z", "w")), "demo")) == 3


def test_the_hashes_do_not_change_between_releases():  # pickers that share what they learned must agree
    assert TextBlocks(block_bytes=4).chain(a_request(b"abcdefghi"), "demo") == [
        7577922678375799374,
        5829023849235964547,
    ]


def test_models_adapters_and_salts_have_chains_of_their_own():
    prefix = b"x" * 64
    chains = [
        TextBlocks().chain(a_request(prefix), "demo"),
        TextBlocks().chain(a_request(prefix), "demo-lora"),
        TextBlocks().chain(a_request(prefix, salt="tenant"), "demo"),
        TextBlocks().chain(a_request(prefix, salt="demo"), "tenant"),
    ]

    assert len({chain[0] for chain in chains}) == 4


def test_a_lone_surrogate_in_a_salt_is_no_obstacle():
    assert len(TextBlocks().chain(a_request(b"x" * 64, salt="\ud800"), "demo\udfff")) == 1


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400), st.integers(1, 80))
def test_chains_of_text_agree_exactly_as_far_as_the_full_blocks_do(head, one, other, size):
    assume(b'"role"' not in head + one + b" " + head + other)
    blocks = TextBlocks(block_bytes=size)
    left, right = blocks.chain(a_request(head + one), "m"), blocks.chain(a_request(head + other), "m")
    common = sum(1 for _ in takewhile_equal(left, right))

    whole, another = head + one, head + other
    agree = 0
    while (end := (agree + 1) * size) <= min(len(whole), len(another)) and whole[:end] == another[:end]:
        agree += 1
    assert common == agree


def takewhile_equal(left, right):
    for a, b in zip(left, right, strict=False):
        if a != b:
            return
        yield a
