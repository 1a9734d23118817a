"""What the engine says: common words, each exactly one token, chosen by the prompt and the position.

Equal prompts get equal answers, and an answer sent back as the next turn's history encodes to the very tokens that were
generated, so a conversation finds them in the cache.
"""

import orjson
from xxhash import xxh3_64_intdigest

from engine.simulator import tokenizer

_WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but
not what all were we when your can said there use an each which she do how their if will up other about out
many then them these so some her would make like him into time has look two more write go see no way could my
than first been call who its now find long down day did get come made may part over new sound take only work
know place year live me back give most very after thing our just name good man think say great where help much
line right too mean old any same tell boy want show also play small end put home read hand port large spell
add even land here must big high such act why ask men light kind off need house try us again point near self
earth stand own page got food sun four state keep eye never last let city tree cross farm hard start might
story saw far sea draw left late run while press close night real life few north book carry took room idea
fish stop once base hear horse cut sure watch color face wood main
"""
TOKENS = tuple(tokenizer.piece_id(f" {word}") for word in _WORDS.split())
AS_JSON = {**{token: orjson.dumps(tokenizer.token_text(token)) for token in TOKENS}, tokenizer.END: b'""'}


class Voice:
    """Draws the tokens of one answer. With a `length` it ends by itself after that many words."""

    __slots__ = ("_length", "_seed")

    def __init__(self, seed: int, length: int | None) -> None:
        self._seed = seed
        self._length = length

    def __call__(self, position: int) -> int:
        """Give the token of a position."""
        if self._length is not None and position >= self._length:
            return tokenizer.END
        return TOKENS[xxh3_64_intdigest(position.to_bytes(4, "little"), self._seed) % len(TOKENS)]


def natural_length(seed: int, mean: int) -> int:
    """How long an answer is that nothing limits: between half the mean and one and a half times the mean."""
    return max(1, mean // 2 + xxh3_64_intdigest(b"length", seed) % (mean + 1))


class StopStrings:
    """Watches one answer for the client's stop strings and tells what of its text may be shown.

    The text before the stop string is the answer. While streaming, text that may turn out to begin a stop string is
    held back.
    """

    __slots__ = ("_held", "_shown", "_strings", "_text", "found")

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._strings = strings
        self._held = max(map(len, strings)) - 1
        self._text = ""
        self._shown = 0
        self.found: str | None = None

    def add(self, token: int) -> bool:
        """Take a token; true if it completes a stop string."""
        if token == tokenizer.END:
            return False
        piece = tokenizer.token_text(token)
        begin = max(0, len(self._text) - self._held)
        self._text += piece
        hits = [(at, s) for s in self._strings if (at := self._text.find(s, begin)) >= 0]
        if not hits:
            return False
        at, self.found = min(hits)
        self._text = self._text[:at]
        return True

    @property
    def text(self) -> str:
        """The whole answer, without the stop string."""
        return self._text

    def delta(self, *, last: bool) -> str:
        """Give what may be shown since the last call."""
        until = len(self._text) if last else max(self._shown, len(self._text) - self._held)
        new = self._text[self._shown : until]
        self._shown = until
        return new
