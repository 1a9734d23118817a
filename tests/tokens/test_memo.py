from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from extproc.tokens.memo import Memo
from tests.tokens import tiny

BITS = st.sampled_from(
    [
        *tiny.SPECIAL,
        *(
            "word",
            " word",
            "  two",
            "\n",
            "\n\n",
            "\r\n",
            "\t",
            "a b",
            "A\nB",
            " 's",
            "'s",
            "'T",
            "12345",
            "½",
            "é",
            "e\u0301",
        ),
        *(
            "漢字",
            "かな",
            "한국",
            "العربية",
            "🙂",
            "👩\u200d👧",
            "\u00a0",
            "\u3000",
            "-",
            "...",
            "<",
            "|",
            "im_start",
            "▁",
            "x" * 300,
        ),
    ]
)
TEXTS = st.lists(st.one_of(BITS, st.text(max_size=30), st.just("The quick brown fox\njumps over. ")), max_size=120)
BOOK = (Path(sysconfig.get_path("stdlib")) / "subprocess.py").read_text()


def whole(kind, text):
    return Tokenizer.from_str(tiny.a_tokenizer_json(kind)).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_document_in_pieces_has_the_ids_of_the_whole(kind):
    encoder = tiny.a_model(kind).encoder

    assert encoder.ids(BOOK).tolist() == whole(kind, BOOK)
    assert encoder.find(BOOK).texts == []
    assert encoder.ids(BOOK).tolist() == whole(kind, BOOK)


@pytest.mark.parametrize("kind", tiny.KINDS)
@settings(max_examples=40)
@given(parts=TEXTS)
def test_any_text_in_pieces_has_the_ids_of_the_whole(kind, parts):
    text = "".join(parts)
    encoder = ENCODERS[kind]

    assert encoder.ids(text).tolist() == whole(kind, text)


@pytest.mark.parametrize("kind", ["cl100k", "sentencepiece"])
@settings(max_examples=30)
@given(parts=TEXTS, turns=st.lists(st.integers(0, 120), max_size=5))
def test_a_text_that_grows_has_the_ids_of_the_whole_at_every_step(kind, parts, turns):
    encoder = ENCODERS[kind]

    for turn in sorted(turns):
        text = "".join(parts[:turn])
        assert encoder.ids(text).tolist() == whole(kind, text)


@settings(max_examples=30)
@given(start=st.integers(0, 20_000), length=st.integers(0, 40_000))
def test_any_stretch_of_a_document_has_the_ids_of_the_whole(start, length):
    text = BOOK[start : start + length]

    assert ENCODERS["cl100k"].ids(text).tolist() == whole("cl100k", text)


def test_the_kinds_are_told_apart():
    cuts = {kind: tiny.a_model(kind).encoder.cuts for kind in tiny.KINDS}

    assert cuts == {
        "gpt2": "words",
        "cl100k": "words",
        "o200k": "words",
        "qwen": "words",
        "sentencepiece": "specials",
        "metaspace": "specials",
        "wordpiece": "specials",
    }


def test_a_new_turn_leaves_the_pieces_before_it_known():
    encoder = tiny.a_model().encoder
    history = "".join(f"<|im_start|>user\n{BOOK[at : at + 3000]}<|im_end|>\n" for at in range(0, 30_000, 3000))
    encoder.ids(history)

    found = encoder.find(history + "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n")

    assert found.missing < 400


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("more", ["", "漢字"])
def test_a_long_message_that_came_before_is_one_look_up(kind, more):
    encoder = tiny.a_model(kind).encoder
    message = f"<|im_start|>user\n{BOOK[:20_000]}{more}"

    for turn in ("one", "two", "three"):
        text = f"{message}<|im_end|>\n<|im_start|>assistant\n{turn} answer"
        assert encoder.ids(text).tolist() == whole(kind, text)

    assert [len(ids) for ids in encoder.find(text).ids[:1]] == [len(whole(kind, message))]


LONG_MESSAGES = [
    f"<|im_start|>user\n{text}"
    for text in (BOOK[:9000], BOOK[:12_000], BOOK[:9000] + "<|im_end|" + BOOK[:500], BOOK[:8500] + "漢字", BOOK[:300])
]


@settings(max_examples=20)
@given(talks=st.lists(st.lists(st.sampled_from(LONG_MESSAGES), max_size=3), min_size=3, max_size=6))
def test_long_messages_that_start_alike_have_the_ids_of_the_whole(talks):
    encoder = tiny.a_model("cl100k").encoder

    for talk in (*talks, *talks):
        text = "".join(f"{message}<|im_end|>\n" for message in talk)
        assert encoder.ids(text).tolist() == whole("cl100k", text)


def test_a_growing_text_without_turns_has_its_last_piece_encoded_again():
    encoder = tiny.a_model().encoder
    encoder.ids(BOOK[:30_000])

    assert encoder.find(BOOK[:31_000]).missing < 1000 + 2100


def test_a_tokenizer_that_looks_across_words_is_not_cut():
    class Odd:
        """Counts characters from the start of what it gets."""

        def encode_batch_fast(self, texts, *, add_special_tokens):
            return [type("Encoding", (), {"ids": list(range(len(text)))}) for text in texts]

    import json

    from extproc.tokens.memo import Encoder

    encoder = Encoder(Odd(), json.loads(tiny.a_tokenizer_json()), memo=Memo(), number=1, marks=tiny.CHATML)

    assert encoder.cuts == "whole"
    assert len(encoder.faults) == 3
    assert encoder.ids(BOOK[:9000]).tolist() == list(range(9000))


def test_two_tokenizers_share_a_memo_and_nothing_in_it():
    memo = Memo()
    first, second = (
        tiny.a_model(kind, memo=memo, number=number).encoder for number, kind in enumerate(("gpt2", "qwen"), 1)
    )

    first.ids(BOOK)

    assert second.ids(BOOK).tolist() == whole("qwen", BOOK)


@given(sizes=st.lists(st.integers(0, 400), max_size=40), most=st.integers(300, 4000))
def test_the_memo_keeps_its_bound_and_what_was_used_last(sizes, most):
    memo = Memo(most)
    for number, size in enumerate(sizes):
        memo.put(number.to_bytes(4, "little"), np.zeros(size, dtype=np.uint32))

    assert memo.bytes <= most
    if sizes and sizes[-1] * 4 + 220 <= most:
        assert memo.get((len(sizes) - 1).to_bytes(4, "little")) is not None


def test_what_is_used_stays_longer():
    memo = Memo(3 * 260)
    for key in (b"a", b"b", b"c"):
        memo.put(key, np.zeros(10, dtype=np.uint32))
    memo.get(b"a")

    memo.put(b"d", np.zeros(10, dtype=np.uint32))

    assert [key for key in (b"a", b"b", b"c", b"d") if memo.get(key) is not None] == [b"a", b"c", b"d"]


ENCODERS = {kind: tiny.a_model(kind, number=number).encoder for number, kind in enumerate(tiny.KINDS)}
