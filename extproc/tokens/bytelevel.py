"""Byte-level BPE by tiktoken, a quarter of the time of the engines' own library, where both are known to say the same.

`build` looks at what the two do differently and answers None for a tokenizer in which that could show: then, and for
single texts that are out of the ordinary, the engines' library does the work.

tiktoken merges any two neighbours that make a token, the lowest rank first; a tokenizer.json lists the pairs that may be
merged. In both, whatever happens inside a stretch of text until something is merged across its ends depends on that stretch
alone, and it comes to two tokens once at most. So a token is only ever made of one pair. The two libraries agree if the file
lists that pair, in the order of ranks: it does where its own merges lead to the token, and where it lists every pair that
makes it. tiktoken takes a word that is a token as it is; the file's merges come to the same, or it says so itself.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import tiktoken
import tokenizers

from extproc.tokens import sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from extproc.tokens.chain import TokenIds

_MOST: Final = 8192  # characters of a text: to split a word as long takes 3 ms, and the libraries have bounds beyond
_MARK: Final = "\x1e\x1f"  # between texts; it cannot overlap itself, and those that hold it are encoded by themselves
_TRIED: Final = 4096  # tokens at once
_EVERY, _EVERY_PLAIN = 13, 997  # of the characters with case and the signs, and of the others, is tried
_BRACKETS: Final = {"<": ">", "[": "]", "{": "}"}
_IN_BRACKETS: Final = re.compile(r"[<>\[\]{}]")
_EMOJI: Final = range(0x1F300, 0x1F650)  # as of 2010
_SHORTENED: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_LAST: Final = r"|\s+(?!\S)|\s+"
_SPACES: Final = rf"\s*[\r\n]+{_LAST}"
_GPT2: Final = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+{_LAST}"
# How words are split: patterns that leave no character out, and mean the same to both libraries.
_SPLITS: Final = frozenset(
    {
        _GPT2,
        *(  # cl100k, Llama 3; Qwen 2 and 3
            rf"{_SHORTENED}|{_BEFORE}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
        rf"{_SHORTENED}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",  # Qwen 3.5
        *(  # o200k, Llama 4; Mistral's Tekken
            f"{_BEFORE}{_UPPER}*{_LOWER}+{shortened}|{_BEFORE}{_UPPER}+{_LOWER}*{shortened}|"
            rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
            for shortened, digits in ((f"{_SHORTENED}?", r"\p{N}{1,3}"), ("", r"\p{N}"))
        ),
    }
)


class _Model(msgspec.Struct):
    type: str = "BPE"
    vocab: dict[str, int] = {}
    merges: list[str | list[str]] = []
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    ignore_merges: bool = False


class _Document(msgspec.Struct):
    model: _Model
    added_tokens: list[dict[str, Any]] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


class ByteLevel:
    """Encodes most texts. May be used by several threads at once."""

    def __init__(self, encoding: tiktoken.Encoding, ids: TokenIds, specials: Sequence[str], *, composed: bool) -> None:
        """Take an `encoding` that numbers tokens by rank, then special tokens, the mark, and tokens that are not taken.

        `ids`: of those up to the mark; `specials`: all special tokens; `composed`: text is made NFC first.
        """
        self._encode = encoding.encode_to_numpy
        self._ids = ids
        self._mark = len(ids)
        self._allowed = {*specials, _MARK}
        self._composed = composed

    def encode(self, texts: Sequence[str]) -> list[TokenIds | None]:
        """Return the ids of each text, None where it has to be encoded otherwise. Lets go of the GIL once."""
        fit = [self._takes(text) for text in texts]
        taken = texts if all(fit) else [text for text, one in zip(texts, fit, strict=True) if one]
        if not taken:
            return [None] * len(texts)
        ranks = self._encode(_MARK.join(taken), allowed_special=self._allowed, disallowed_special=())
        marks = np.flatnonzero(ranks >= self._mark)
        if len(marks) and int(ranks[marks].max()) > self._mark:
            if len(taken) > 1:
                return [one for text in texts for one in self.encode([text])]
            return [None] * len(texts)
        ends = [-1, *marks.tolist(), len(ranks)]
        made = iter([self._ids[ranks[before + 1 : end]] for before, end in pairwise(ends)])
        return [next(made) if one else None for one in fit]

    def _takes(self, text: str) -> bool:
        if len(text) > _MOST or _MARK in text:
            return False
        if text.isascii():
            return True
        return not _unsettled().search(text) and (not self._composed or unicodedata.is_normalized("NFC", text))


def build(text: str, tokenizer: tokenizers.Tokenizer) -> ByteLevel | None:
    """Return what encodes as the `tokenizer` that was read from `text`; None if that cannot be told."""
    try:
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.MsgspecError:
        return None
    split = _split(document.pre_tokenizer)
    normalizer = (document.normalizer or {}).get("type")
    ranks = _ranks(document.model, {one.get("content") for one in document.added_tokens or ()})
    if split not in _SPLITS or normalizer not in (None, "NFC") or ranks is None:
        return None
    if not _same_merges(document.model, ranks, tokenizer):
        return None
    added = _added(document, composed=normalizer is not None)
    if added is None:
        return None
    taken, others = added
    first = len(ranks)
    numbers = {token: first + at for at, token in enumerate([*taken, _MARK, *others])}
    letters = _letters()
    words = {bytes(map(letters.__getitem__, token)): rank for token, rank in ranks.items()}
    encoding = tiktoken.Encoding(
        "byte-level",
        # One fast expression, and beside it what looks ahead: a quarter less than all in one.
        pat_str=f"(?:{split.removesuffix(_LAST)}){_LAST}",
        mergeable_ranks=words,
        special_tokens=numbers,
    )
    words.clear()  # it has a table of its own, and keeps this for what nobody asks here
    ids = np.frombuffer(array("I", [*map(document.model.vocab.__getitem__, ranks), *taken.values()]), dtype=np.uint32)
    made = ByteLevel(encoding, ids, list(numbers), composed=normalizer is not None)
    return made if _same(made, tokenizer, list(taken)) else None


def _split(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Return the pattern that splits words, if that and bytes are all there is."""
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0].get("pretokenizers") or []
    level = steps[-1] if steps else {}
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space", True):
        return None
    if len(steps) == 1:
        return _GPT2 if level.get("use_regex", True) else None
    if len(steps) > 2 or level.get("use_regex", True) or steps[0].get("type") != "Split":  # noqa: PLR2004 - split, bytes
        return None
    if steps[0].get("behavior") != "Isolated" or steps[0].get("invert"):
        return None
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    return pattern if isinstance(pattern, str) else None


