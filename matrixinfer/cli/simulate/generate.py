"""Traces that are made up: `generate:KIND?parameter=value&...`, the same for the same parameters and seed.

Each kind is a dataclass of its parameters (lengths in tokens, times in seconds) with a method that yields requests in order
of arrival. Lengths called mean are log-normal around it; gaps between arrivals are exponential.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Protocol

from matrixinfer.cli.simulate import trace
from matrixinfer.cli.simulate.problems import BadInput
from matrixinfer.cli.simulate.trace import Ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFIX: Final = "generate:"
_MODERATE: Final = 0.6  # sigma of lengths that vary as those of questions do


class Kind(Protocol):
    """One way of making requests."""

    @property
    def requests(self) -> int:
        """How many."""
        ...

    @property
    def block(self) -> int:
        """Tokens in a block."""
        ...

    def asks(self) -> Iterator[Ask]:
        """Yield the requests, in order of arrival."""
        ...


class _Chance(random.Random):
    """Chance, and numbers for blocks that no prompt has had."""

    def __init__(self, seed: int, block: int) -> None:
        super().__init__(seed)
        self.block = block
        self._ids = itertools.count(1)

    def mean(self, mean: float, sigma: float = _MODERATE) -> int:
        """Draw a length."""
        return max(1, round(self.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))) if mean else 0

    def extended(self, chain: list[int], tokens: int) -> list[int]:
        """Return `chain` with fresh blocks behind it, as many as `tokens` fill."""
        return chain + list(itertools.islice(self._ids, max(0, tokens // self.block - len(chain))))

    def zipf(self, count: int, skew: float) -> Callable[[], int]:
        """Return a draw from 0..count-1, the k-th with weight 1 / k^skew."""
        weights = list(itertools.accumulate((at + 1) ** -skew for at in range(count)))
        places = range(count)
        return lambda: self.choices(places, cum_weights=weights)[0]

    def ask(self, at: float, chain: list[int], prompt: int, output: int, **facts: str) -> tuple[Ask, list[int]]:
        """Make a request whose prompt begins with `chain`; also the chain of prompt and answer."""
        blocks = self.extended(chain, prompt)
        whole = self.extended(blocks, prompt + output)
        return Ask(at, prompt, output, blocks, whole[len(blocks) :], **facts), whole


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Groups of requests that begin alike: system prompts, few-shot examples."""

    requests: int = 5000
    rate: float = 10.0
    groups: int = 64
    prefix: int = 4000
    question: int = 200
    output: int = 100
    skew: float = 0.6  # of the groups' popularity (Zipf); 0: all alike
    adapters: int = 0  # group g asks for adapter-(g mod this); 0: all ask for the base model
    block: int = 64
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        chance = _Chance(self.seed, self.block)
        prefixes = [chance.extended([], self.prefix) for _ in range(self.groups)]
        draw = chance.zipf(self.groups, self.skew)
        at = 0.0
        while True:
            at += chance.expovariate(self.rate)
            group = draw()
            model = f"adapter-{group % self.adapters}" if self.adapters else ""
            prompt = self.prefix + chance.mean(self.question)
            yield chance.ask(at, prefixes[group], prompt, chance.mean(self.output), model=model)[0]


@dataclass(frozen=True, slots=True)
class MultiTurn:
    """Conversations: each turn's prompt is all that was said before and a question."""

    requests: int = 5000
    rate: float = 10.0
    turns: float = 6.0  # on average
    system: int = 1000  # tokens that all conversations begin with
    first: int = 800
    question: int = 200
    output: int = 250
    think: float = 30.0  # mean time from one turn to the next
    block: int = 64
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        chance = _Chance(self.seed, self.block)
        system = chance.extended([], self.system)
        again = 1 - 1 / max(self.turns, 1.0)
        order = itertools.count()
        # (when, order, conversation, what has been said, its tokens); the next conversation is always among them
        due: list[tuple[float, int, int, list[int], int]] = [(0.0, next(order), 0, system, self.system)]
        for begun in itertools.count(1):
            while True:
                at, _, number, said, tokens = heapq.heappop(due)
                new = said is system
                prompt = tokens + chance.mean(self.first if new else self.question)
                ask, said = chance.ask(at, said, prompt, chance.mean(self.output), session=f"conversation-{number}")
                yield ask
                if chance.random() < again:
                    after = at + chance.mean(self.think * 1000, 1.0) / 1000
                    heapq.heappush(due, (after, next(order), number, said, prompt + ask.output))
                if new:
                    break
            at += chance.expovariate(self.rate * (1 - again))
            heapq.heappush(due, (at, next(order), begun, system, self.system))


