"""What an expression is made of: a tree of `Node`s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Accepts = Callable[[str], bool]  # a set of characters


class PatternError(ValueError):
    """An expression that RE2 does not accept; the message says what to change."""


def is_word(char: str) -> bool:
    r"""Tell whether `char` belongs to \w, which is ASCII only."""
    return char.isascii() and (char.isalnum() or char == "_")


class Assertions(Enum):
    """Conditions on the two characters around a place; "" stands for either end of the text."""

    TEXT_START = "\\A"
    TEXT_END = "\\z"
    LINE_START = "(?m)^"
    LINE_END = "(?m)$"
    WORD_EDGE = "\\b"
    NO_WORD_EDGE = "\\B"

    def holds(self, before: str, after: str) -> bool:
        """Tell whether a place between `before` and `after` fulfils it."""
        match self:
            case Assertions.TEXT_START:
                return not before
            case Assertions.TEXT_END:
                return not after
            case Assertions.LINE_START:
                return before in {"", "\n"}
            case Assertions.LINE_END:
                return after in {"", "\n"}
            case Assertions.WORD_EDGE:
                return is_word(before) != is_word(after)
            case Assertions.NO_WORD_EDGE:
                return is_word(before) == is_word(after)


@dataclass(frozen=True, slots=True)
class Chars:
    """One character that `accepts` accepts."""

    accepts: Accepts


@dataclass(frozen=True, slots=True)
class Assertion:
    """Nothing, where the assertion holds."""

    kind: Assertions


@dataclass(frozen=True, slots=True)
class Concatenation:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """Any one of the branches."""

    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; None is without end."""

    part: Node
    least: int
    most: int | None


Node = Chars | Assertion | Concatenation | Alternation | Repeat
