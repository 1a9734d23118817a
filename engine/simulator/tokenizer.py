"""The simulator's own tokenizer: exact both ways and without a vocabulary file.

A token id *is* its text, packed into 31 bits, so every process agrees on the ids, encoding needs no table and decoding gives
the text back. Four ranges of ids: lower-case runs of up to six symbols, other ASCII of up to four, single code points, and
the marks of the chat template. English prose comes to about four characters a token, as with the real ones.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable

_PACKED = 1 << 30
_CODE_POINTS = _PACKED + (1 << 28)
_MARKS = _CODE_POINTS + 0x110000
VOCABULARY = _MARKS + 16

BEGIN, END, IMAGE = _MARKS, _MARKS + 1, _MARKS + 2
_MARK_TEXT = {BEGIN: "<|im_start|>", END: "<|im_end|>", IMAGE: "<|image|>"}

_PIECE = re.compile(
    r" ?[a-z]{1,5}"  # symbols of five bits
    r"| ?[A-Z][a-z]{0,2}| ?[0-9]{1,3}|[\t-\r ]{1,4}| ?[!-/:-@\[-`{-~]{1,3}|[\x00-\x7f]"  # characters of seven bits
    r"|[^\x00-\x7f]",
    re.DOTALL,
)
_FIVE_BITS = {" ": 1, **{chr(ord("a") + i): i + 2 for i in range(26)}}
_SYMBOLS = {code: symbol for symbol, code in _FIVE_BITS.items()}
_LOWER = re.compile(r" ?[a-z]{1,5}\Z")

_MEMO_PIECES = 200_000
_MEMO_TEXTS = 4_096
_MEMO_TOKENS = 4_000_000
_SHORT_TEXT = 256


def piece_id(piece: str) -> int:
    """Give the id of one piece as `_PIECE` cuts them."""
    if _LOWER.match(piece):
        packed = 0
        for symbol in reversed(piece):
            packed = packed << 5 | _FIVE_BITS[symbol]
        return packed
    if piece.isascii() and piece != "\0":
        packed = 0
        for symbol in reversed(piece):
            packed = packed << 7 | ord(symbol)
        return _PACKED + packed
    return _CODE_POINTS + ord(piece)


def token_text(token: int) -> str:
    """Give the text of one id; ids that no text encodes to come out as the replacement character."""
    if token in _MARK_TEXT:
        return _MARK_TEXT[token]
    if _CODE_POINTS <= token < _MARKS:
        return chr(token - _CODE_POINTS)
    symbols = []
    if 0 <= token < _PACKED:
        while token:
            symbols.append(_SYMBOLS.get(token & 31, "\ufffd"))
            token >>= 5
    elif _PACKED <= token < _CODE_POINTS:
        token -= _PACKED
        while token:
            symbols.append(chr(token & 127))
            token >>= 7
    return "".join(symbols) or "\ufffd"


class _Pieces(dict[str, int]):
    """Ids of the pieces met so far; forgotten all at once when too many."""

    def __missing__(self, piece: str) -> int:
        if len(self) >= _MEMO_PIECES:
            self.clear()
        token = self[piece] = piece_id(piece)
        return token


class Tokenizer:
    """Encodes text to ids and back; remembers long texts, because conversations send them again every turn."""

    def __init__(self) -> None:
        self._pieces = _Pieces()
        self._texts: OrderedDict[str, array[int]] = OrderedDict()
        self._remembered_tokens = 0

    def encode(self, text: str) -> "array[int]":
        """Token ids of a text. The array may be shared: callers extend their own from it and never change it."""
        if len(text) < _SHORT_TEXT:
            return array("I", map(self._pieces.__getitem__, _PIECE.findall(text)))
        known = self._texts.get(text)
        if known is not None:
            self._texts.move_to_end(text)
            return known
        tokens = array("I", map(self._pieces.__getitem__, _PIECE.findall(text)))
        self._texts[text] = tokens
        self._remembered_tokens += len(tokens)
        while len(self._texts) > _MEMO_TEXTS or self._remembered_tokens > _MEMO_TOKENS:
            _, dropped = self._texts.popitem(last=False)
            self._remembered_tokens -= len(dropped)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Give the text of token ids, marks included."""
        return "".join(map(token_text, tokens))


def plain_text(tokens: Iterable[int]) -> str:
    """Give the text of token ids as clients see it: without the template's marks."""
    return "".join([token_text(token) for token in tokens if token not in _MARK_TEXT])
