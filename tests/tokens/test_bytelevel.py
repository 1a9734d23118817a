from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from extproc.tokens import bytelevel
from tests.tokens import tiny
from tests.tokens.test_memo import BOOK, TEXTS

KINDS = ("gpt2", "cl100k", "o200k", "qwen")


def document(kind="cl100k"):
    return json.loads(tiny.a_tokenizer_json(kind))


def built(made):
    text = json.dumps(made)
    tokenizer = Tokenizer.from_str(text)
    return bytelevel.build(text, tokenizer), tokenizer


def made_of_all_pairs(kind="cl100k", words=()):
    """As a file that was converted from tiktoken's lists every pair that makes a token; `words` are tokens, too."""
    made = document(kind)
    model = made["model"]
    vocab = model["vocab"]
    merged = list(dict.fromkeys("".join(pair) for pair in model["merges"]))
    for word in words:
        if word not in vocab:
            vocab[word] = max(vocab.values()) + 1
            merged.append(word)
    splits = ((token[:at], token[at:]) for token in merged for at in range(1, len(token)))
    model["merges"] = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
    return made


def whole(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_byte_level_tokenizers_are_quick(kind):
    quick, tokenizer = built(document(kind))

    assert quick is not None
    assert quick.encode([BOOK[:8000]])[0].tolist() == whole(tokenizer, BOOK[:8000])


@pytest.mark.parametrize("kind", sorted(set(tiny.KINDS) - set(KINDS)))
def test_others_are_not(kind):
    assert built(document(kind))[0] is None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(texts=st.lists(TEXTS.map("".join), max_size=5))
def test_what_is_encoded_quickly_has_the_ids_of_the_library(kind, texts):
    quick, tokenizer = QUICK[kind]

    for ids, text in zip(quick.encode(texts), texts, strict=True):
        assert ids is None or ids.tolist() == whole(tokenizer, text)


@settings(max_examples=60)
@given(parts=st.lists(st.sampled_from([*document()["model"]["vocab"]]), max_size=40), ends=st.integers(0, 9))
def test_any_row_of_tokens_comes_to_the_same_by_every_kind_of_file(parts, ends):
    letters = bytelevel._letters()
    inside = b"".join(bytes(letters.get(each, 32) for each in part) for part in parts)
    text = inside[: len(inside) - ends].decode(errors="ignore")

    for quick, tokenizer in (QUICK["cl100k"], *CONVERTED):
        (ids,) = quick.encode([text])
        assert ids is None or ids.tolist() == whole(tokenizer, text)


def test_a_word_that_no_merge_leads_to_is_a_token_where_the_file_says_so():
    made = made_of_all_pairs(words=("theseverance",))
    made["model"]["ignore_merges"] = True
    quick, tokenizer = built(made)

    assert whole(tokenizer, "theseverance") == [made["model"]["vocab"]["theseverance"]]
    assert quick.encode(["theseverance"])[0].tolist() == [made["model"]["vocab"]["theseverance"]]


def test_a_token_whose_pair_is_not_listed_makes_the_file_one_for_the_library():
    made = document()
    left, right = next(pair for pair in made["model"]["merges"] if len("".join(pair)) == 4)
    token = left + right
    other = next([token[:at], token[at:]] for at in (1, 3, 2) if token[:at] != left)
    made["model"]["vocab"].update(
        {part: 5000 + at for at, part in enumerate(other) if part not in made["model"]["vocab"]}
    )
    made["model"]["merges"] = [other if pair == [left, right] else pair for pair in made["model"]["merges"]]

    assert built(made)[0] is None


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"added_tokens": [*document()["added_tokens"], {**document()["added_tokens"][0], "id": 7000, "content": "a<"}]},
    ],
)
def test_a_file_with_more_to_it_is_one_for_the_library(change):
    assert built({**document(), **change})[0] is None


def test_a_split_that_is_not_known_is_one_for_the_library():
    made = document()
    made["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+"

    assert built(made)[0] is None


@pytest.mark.parametrize("text", ["a\x1e\x1fb", "x " * 5000, "\U0001fae0", "Stra\u017fe", "plain word"])
def test_texts_out_of_the_ordinary_are_left_to_the_library(text):
    made = document()
    made["added_tokens"].append({**made["added_tokens"][0], "id": 7000, "content": "plain word"})
    quick, _ = built(made)

    before, odd, behind = quick.encode(["some text", text, "and more"])

    assert odd is None
    assert before.tolist() == QUICK["cl100k"][0].encode(["some text"])[0].tolist()
    assert behind.tolist() == QUICK["cl100k"][0].encode(["and more"])[0].tolist()


def test_text_that_is_not_composed_is_left_to_the_library_that_composes_it():
    assert QUICK["qwen"][0].encode(["e\u0301t\u00e9"]) == [None]
    assert QUICK["cl100k"][0].encode(["e\u0301t\u00e9"])[0] is not None


def test_the_library_is_left_as_it_was():
    made = made_of_all_pairs(words=("theseverance",))
    made["model"]["ignore_merges"] = True
    _, tokenizer = built(made)

    assert tokenizer.model.ignore_merges
    assert json.loads(tokenizer.to_str())["pre_tokenizer"] == made["pre_tokenizer"]


QUICK = {kind: built(document(kind)) for kind in KINDS}
CONVERTED = [built(made_of_all_pairs(kind)) for kind in KINDS]
