from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.tokens.text import TextBlocks
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


def test_full_blocks_count_and_the_rest_once():
    assert TextBlocks().chain(a_request(b"x" * 63), "demo") == []
    assert len(TextBlocks().chain(a_request(b"x" * 64), "demo")) == 2
    assert len(TextBlocks().chain(a_request(b"x" * 130), "demo")) == 3


def test_the_next_turn_has_the_full_blocks_of_the_one_before():
    one, more = (TextBlocks().chain(a_request(b"x" * size), "demo") for size in (130, 300))

    assert more[:2] == one[:2]
    assert one[2] not in more


def test_the_same_prompt_again_is_told_from_one_with_other_last_words():
    one, other = (TextBlocks().chain(a_request(b"x" * 64 + tail), "demo") for tail in (b"a", b"b"))

    assert one[0] == other[0]
    assert one[1] != other[1]


def test_equal_blocks_at_different_places_have_different_hashes():
    first, second, _rest = TextBlocks().chain(a_request(b"x" * 128), "demo")

    assert first != second


def test_chains_are_cut_at_the_bound():
    assert len(TextBlocks(max_blocks=3).chain(a_request(b"x" * 1000), "demo")) == 3


def test_the_hashes_do_not_change_between_releases():  # pickers that share what they learned must agree
    assert TextBlocks(block_bytes=4).chain(a_request(b"abcdefghi"), "demo") == [
        2215602641716741760,
        5997345507483937363,
        11678388662372768658,
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
    assert len(TextBlocks().chain(a_request(b"x" * 64, salt="\ud800"), "demo\udfff")) == 2


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400), st.integers(1, 80))
def test_chains_agree_exactly_as_far_as_the_full_blocks_do(head, one, other, size):
    blocks = TextBlocks(block_bytes=size)
    left, right = blocks.chain(a_request(head + one), "m"), blocks.chain(a_request(head + other), "m")
    common = sum(1 for _ in takewhile_equal(left, right))

    whole, another = head + one, head + other
    agree = 0
    while (end := (agree + 1) * size) <= min(len(whole), len(another)) and whole[:end] == another[:end]:
        agree += 1
    assert common == agree + (whole == another and len(whole) >= size)


def takewhile_equal(left, right):
    for a, b in zip(left, right, strict=False):
        if a != b:
            return
        yield a
