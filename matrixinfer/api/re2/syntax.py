r"""The syntax: text of an expression to a tree of `Node`s, or a PatternError that says what is not accepted.

Follows Go's regexp/syntax with Perl classes, which RE2 itself and so Envoy share. Groups capture nothing here: only
whether an expression occurs is ever asked. Unicode script classes (`\p{Greek}`) are refused for want of a table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from matrixinfer.api.re2 import characters
from matrixinfer.api.re2.tree import (
    Accepts,
    Alternation,
    Assertion,
    Assertions,
    Chars,
    Concatenation,
    Node,
    PatternError,
    Repeat,
    is_word,
)

_MAX_NESTING: Final = 100
_MAX_REPEAT: Final = 1000
_MAX_CODE_POINT: Final = 0xFF  # Envoy compares bytes
_MAX_LENGTH: Final = 4096


_CONTROL: Final = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_FOREIGN_GROUPS: Final = (
    ("?=", "lookahead (?=...)"),
    ("?!", "lookahead (?!...)"),
    ("?<=", "lookbehind (?<=...)"),
    ("?<!", "lookbehind (?<!...)"),
    ("?P=", "the backreference (?P=name)"),
    ("?>", "an atomic group (?>...)"),
    ("?#", "a comment (?#...)"),
    ("?(", "a conditional (?(...)...)"),
)


def parse(text: str) -> Node:
    """Give the tree of the expression. Raises PatternError."""
    if len(text) > _MAX_LENGTH:
        raise PatternError(f"is longer than {_MAX_LENGTH} characters")
    return _Parser(text).parse()


@dataclass(frozen=True, slots=True)
class _Flags:
    """What (?i), (?m) and (?s) have switched on."""

    fold: bool = False
    lines: bool = False
    dot_all: bool = False


class _Parser:
    """Recursive descent over the text; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.names: set[str] = set()

    def parse(self) -> Node:
        tree = self.alternation(_Flags(), 0)
        if self.at < len(self.text):
            raise self.error("has a ')' without its '('")
        return tree

    def error(self, problem: str) -> PatternError:
        return PatternError(f"{problem} (at character {self.at + 1})")

    def peek(self, prefix: str) -> bool:
        return self.text.startswith(prefix, self.at)

    def take(self, prefix: str) -> bool:
        if self.peek(prefix):
            self.at += len(prefix)
            return True
        return False

    def next(self, missing: str) -> str:
        if self.at >= len(self.text):
            raise self.error(missing)
        self.at += 1
        return self.text[self.at - 1]

    def alternation(self, flags: _Flags, nesting: int) -> Node:
        if nesting > _MAX_NESTING:
            raise self.error(f"nests groups deeper than {_MAX_NESTING}")
        branches: list[Node] = []
        parts: list[Node] = []
        while self.at < len(self.text) and not self.peek(")"):
            if self.take("|"):
                branches.append(Concatenation(tuple(parts)))
                parts = []
            elif self.take("(?") and (changed := self.flags_only(flags)) is not None:
                flags = changed
            elif self.take("\\Q"):
                end = self.text.find("\\E", self.at)
                if end < 0:
                    raise self.error("has a \\Q without its \\E")
                literal = self.text[self.at : end]
                self.at = end + 2
                parts.extend(_literal(char, flags) for char in literal)
                if literal:
                    parts[-1] = self.repeated(parts[-1])
            else:
                parts.append(self.repeated(self.atom(flags, nesting)))
        branches.append(Concatenation(tuple(parts)))
        return branches[0] if len(branches) == 1 else Alternation(tuple(branches))

    def flags_only(self, flags: _Flags) -> _Flags | None:
        """Read `(?flags)`, whose opening has been taken; None, and the opening given back, if it is something else."""
        start = self.at
        changed = self.flags(flags)
        if changed is not None and self.take(")"):
            return changed
        self.at = start - 2
        return None

    def flags(self, flags: _Flags) -> _Flags | None:
        """Read the letters of `(?im-s`; None if there are none, or others."""
        fields = {"i": "fold", "m": "lines", "s": "dot_all"}
        start, value = self.at, True
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter in fields:
                flags = replace(flags, **{fields[letter]: value})
            elif letter == "-" and value:
                value = False
            elif letter != "U":  # ungreedy: which match, not whether
                break
            self.at += 1
        return flags if self.at > start and self.text[self.at - 1] != "-" else None

    def group(self, flags: _Flags, nesting: int) -> Node:
        """Read a group, whose `(` has been taken."""
        for opening, what in _FOREIGN_GROUPS:
            if self.peek(opening):
                raise self.error(f"uses {what}, which RE2 does not have: rewrite it without")
        if self.take("?P<") or self.take("?<"):
            self.name()
        elif self.take("?"):
            changed = flags if self.peek(":") else self.flags(flags)
            if changed is None or not self.take(":"):
                raise self.error("has an unknown kind of group after '(?'")
            flags = changed
        inner = self.alternation(flags, nesting + 1)
        if not self.take(")"):
            raise self.error("has a '(' without its ')'")
        return inner

    def name(self) -> None:
        end = self.text.find(">", self.at)
        name = self.text[self.at : end] if end >= 0 else ""
        if not name or not all(is_word(char) for char in name):
            raise self.error("has a group without a proper name: write (?P<name>...) with letters, digits and '_'")
        if name in self.names:
            raise self.error(f"names two groups {name!r}")
        self.names.add(name)
        self.at = end + 1

    def repeated(self, node: Node) -> Node:
        """Read the repetition after `node`, if there is one."""
        counts = self.repetition()
        if counts is None:
            return node
        least, most = counts
        if (most is not None and most < least) or max(least, most or 0) > _MAX_REPEAT:
            raise self.error(f"has a repetition that RE2 refuses: counts go from low to high, up to {_MAX_REPEAT}")
        self.take("?")
        if self.repetition() is not None:
            raise self.error("repeats a repetition ('**', 'a++'): put the inner one in a group")
        repeat = Repeat(node, least, most)
        if _copies(repeat) > _MAX_REPEAT:
            raise self.error(f"nests repetitions whose counts multiply to more than {_MAX_REPEAT}: lower the counts")
        return repeat

    def repetition(self) -> tuple[int, int | None] | None:
        if self.take("*"):
            return 0, None
        if self.take("+"):
            return 1, None
        if self.take("?"):
            return 0, 1
        return self.counted() if self.peek("{") else None

    def repeats_nothing(self) -> bool:
        """Tell whether the character just taken begins a repetition; nothing stands before it."""
        self.at -= 1
        start = self.at
        found = self.repetition() is not None
        self.at = start if found else start + 1
        return found

    def counted(self) -> tuple[int, int | None] | None:
        """Read `{n}`, `{n,}` or `{n,m}`; anything else is a literal brace."""
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : end].partition(",") if end >= 0 else ("", "", "")
        if not _digits(low) or (high and not _digits(high)):
            return None
        self.at = end + 1
        return int(low), (int(high) if high else None if comma else int(low))

    def atom(self, flags: _Flags, nesting: int) -> Node:
        char = self.next("is incomplete")
        node: Node
        match char:
            case "(":
                node = self.group(flags, nesting)
            case "[":
                node = Chars(self.character_class(flags))
            case ".":
                node = Chars(_anything if flags.dot_all else (lambda char: char != "\n"))
            case "^":
                node = Assertion(Assertions.LINE_START if flags.lines else Assertions.TEXT_START)
            case "$":
                node = Assertion(Assertions.LINE_END if flags.lines else Assertions.TEXT_END)
            case "\\":
                node = self.escape(flags)
            case "*" | "+" | "?" | "{" if self.repeats_nothing():
                raise self.error(f"has nothing to repeat before {char!r}: write \\{char} for the character itself")
            case _:
                node = _literal(char, flags)
        return node

    def escape(self, flags: _Flags) -> Node:
        for letter, kind in (
            ("A", Assertions.TEXT_START),
            ("z", Assertions.TEXT_END),
            ("b", Assertions.WORD_EDGE),
            ("B", Assertions.NO_WORD_EDGE),
        ):
            if self.take(letter):
                return Assertion(kind)
        accepts = self.class_escape(flags)
        if accepts is not None:
            return Chars(accepts)
        return _literal(self.character_escape(), flags)

    def class_escape(self, flags: _Flags) -> Accepts | None:
        r"""Read \d, \S, \pL, \p{Lu} after the backslash; None if it is something else."""
        for letter, accepts in characters.PERL.items():
            if self.take(letter):
                return _cased(accepts, flags)
            if self.take(letter.upper()):
                return characters.negated(_cased(accepts, flags))
        if not (self.peek("p") or self.peek("P")):
            return None
        negate = self.next("") == "P"
        name = self.next("ends in an unfinished \\p")
        if name == "{":
            end = self.text.find("}", self.at)
            name = self.text[self.at : end] if end >= 0 else ""
            self.at = end + 1 if end >= 0 else self.at
        if name.startswith("^"):
            negate, name = not negate, name[1:]
        known: Accepts | None = _anything if name == "Any" else characters.category(name)
        if known is None:
            raise self.error(f"has the Unicode class {name!r}; general categories (L, Lu, Nd, ...) and Any are known")
        known = _cased(known, flags)
        return characters.negated(known) if negate else known

    def character_escape(self) -> str:
        char = self.next("ends in a lone backslash")
        if char in _CONTROL:
            return _CONTROL[char]
        if char in "1234567" and not (self.at < len(self.text) and self.text[self.at] in "01234567"):
            raise self.error(f"uses the backreference \\{char}, which RE2 does not have: rewrite it without")
        if char in "01234567":
            while len(char) < 3 and self.at < len(self.text) and self.text[self.at] in "01234567":  # noqa: PLR2004
                char += self.next("")
            return chr(int(char, 8))
        if char == "x":
            return self.hexadecimal()
        if char.isascii() and not char.isalnum():
            return char
        raise self.error(f"has the escape \\{char}, which RE2 does not have")

    def hexadecimal(self) -> str:
        if self.take("{"):
            end = self.text.find("}", self.at)
            digits = self.text[self.at : end] if end >= 0 else ""
            self.at = end + 1 if end >= 0 else self.at
        else:
            digits = self.text[self.at : self.at + 2]
            digits = digits if len(digits) == 2 else ""  # noqa: PLR2004 - \xHH
            self.at += len(digits)
        if not digits or not all(digit in "0123456789abcdefABCDEF" for digit in digits) or len(digits) > 8:  # noqa: PLR2004
            raise self.error("has an escape \\x that is neither \\xHH nor \\x{H...}")
        if int(digits, 16) > _MAX_CODE_POINT:
            raise self.error("has an escape \\x beyond \\xFF, which Envoy does not accept: write the character itself")
        return chr(int(digits, 16))

    def character_class(self, flags: _Flags) -> Accepts:
        """Read a class, whose `[` has been taken."""
        negate = self.take("^")
        members: list[Accepts] = []
        first = True
        while first or not self.peek("]"):
            first = False
            members.append(self.class_member(flags))
        self.take("]")
        accepts: Accepts = lambda char: any(member(char) for member in members)  # noqa: E731 - as its siblings
        return characters.negated(accepts) if negate else accepts

    def class_member(self, flags: _Flags) -> Accepts:
        unfinished = "has a '[' without its ']'"
        end = self.text.find(":]", self.at) if self.peek("[:") else -1
        if end >= 0:
            name = self.text[self.at + 2 : end]
            negate = name.startswith("^")
            accepts = characters.POSIX.get(name.removeprefix("^"))
            if accepts is None:
                raise self.error(f"has the class [:{name}:]; known are {', '.join(characters.POSIX)}")
            self.at = end + 2
            accepts = _cased(accepts, flags)
            return characters.negated(accepts) if negate else accepts
        if self.take("\\"):
            accepts = self.class_escape(flags)
            if accepts is not None:
                return accepts
            self.at -= 1
        low = self.class_character(unfinished)
        if not self.peek("-") or self.text[self.at + 1 : self.at + 2] in {"]", ""}:
            return _cased(characters.among((low, low)), flags)
        self.take("-")
        high = self.class_character(unfinished)
        if high < low:
            raise self.error(f"has the range {low}-{high}, which runs backwards")
        return _cased(characters.among((low, high)), flags)

    def class_character(self, unfinished: str) -> str:
        return self.character_escape() if self.take("\\") else self.next(unfinished)


def _copies(node: Node) -> int:
    """Give how often the most repeated part of a tree is written out."""
    match node:
        case Repeat(part, least, most):
            return max(least, most or 0, 1) * _copies(part)
        case Concatenation(parts) | Alternation(parts):
            return max(map(_copies, parts), default=1)
    return 1


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


def _cased(accepts: Accepts, flags: _Flags) -> Accepts:
    return characters.folded(accepts) if flags.fold else accepts


def _literal(char: str, flags: _Flags) -> Node:
    accepts = characters.among((char, char))
    if not flags.fold or (char.lower() == char.upper()):
        return Chars(accepts)
    variants = frozenset((char, char.lower(), char.upper()))
    return Chars(characters.folded(lambda other: other in variants))


def _anything(_: str) -> bool:
    return True