def _letters() -> dict[str, int]:
    """Return the bytes by the characters that stand for them: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _ranks(model: _Model, added: set[Any]) -> dict[str, int] | None:
    """Return the rank of every token that text can come to: bytes, what is merged, in the order of merges, and words."""
    if model.type != "BPE" or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    letters = _letters()
    ranks = {letter: rank for rank, letter in enumerate(letters)}
    made = ""
    for left, right in _pairs(model):
        if left + right == made:
            continue
        made = left + right
        if made in ranks or not letters.keys() >= set(made):
            return None
        ranks[made] = len(ranks)
    if model.ignore_merges:  # then a word can be a token that no merge leads to
        for token in sorted(model.vocab.keys() - ranks.keys() - added, key=model.vocab.__getitem__):
            if not letters.keys() >= set(token):
                return None
            ranks[token] = len(ranks)
    return ranks if model.vocab.keys() >= ranks.keys() else None


def _pairs(model: _Model) -> Iterator[Sequence[str]]:
    for pair in model.merges:
        yield pair.split(" ") if isinstance(pair, str) else pair


def _same_merges(model: _Model, ranks: dict[str, int], tokenizer: tokenizers.Tokenizer) -> bool:
    """Tell whether the file lists the pair that tiktoken makes each token of, or any."""
    unmade = _unmade(model, list(ranks), tokenizer)
    if not unmade:
        return True
    if not model.ignore_merges:
        return False
    listed = dict.fromkeys(unmade, 0)
    for left, right in _pairs(model):
        if left + right in listed:
            listed[left + right] += 1
    return all(
        number == sum(token[:at] in ranks and token[at:] in ranks for at in range(1, len(token)))
        for token, number in listed.items()
    )


def _unmade(model: _Model, tokens: list[str], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Return the tokens that the file's merges do not lead to."""
    bare = tokenizers.Tokenizer(tokenizer.model)
    bare.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # which their letters have none of
    bare.model.ignore_merges = False
    try:
        unmade: list[str] = []
        for begin in range(0, len(tokens), _TRIED):
            some = tokens[begin : begin + _TRIED]
            made = bare.encode_batch_fast(some, add_special_tokens=False)
            unmade += [token for token, one in zip(some, made, strict=True) if one.ids != [model.vocab[token]]]
        return unmade
    finally:
        bare.model.ignore_merges = model.ignore_merges


