"""The automaton of an expression, built lazily: a state is the set of places that the text so far can have reached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from matrixinfer.api.re2 import syntax
from matrixinfer.api.re2.tree import (
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

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_PROGRAM: Final = 2_000  # instructions: a character costs at most so many steps
_MAX_REMEMBERED: Final = 200_000  # steps and places kept, about 10 MB at most; forgotten all together when full
_MATCHED: Final = -1


@dataclass(frozen=True, slots=True)
class _Step:
    """One instruction: read a character, branch without reading, check the surroundings, or match (none of these)."""

    reads: Callable[[str], bool] | None = None
    asserts: Assertions | None = None
    to: tuple[int, ...] = ()


@lru_cache(maxsize=1024)
def compile_pattern(text: str) -> Pattern:
    """Give the automaton for `text`. Raises PatternError that says what RE2 does not accept."""
    return Pattern(syntax.parse(text))


class Pattern:
    """A compiled expression. `search` remembers the steps it has taken, so that texts alike cost one look-up a character."""

    def __init__(self, tree: Node) -> None:
        self._program: list[_Step] = [_Step()]  # 0: match
        self._first = self._emit(tree, 0)
        self._states: dict[tuple[frozenset[int], str], int] = {}
        self._places: list[tuple[frozenset[int], str]] = []
        self._steps: list[dict[str, int]] = []
        self._remembered = 0
        self._start = self._state(frozenset((self._first,)), "")

    def search(self, text: str) -> bool:
        """Tell whether the expression matches anywhere in `text`."""
        state = self._start
        for char in text:
            following = self._steps[state].get(char)
            if following is None:
                following = self._advance(state, char)
            if following == _MATCHED:
                return True
            state = following
        following = self._steps[state].get("")
        return (self._advance(state, "") if following is None else following) == _MATCHED

    def _forget(self) -> None:
        self._states, self._places, self._steps, self._remembered = {}, [], [], 0
        self._start = self._state(frozenset((self._first,)), "")

    def _state(self, places: frozenset[int], before: str) -> int:
        # Of the character before, assertions see only its class: "" start, newline, a word character, or another.
        key = (places, before if before in {"", "\n"} else "w" if is_word(before) else "-")
        number = self._states.get(key)
        if number is None:
            number = self._states[key] = len(self._places)
            self._places.append(key)
            self._remembered += len(places)
            self._steps.append({})
        return number

    def _advance(self, state: int, char: str) -> int:
        """Step over `char` ("" is the end of the text) and remember where that leads."""
        places, before = self._places[state]
        reached = self._reachable(places, before, char)
        if 0 in reached:
            following = _MATCHED
        else:
            after = {self._first}  # a match may begin at any character
            for place in reached:
                step = self._program[place]
                if char and step.reads is not None and step.reads(char):
                    after.update(step.to)
            if self._remembered > _MAX_REMEMBERED:
                self._forget()
                return self._state(frozenset(after), char)
            following = self._state(frozenset(after), char)
        self._steps[state][char] = following
        self._remembered += 1
        return following

    def _reachable(self, places: frozenset[int], before: str, after: str) -> set[int]:
        reached: set[int] = set()
        pending = list(places)
        while pending:
            place = pending.pop()
            if place in reached:
                continue
            reached.add(place)
            step = self._program[place]
            if step.reads is None and (step.asserts is None or step.asserts.holds(before, after)):
                pending.extend(step.to)
        return reached

    def _emit(self, node: Node, then: int) -> int:
        """Add the instructions of `node`, to be followed by instruction `then`; returns the first of them."""
        match node:
            case Chars(accepts):
                return self._add(_Step(reads=accepts, to=(then,)))
            case Assertion(kind):
                return self._add(_Step(asserts=kind, to=(then,)))
            case Concatenation(parts):
                for part in reversed(parts):
                    then = self._emit(part, then)
                return then
            case Alternation(branches):
                return self._add(_Step(to=tuple(self._emit(branch, then) for branch in branches)))
            case Repeat(part, least, most):
                if most is None:
                    loop = self._add(_Step())
                    self._program[loop] = _Step(to=(self._emit(part, loop), then))
                    then = loop
                else:
                    end = then
                    for _ in range(most - least):
                        then = self._add(_Step(to=(self._emit(part, then), end)))
                for _ in range(least):
                    then = self._emit(part, then)
                return then

    def _add(self, step: _Step) -> int:
        if len(self._program) >= _MAX_PROGRAM:
            raise PatternError("is too large once its repetitions are written out: lower the counts")
        self._program.append(step)
        return len(self._program) - 1