@dataclass(frozen=True, slots=True)
class Mooncake:
    """The shape of Mooncake's published conversation trace.

    That has 12,031 requests in an hour, prompts of 12,035 tokens on average with a tail beyond 100,000, answers of 343, a
    clock of 3 s, one first block that all share, four requests in ten that go on from an earlier one (some from its middle),
    and 40 % of the prompt tokens in blocks that were there before.
    """

    requests: int = 12_031
    rate: float = 3.4
    again: float = 0.42  # that a request has a next turn
    edited: float = 0.1  # that the next turn goes on from somewhere in the middle
    first: int = 11_300
    question: int = 1500
    output: int = 343
    think: float = 150.0
    longest: int = 126_000
    tick: float = 3.0
    block: int = 512
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        return _grown(self, _Chance(self.seed, self.block), agents=0, agent_tokens=0, skew=0.0)


@dataclass(frozen=True, slots=True)
class Agents:
    """The shape of Mooncake's published tool and agent trace: 23,608 requests in an hour, 8,596 tokens in and 182 out.

    Few agents with long instructions, whose loops go on within seconds: 59 % of the tokens were there before.
    """

    requests: int = 23_608
    rate: float = 6.7
    again: float = 0.36
    edited: float = 0.02
    first: int = 4700
    question: int = 900
    output: int = 182
    think: float = 20.0
    longest: int = 126_000
    tick: float = 3.0
    agents: int = 60
    instructions: int = 2900
    skew: float = 1.0
    block: int = 512
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        chance = _Chance(self.seed, self.block)
        return _grown(self, chance, agents=self.agents, agent_tokens=self.instructions, skew=self.skew)


@dataclass(frozen=True, slots=True)
class LongContext:
    """Long documents, each with a few questions about it one after the other."""

    requests: int = 2000
    rate: float = 1.0
    document: int = 40_000
    questions: float = 5.0  # about each, on average
    question: int = 150
    output: int = 300
    think: float = 40.0
    block: int = 512
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        chance = _Chance(self.seed, self.block)
        again = 1 - 1 / max(self.questions, 1.0)
        order = itertools.count()
        due: list[tuple[float, int, list[int], int]] = [(0.0, next(order), [], 0)]
        while True:
            at, number, document, tokens = heapq.heappop(due)
            if new := not tokens:
                tokens = chance.mean(self.document, 0.5)
                document = chance.extended([], tokens)
            facts = {"session": f"document-{document[0] if document else number}"}
            yield chance.ask(at, document, tokens + chance.mean(self.question), chance.mean(self.output), **facts)[0]
            if chance.random() < again:
                heapq.heappush(due, (at + chance.mean(self.think * 1000, 1.0) / 1000, next(order), document, tokens))
            if new:
                heapq.heappush(due, (at + chance.expovariate(self.rate * (1 - again)), next(order), [], 0))


@dataclass(frozen=True, slots=True)
class Bursts:
    """Siblings that come together: a fan-out of requests over one prefix that nobody holds yet, again and again."""

    requests: int = 5000
    rate: float = 10.0
    siblings: int = 24
    within: float = 0.2  # a burst lasts so long
    prefix: int = 4000
    question: int = 200
    output: int = 100
    block: int = 64
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        chance = _Chance(self.seed, self.block)
        due: list[tuple[float, int, list[int]]] = []
        at, order = 0.0, itertools.count()
        while True:
            at += chance.expovariate(self.rate / self.siblings)
            while due and due[0][0] <= at:
                when, _, prefix = heapq.heappop(due)
                prompt = self.prefix + chance.mean(self.question)
                yield chance.ask(when, prefix, prompt, chance.mean(self.output))[0]
            prefix = chance.extended([], self.prefix)
            for _ in range(self.siblings):
                heapq.heappush(due, (at + chance.random() * self.within, next(order), prefix))


