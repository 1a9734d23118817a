"""Sets of characters: ranges, the classes of Perl and POSIX, Unicode's general categories."""

from __future__ import annotations

import unicodedata
from typing import Final

from matrixinfer.api.re2.tree import Accepts, is_word


def among(*ranges: tuple[str, str]) -> Accepts:
    """Give the characters of the ranges, ends included."""
    return lambda char: any(low <= char <= high for low, high in ranges)


def negated(accepts: Accepts) -> Accepts:
    """Give all others."""
    return lambda char: not accepts(char)


def folded(accepts: Accepts) -> Accepts:
    """Give the same in either case."""
    return lambda char: accepts(char) or accepts(char.lower()) or accepts(char.upper())


PERL: Final[dict[str, Accepts]] = {
    "d": among(("0", "9")),
    "s": lambda char: char in "\t\n\f\r ",
    "w": is_word,
}
POSIX: Final[dict[str, Accepts]] = {
    "alnum": among(("0", "9"), ("A", "Z"), ("a", "z")),
    "alpha": among(("A", "Z"), ("a", "z")),
    "ascii": str.isascii,
    "blank": lambda char: char in "\t ",
    "cntrl": among(("\0", "\x1f"), ("\x7f", "\x7f")),
    "digit": among(("0", "9")),
    "graph": among(("!", "~")),
    "lower": among(("a", "z")),
    "print": among((" ", "~")),
    "punct": among(("!", "/"), (":", "@"), ("[", "`"), ("{", "~")),
    "space": lambda char: char in "\t\n\v\f\r ",
    "upper": among(("A", "Z")),
    "word": is_word,
    "xdigit": among(("0", "9"), ("A", "F"), ("a", "f")),
}
_CATEGORIES: Final = {
    major + minor
    for major, minors in {
        "C": "cfos",
        "L": "lmotu",
        "M": "cen",
        "N": "dlo",
        "P": "cdefios",
        "S": "ckmo",
        "Z": "lps",
    }.items()
    for minor in ("", *minors)
}


def category(name: str) -> Accepts | None:
    """Give the set of a general category, such as L or Nd; None if there is none of that name."""
    if name not in _CATEGORIES:
        return None
    return lambda char: unicodedata.category(char).startswith(name)