def _added(document: _Document, *, composed: bool) -> tuple[dict[str, int], list[str]] | None:
    """Return the added tokens that are taken out of the text as they are, with their ids, and those that may not be.

    The first are in brackets, with none inside, and cannot overlap each other; a text with one of the second is not taken.
    """
    taken: dict[str, int] = {}
    others: list[str] = []
    for one in document.added_tokens or ():
        token = str(one.get("content") or "")
        inner = _IN_BRACKETS.search(token[1:-1]) is not None
        bracketed = len(token) > 1 and _BRACKETS.get(token[0]) == token[-1] and not inner
        if not token or (composed and not token.isascii()) or (not bracketed and _IN_BRACKETS.search(token)):
            return None
        if bracketed and not any(one.get(name) for name in ("lstrip", "rstrip", "single_word")):
            taken[token] = int(one["id"])
        else:
            others.append(token)
    return taken, others


def _same(made: ByteLevel, tokenizer: tokenizers.Tokenizer, specials: list[str]) -> bool:
    """Try it: on text made to break it, and on characters of all kinds between letters, digits and signs."""
    text = sample.text(specials[:8])
    around = [f"a{each} {each}B 1{each}2,{each}" for each in _some_settled()]
    texts = [*text.split("\n"), *re.split(r"(?<=\n)", text), *around]
    fit = [one for one in texts if len(one) <= _MOST]
    expected = tokenizer.encode_batch_fast(fit, add_special_tokens=False)
    return all(ids is None or ids.tolist() == one.ids for ids, one in zip(made.encode(fit), expected, strict=True))


def _settled() -> Iterator[int]:
    """Yield the characters beyond ASCII that are of one kind from Unicode 3.2 on, and emoji of 2010.

    The libraries know different versions of Unicode. Letters that equal an ASCII one but for case are left out, too.
    """
    then = unicodedata.ucd_3_2_0.category
    for code in range(0x80, 0x10000):
        each = chr(code)
        kind = then(each)
        folded = each.casefold()
        if (
            kind not in ("Cn", "Cs")
            and kind == unicodedata.category(each)
            and not (len(folded) == 1 and folded.isascii())
        ):
            yield code
    yield from (code for code in _EMOJI if unicodedata.category(chr(code)) == "So")


@cache
def _some_settled() -> tuple[str, ...]:
    """Return some of these characters, more of those that are signs or have case."""
    settled = list(map(chr, _settled()))
    plain = [each for each in settled if each.isalpha() and each.lower() == each.upper()]
    return (*sorted({*settled} - {*plain})[::_EVERY], *plain[::_EVERY_PLAIN])


@cache
def _unsettled() -> re.Pattern[str]:
    """Return what finds characters that may be of different kinds to the two libraries."""
    settled = [0x7F, *_settled(), 0x110000]
    gaps = [(before + 1, after - 1) for before, after in pairwise(settled) if after - before > 1]
    return re.compile("[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in gaps) + "]")