@dataclass(frozen=True, slots=True)
class Tenants:
    """Tenants of different appetite, each with prefixes of its own; the first asks most, or one more that floods."""

    requests: int = 5000
    rate: float = 10.0
    tenants: int = 8
    skew: float = 1.2
    prefixes: int = 4  # of each
    prefix: int = 3000
    question: int = 300
    output: int = 150
    adapters: bool = False  # each tenant has an adapter of its own
    flood: float = 0.0  # share of the requests that one more tenant sends
    block: int = 64
    seed: int = 1

    def asks(self) -> Iterator[Ask]:
        """Yield the requests."""
        chance = _Chance(self.seed, self.block)
        names = [f"{number}" for number in range(self.tenants)] + ["flood"] * (self.flood > 0)
        prefixes = [[chance.extended([], self.prefix) for _ in range(self.prefixes)] for _ in names]
        draw = chance.zipf(self.tenants, self.skew)
        at = 0.0
        while True:
            at += chance.expovariate(self.rate)
            tenant = self.tenants if self.flood and chance.random() < self.flood else draw()
            name = names[tenant]
            facts = {"tenant": f"tenant-{name}", "model": f"adapter-{name}" if self.adapters else ""}
            prompt = self.prefix + chance.mean(self.question)
            yield chance.ask(at, chance.choice(prefixes[tenant]), prompt, chance.mean(self.output), **facts)[0]


KINDS: Final[dict[str, type[Any]]] = {
    "shared-prefix": SharedPrefix,
    "multi-turn": MultiTurn,
    "mooncake": Mooncake,
    "agents": Agents,
    "long-context": LongContext,
    "bursts": Bursts,
    "tenants": Tenants,
}


def kind(spec: str) -> tuple[str, Kind]:
    """Return what `generate:KIND?...` names: the kind's name, and the kind with these parameters. Raises BadInput."""
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    if name not in KINDS:
        raise BadInput(spec, f"there is no generator {name!r}; we have: {', '.join(KINDS)}")
    known = {one.name: one for one in fields(KINDS[name])}
    values: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, _, text = part.partition("=")
        if key not in known:
            raise BadInput(spec, f"{name} has no parameter {key!r}; it has: {', '.join(known)}")
        values[key] = _value(spec, key, text, known[key].default)
    return name, KINDS[name](**values)


def made(name: str, kind: Kind) -> trace.Trace:
    """Make the trace."""
    return trace.build(name, itertools.islice(kind.asks(), kind.requests), block_tokens=kind.block)


def _value(spec: str, key: str, text: str, default: object) -> object:
    assert default is not MISSING  # noqa: S101 - every parameter has a default
    if isinstance(default, bool):
        if text in ("true", "false"):
            return text == "true"
        raise BadInput(spec, f"{key} must be true or false, not {text!r}")
    wanted = int if isinstance(default, int) else float
    least = 0 if key in _MAY_BE_0 else 1 if wanted is int else 1e-6
    try:
        value = wanted(text)
    except ValueError:
        value = wanted(-1)
    if not math.isfinite(value) or value < least or (key in _SHARES and value >= 1):
        what = "whole number" if wanted is int else "number"
        bound = f"from {least} to below 1" if key in _SHARES else f"of at least {least:g}"
        raise BadInput(spec, f"{key} must be a {what} {bound}, not {text!r}")
    return value


_SHARES: Final = frozenset({"again", "edited", "flood"})
_MAY_BE_0: Final = (
    frozenset({"skew", "adapters", "system", "seed", "output", "tick", "within", "instructions"}) | _SHARES
)


def _grown(kind: Mooncake | Agents, chance: _Chance, *, agents: int, agent_tokens: int, skew: float) -> Iterator[Ask]:
    """Yield requests that go on from earlier ones, in Mooncake's two shapes."""
    root = chance.extended([], kind.block)  # the first block is everybody's
    begins = [
        chance.extended(root, kind.block + chance.mean(agent_tokens)) if agent_tokens else root
        for _ in range(agents or 1)
    ]
    draw = chance.zipf(len(begins), skew)
    order = itertools.count()
    due: list[tuple[float, int, list[int], int]] = [(0.0, next(order), [], 0)]
    while True:
        at, number, said, tokens = heapq.heappop(due)
        if new := not said:
            said = begins[draw()]
            tokens = len(said) * kind.block
        elif chance.random() < kind.edited:
            keep = chance.randint(1, len(said))
            said, tokens = said[:keep], keep * kind.block
        more = chance.mean(kind.first if new else kind.question, 1.2)
        prompt = min(tokens + more, kind.longest)
        tick = math.floor(at / kind.tick) * kind.tick if kind.tick else at
        whole_said = said[: prompt // kind.block]
        ask, whole = chance.ask(
            tick, whole_said, prompt, chance.mean(kind.output, 0.9), session=f"conversation-{number}"
        )
        yield ask
        if chance.random() < kind.again and prompt < kind.longest:
            after = at + chance.mean(kind.think * 1000, 1.3) / 1000
            heapq.heappush(due, (after, next(order), whole, prompt + ask.output))
        if new:
            heapq.heappush(due, (at + chance.expovariate(kind.rate * (1 - kind.again)), next(order), [], 0))
