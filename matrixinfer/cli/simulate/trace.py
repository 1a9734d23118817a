"""A trace: what is asked for and when, one column per fact, in order of arrival.

Prompts have no text here. A prompt is the chain of its blocks' hashes: equal hashes mean that all up to there is equal.
`build` makes a trace of `Ask`s, whatever they come from: `mooncake` (JSONL as Mooncake publishes it), `recorded` (our own
decision log), `generate`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


class Ask(NamedTuple):
    """One request."""

    at: float  # seconds
    prompt: int  # tokens
    output: int  # tokens
    blocks: Sequence[int]  # hashes of the prompt's blocks, each of all up to its end
    answer: Sequence[int] = ()  # blocks that the answer completes: what the next turn begins with beyond this prompt
    tenant: str = ""
    session: str = ""
    model: str = ""  # an adapter; "": the base model
    key: str = ""  # name of the API key; only flow control reads it
    objective: str = ""  # what the request says of its own urgency; likewise


@dataclass(frozen=True, slots=True)
class Trace:
    """n requests, in order of arrival."""

    name: str
    block_tokens: int
    at: NDArray[np.float64]  # seconds since the first; shape (n,)
    prompt: NDArray[np.int64]  # tokens; shape (n,)
    output: NDArray[np.int64]  # tokens; shape (n,)
    tenant: NDArray[np.int32]  # place in `tenants`; shape (n,)
    session: NDArray[np.int32]  # place in `sessions`; shape (n,)
    model: NDArray[np.int32]  # place in `models`; shape (n,)
    key: NDArray[np.int32]  # place in `keys`; shape (n,)
    objective: NDArray[np.int32]  # place in `objectives`; shape (n,)
    tenants: tuple[str, ...]
    sessions: tuple[str, ...]
    models: tuple[str, ...]
    keys: tuple[str, ...]
    objectives: tuple[str, ...]
    hashes: NDArray[np.uint64]  # all chains, one behind the other
    starts: NDArray[np.int64]  # where each begins, and where the last ends; shape (n + 1,)
    answers: NDArray[np.uint64]
    answer_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at)

    @property
    def rate(self) -> float:
        """Requests a second, on average."""
        return (len(self.at) - 1) / span if len(self.at) > 1 and (span := float(self.at[-1])) else 0.0

    def at_rate(self, rate: float) -> Trace:
        """Return the same requests, arriving `rate` a second on average; the pattern of their arrival stays."""
        return replace(self, at=self.at * (self.rate / rate)) if self.rate else self

    def chosen(self, numbers: NDArray[np.intp]) -> Trace:
        """Return the requests with these numbers, which are in order."""
        if len(numbers) == len(self):
            return self
        kept = {name: getattr(self, name)[numbers] for name in ("at", "prompt", "output", *_NAMED)}
        hashes, starts = _picked(self.hashes, self.starts, numbers)
        answers, answer_starts = _picked(self.answers, self.answer_starts, numbers)
        kept |= {"hashes": hashes, "starts": starts, "answers": answers, "answer_starts": answer_starts}
        return replace(self, **kept)

    def chain(self, number: int) -> list[int]:
        """Return the hashes of a prompt's blocks."""
        chain: list[int] = self.hashes[self.starts[number] : self.starts[number + 1]].tolist()
        return chain

    def answer(self, number: int) -> list[int]:
        """Return the hashes of the blocks that the answer completes."""
        answer: list[int] = self.answers[self.answer_starts[number] : self.answer_starts[number + 1]].tolist()
        return answer


_NAMED: Final = ("tenant", "session", "model", "key", "objective")  # columns of places among names


class _Names:
    """Names in the order in which they were met."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, name: str) -> int:
        """Return where `name` stands."""
        return self.places.setdefault(name, len(self.places))

    def all(self) -> tuple[str, ...]:
        """Return the names."""
        return tuple(self.places)


def build(name: str, asks: Iterable[Ask], *, block_tokens: int) -> Trace:
    """Make a trace of requests that are in order of arrival; its time begins with the first of them."""
    at, prompt, output = array("d"), array("q"), array("q")
    names = {column: _Names() for column in _NAMED}
    columns = {key: array("i") for key in names}
    hashes, starts = array("Q"), array("q", [0])
    answers, answer_starts = array("Q"), array("q", [0])
    for ask in asks:
        at.append(ask.at)
        prompt.append(ask.prompt)
        output.append(ask.output)
        columns["tenant"].append(names["tenant"].place(ask.tenant))
        columns["session"].append(names["session"].place(ask.session))
        columns["model"].append(names["model"].place(ask.model))
        columns["key"].append(names["key"].place(ask.key))
        columns["objective"].append(names["objective"].place(ask.objective))
        hashes.extend(ask.blocks)
        starts.append(len(hashes))
        answers.extend(ask.answer)
        answer_starts.append(len(answers))
    times = np.array(at)
    return Trace(
        name=name,
        block_tokens=block_tokens,
        at=times - times[0] if len(times) else times,
        prompt=np.array(prompt),
        output=np.array(output),
        tenant=np.array(columns["tenant"]),
        session=np.array(columns["session"]),
        model=np.array(columns["model"]),
        key=np.array(columns["key"]),
        objective=np.array(columns["objective"]),
        tenants=names["tenant"].all(),
        sessions=names["session"].all(),
        models=names["model"].all(),
        keys=names["key"].all(),
        objectives=names["objective"].all(),
        hashes=np.array(hashes),
        starts=np.array(starts),
        answers=np.array(answers),
        answer_starts=np.array(answer_starts),
    )


def _picked(
    flat: NDArray[np.uint64], starts: NDArray[np.int64], numbers: NDArray[np.intp]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    lengths = np.diff(starts)
    wanted = np.zeros(len(lengths), dtype=np.bool_)
    wanted[numbers] = True
    return flat[np.repeat(wanted, lengths)], np.concatenate([[0], np.cumsum(lengths[numbers])])
