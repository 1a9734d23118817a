"""Texts to token ids, exactly, with a memory of pieces.

A prompt is cut where the tokenizer cuts, too, whatever surrounds the place: before a special token, and, for byte-level
BPE, between a letter and a following " letter" or between a line's end and a letter, which no split pattern in use
joins. Each piece is encoded by itself and remembered; a known prompt costs look-ups only. Cuts are found from the
left and each depends on the text up to its neighbourhood alone, so a prompt that goes on has the same pieces. A long
message that came before is remembered as a whole, too, once all of its pieces were known; from then on it is recognised by
how it starts, and nothing in it is looked at but by the hash.

Tokenizers that do not split words first (SentencePiece style) are cut at special tokens only. Each way to cut is tried
when a tokenizer is loaded, on text made to break it, and left out if it changes one id: the answer is always that of
the whole text.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
from xxhash import xxh3_128_digest

from extproc.tokens import sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from extproc.tokens.bytelevel import ByteLevel
    from extproc.tokens.chain import TokenIds

_PIECE: Final = 2048  # characters: 20 look-ups for 10k tokens, and at most so much is encoded again with a new turn
_LONG: Final = 4 * _PIECE  # stretches between special tokens from this length on are worth a look-up of their own
_OPENING: Final = 64  # bytes by which a long stretch is recognised
_MOST_OPENINGS, _MOST_LENGTHS = 1024, 4
_SHORT: Final = 256  # bytes: pieces between special tokens are at least this long, so that short messages share one
_ENTRY: Final = 220  # bytes of an entry beside its ids: key, array, place in the order
_MOST_SPECIAL, _FEW_SPECIAL = 32, 8  # special tokens looked for; templates use three to ten
# Where a text may be cut: behind the first character. Letters of the first are ASCII, those of the second any
# (`[^\W\d_]`). Look-around would say it better and takes twice the time.
_CUTS: Final = (r"[A-Za-z] [A-Za-z]", r"\n[^\W\d_]")
_SPECIAL_NORMALIZERS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase"})  # those that look at no neighbour


class Encoding(Protocol):
    """What a tokenizer returns for one text."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        ...


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that is needed here."""

    def encode_batch_fast(self, input: Sequence[str], *, add_special_tokens: bool = True) -> Sequence[Encoding]:  # noqa: A002 - upstream's name
        """Encode without offsets, letting go of the GIL."""
        ...


class Memo:
    """Pieces of text and their ids, the least recently used given up first. One owner; used on the loop only."""

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        """`most_bytes`: 64 MiB hold some twelve million tokens, 120 prompts of 100k that share nothing."""
        self.most_bytes = most_bytes
        self.bytes = 0
        self._ids: OrderedDict[bytes, TokenIds] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, key: bytes) -> TokenIds | None:
        """Return what is remembered under `key`."""
        ids = self._ids.get(key)
        if ids is not None:
            self._ids.move_to_end(key)
        return ids

    def put(self, key: bytes, ids: TokenIds) -> None:
        """Remember `ids`."""
        if key in self._ids:
            return
        self._ids[key] = ids
        self.bytes += ids.nbytes + _ENTRY
        while self.bytes > self.most_bytes and self._ids:
            _key, gone = self._ids.popitem(last=False)
            self.bytes -= gone.nbytes + _ENTRY


class Found(NamedTuple):
    """A text in pieces: the ids of those that are known, and the others, in order."""

    ids: list[TokenIds | None]
    keys: list[bytes]  # of the others
    texts: list[str]
    missing: int  # bytes (UTF-8) in the others
    size: int  # and in all
    whole: list[tuple[bytes, int, int]]  # keys of long stretches that are known piece by piece: from, to in `ids`


class Encoder:
    """One tokenizer and its share of the memo."""

    def __init__(  # noqa: PLR0913 - what a tokenizer and its model's files are made of
        self,
        tokenizer: Tokenizer,
        document: dict[str, Any],
        *,
        memo: Memo,
        number: int,
        marks: str = "",
        quick: ByteLevel | None = None,
    ) -> None:
        """`document`: tokenizer.json; `number`: tells this tokenizer's pieces from others'.

        `marks`: text in which the special tokens occur that are worth looking for, such as a chat template. `quick`: says
        the same as `tokenizer` of most texts, in a quarter of the time.
        """
        self._tokenizer = tokenizer
        self.quick = quick
        self._memo = memo
        self._number = number
        self.faults: list[str] = []  # ways to cut that were found to change ids
        self._specials = self._special_cut(_cutting(document, marks))
        self._raw_specials = re.compile(self._specials.pattern.encode()) if self._specials is not None else None
        self._lengths: dict[bytes, tuple[int, ...]] = {}  # of known stretches, by how they start; the newest first
        self._words = self._word_cut() if _splits_words(document) else None

    @property
    def cuts(self) -> str:
        """How texts are cut: "words", "specials" or "whole"."""
        if self._words is not None:
            return "words"
        return "specials" if self._specials is not None else "whole"

    def find(self, text: str) -> Found:
        """Look the pieces of `text` up."""
        raw = text.encode()
        plain = memoryview(raw)
        found: list[TokenIds | None] = []
        keys: list[bytes] = []
        texts: list[str] = []
        whole: list[tuple[bytes, int, int]] = []
        missing = begin = 0
        get, number, words = self._memo.get, self._number, self._words
        while begin < len(raw):
            end, ids = self._before(raw, begin)
            if ids is not None:
                found.append(ids)
                begin = end
                continue
            end = self._end(raw, begin)
            long = b""
            if end - begin >= _LONG and end < len(raw):
                long = xxh3_128_digest(plain[begin:end], number)
                ids = get(long)
                if ids is not None:
                    self._remember(raw, begin, end)
                    found.append(ids)
                    begin = end
                    continue
            first, new = len(found), len(keys)
            for piece in _pieces(words, plain[begin:end]) if words is not None else (plain[begin:end],):
                key = xxh3_128_digest(piece, number)
                ids = get(key)
                found.append(ids)
                if ids is None:
                    keys.append(key)
                    texts.append(str(piece, "utf-8"))
                    missing += len(piece)
            if long and len(keys) == new:
                whole.append((long, first, len(found)))
            begin = end
        return Found(found, keys, texts, missing, len(raw), whole)

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Encode without special tokens; takes about 0.06 µs a character, or 0.3 µs, and, but for its end, no GIL."""
        if self.quick is None:
            return self._thoroughly(texts)
        made = self.quick.encode(texts)
        left = [text for text, ids in zip(texts, made, strict=True) if ids is None]
        more = iter(self._thoroughly(left) if left else ())
        return [next(more) if ids is None else ids for ids in made]

    def _thoroughly(self, texts: Sequence[str]) -> list[TokenIds]:
        made = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.frombuffer(array("I", one.ids), dtype=np.uint32) for one in made]  # half the time of np.array

    def joined(self, found: Found, made: Iterable[TokenIds]) -> TokenIds:
        """Return the ids of the whole text, `made` being those that were missing; they are remembered."""
        put = self._memo.put
        fresh = iter(made)
        keys = iter(found.keys)
        parts: list[TokenIds] = []
        for ids in found.ids:
            if ids is None:
                new = next(fresh)
                put(next(keys), new)
                parts.append(new)
            else:
                parts.append(ids)
        if not parts:
            return np.zeros(0, dtype=np.uint32)
        for key, first, last in found.whole:
            put(key, np.concatenate(parts[first:last]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def ids(self, text: str) -> TokenIds:
        """Return the ids of `text` now."""
        found = self.find(text)
        return self.joined(found, self.encode(found.texts) if found.texts else ())

    def _end(self, raw: bytes, begin: int) -> int:
        """Return where the stretch up to a special token ends that starts at `begin`, or the text."""
        cut = self._raw_specials.search(raw, begin + _SHORT) if self._raw_specials is not None else None
        return cut.start() if cut is not None else len(raw)

    def _before(self, raw: bytes, begin: int) -> tuple[int, TokenIds | None]:
        """Return the end and the ids of a long stretch that was known before, without looking for where it ends.

        What starts as it did and has the same bytes up to a special token ends where it ended.
        """
        specials = self._raw_specials
        if specials is not None and len(raw) - begin > _LONG:
            for length in self._lengths.get(raw[begin : begin + _OPENING], ()):
                end = begin + length
                if specials.match(raw, end) is not None:
                    ids = self._memo.get(xxh3_128_digest(memoryview(raw)[begin:end], self._number))
                    if ids is not None:
                        return end, ids
        return begin, None

    def _remember(self, raw: bytes, begin: int, end: int) -> None:
        """Note how long a known stretch is."""
        opening = raw[begin : begin + _OPENING]
        if opening not in self._lengths and len(self._lengths) >= _MOST_OPENINGS:
            self._lengths.clear()
        self._lengths[opening] = (end - begin, *self._lengths.get(opening, ())[: _MOST_LENGTHS - 1])

    def _special_cut(self, tokens: list[str]) -> re.Pattern[str] | None:
        if not tokens:
            return None
        cut = re.compile("|".join(map(re.escape, tokens)))
        if self._same(cut, 0, sample.text(tokens)):
            return cut
        self.faults.append("specials")
        return None

    def _word_cut(self) -> re.Pattern[str] | None:
        good = [cut for cut in _CUTS if self._same(re.compile(cut), 1, sample.text(()))]
        self.faults += [cut for cut in _CUTS if cut not in good]
        return re.compile("|".join(good)) if good else None

    def _same(self, cut: re.Pattern[str], behind: int, text: str) -> bool:
        """Tell whether cutting `text` `behind` the start of every match gives the ids of the whole."""
        (whole,) = self._thoroughly([text])
        begin, pieces = 0, []
        for match in cut.finditer(text):
            pieces.append(text[begin : match.start() + behind])
            begin = match.start() + behind
        made = self.encode([*pieces, text[begin:]])
        return bool(np.array_equal(whole, np.concatenate(made)))


def _pieces(words: re.Pattern[str], stretch: memoryview) -> Iterator[memoryview]:
    """Yield the pieces of a stretch of UTF-8 that is cut between words."""
    if len(stretch) <= _PIECE:
        yield stretch
        return
    text = str(stretch, "utf-8")
    ascii_only, search = len(text) == len(stretch), words.search
    begin = at = 0  # characters, bytes
    while (cut := search(text, begin + _PIECE)) is not None:
        end = cut.start() + 1
        size = end - begin if ascii_only else len(text[begin:end].encode())
        yield stretch[at : at + size]
        begin, at = end, at + size
    yield stretch[at:]


def _cutting(document: dict[str, Any], marks: str) -> list[str]:
    """Return the special tokens before which a text can be cut: those in `marks`, the first few where there are none.

    They are taken out of the raw text before anything else (not normalized), whatever is on their left. One that
    overlaps another added token may be matched differently in the tokenizer, so it is left out.
    """
    added = [one for one in document.get("added_tokens") or () if isinstance(one, dict) and one.get("content")]
    raw = [one for one in added if not one.get("normalized")]
    fit = [one["content"] for one in raw if not one.get("lstrip") and not one.get("single_word")]
    marked = [token for token in fit if token in marks][:_MOST_SPECIAL] or fit[:_FEW_SPECIAL]
    others = [one["content"] for one in added]
    return [
        token
        for token in marked
        if not any(_overlap(token, other) for other in others if other != token) and not _overlaps_itself(token)
    ]


def _overlap(token: str, other: str) -> bool:
    """Tell whether a match of `other` could cover a part of `token`."""
    if token in other or other in token:
        return True
    sizes = range(1, min(len(token), len(other)))
    return any(token[:size] == other[-size:] or token[-size:] == other[:size] for size in sizes)


def _overlaps_itself(token: str) -> bool:
    return any(token[:size] == token[-size:] for size in range(1, len(token)))


def _splits_words(document: dict[str, Any]) -> bool:
    """Tell whether text is split at words before it is encoded, by rules that look no further than their word."""
    model = document.get("model") or {}
    if model.get("type", "BPE") != "BPE" or model.get("dropout"):
        return False
    if any(name not in _SPECIAL_NORMALIZERS for name in _types(document.get("normalizer"), "normalizers")):
        return False
    steps = list(_steps(document.get("pre_tokenizer"), "pretokenizers"))
    return any(
        (step.get("type") == "ByteLevel" and step.get("use_regex", True))
        or (step.get("type") == "Split" and "Regex" in (step.get("pattern") or {}))
        for step in steps
    ) and any(step.get("type") == "ByteLevel" for step in steps)


def _types(node: Any, members: str) -> list[str]:
    return [str(step.get("type")) for step in _steps(node, members)]


def _steps(node: Any, members: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a component of tokenizer.json, those of sequences one by one."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "Sequence":
        for one in node.get(members) or ():
            yield from _steps(one, members)
    else:
        yield node
