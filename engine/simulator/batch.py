"""Continuous batching as a pure step function: what runs in the next step, how long it takes, what it gives.

`start(now)` admits, allocates and tells the step's duration; `complete(now)` gives one token to every sequence whose known
tokens are all computed. In between, sequences may be added or aborted. The rules are vLLM's: running sequences first, then the
waiting ones in order of arrival, long prompts in pieces under the step's token budget; when memory runs out the newest running
sequence gives up its blocks and waits at the head of the queue. Clocks and sockets are the caller's.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from engine.simulator import kvcache

if TYPE_CHECKING:
    from array import array

Finish = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Step time in seconds: a floor, a share per sequence, and the prompt tokens at the machine's rate.

    `speed` divides all of it; 0 means that nothing takes time.
    """

    base_s: float
    per_sequence_s: float
    prefill_tokens_per_s: float
    speed: float = 1.0

    def step(self, sequences: int, prefill_tokens: int) -> float:
        """Duration of one step."""
        if not self.speed:
            return 0.0
        work = self.base_s + self.per_sequence_s * sequences + prefill_tokens / self.prefill_tokens_per_s
        return work / self.speed


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may hold."""

    max_sequences: int
    max_step_tokens: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt being continued. The batch owns it from `add` until it finishes.

    `tokens` is the prompt and grows by the output (by none where `max_tokens` is 0: pooling); `draw` gives the output token of a position; `ends` looks at the
    sequence after each token and says whether the text is complete; `owner` is for the caller.
    """

    tokens: "array[int]"
    max_tokens: int
    draw: Callable[[int], int]
    origin: kvcache.Origin = field(default_factory=kvcache.Origin)
    ends: "Callable[[Sequence], bool] | None" = None
    owner: object = None
    index: int = 0
    remote_tokens: int = 0  # that another engine has computed and sent
    remote_cached: int | None = None  # of these, what it had cached; None: it did not say
    held: bool = False  # its blocks are kept when it finishes, for another engine

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    stored_tokens: int = 0
    preemptions: int = 0
    finish: Finish | None = None
    stop_reason: str | int | None = None
    arrived: float = 0.0
    admitted: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    token_gap: float = 0.0

    hashes: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    stored: int = 0
    scheduled: int = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def output(self) -> "array[int]":
        """Tokens generated so far."""
        return self.tokens[self.prompt_tokens :]


@dataclass(slots=True)
class Counters:
    """Totals since the start, as the engine's metrics count them."""

    queried_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


class Batch:
    """The scheduler's state: waiting, running, and the step in flight."""

    def __init__(self, blocks: kvcache.Blocks, limits: Limits, latency: Latency) -> None:
        self.blocks = blocks
        self.latency = latency
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.counters = Counters()
        self.step_tokens = 0
        self._limits = limits
        self._step: list[Sequence] | None = None

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence."""
        sequence.arrived = now
        kvcache.chain(sequence.tokens, self.blocks.block_size, sequence.origin.seed, sequence.hashes)
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; its memory is free at once."""
        if sequence.finish is not None:
            return
        sequence.finish = "abort"
        if sequence in self.running:
            self.running.remove(sequence)
            self.blocks.release(sequence.blocks)
            sequence.blocks = []
        elif sequence in self.waiting:  # else its blocks have not come from another engine yet
            self.waiting.remove(sequence)

    def start(self, now: float) -> float | None:
        """Begin a step; its duration, or None where there is nothing to do."""
        step: list[Sequence] = []
        preemptions = self.counters.preemptions
        budget, prefill = self._schedule_running(step, self._limits.max_step_tokens)
        if self.counters.preemptions == preemptions:  # what just gave way must not take the memory back
            budget, admitted = self._admit(step, budget, now)
            prefill += admitted
        if not step:
            return None
        self.counters.steps += 1
        self.step_tokens = self._limits.max_step_tokens - budget
        self._step = step
        return self.latency.step(len(step), prefill)

    def complete(self, now: float) -> list[Sequence]:
        """End the step; the sequences that got their token, `finish` set on those that are done."""
        produced = []
        for sequence in self._step or ():
            if sequence.finish is not None:
                continue
            sequence.computed += sequence.scheduled
            if sequence.computed < len(sequence.tokens):
                continue
            produced.append(sequence)
            if sequence.max_tokens:
                sequence.tokens.append(sequence.draw(sequence.output_tokens))
                sequence.output_tokens += 1
            if sequence.max_tokens == 0 or (sequence.ends is not None and sequence.ends(sequence)):
                sequence.finish = "stop"
            elif sequence.output_tokens >= sequence.max_tokens:
                sequence.finish = "length"
            if sequence.finish is not None:
                self.running.remove(sequence)
                self._free(sequence)
        self._step = None
        for sequence in produced:
            if sequence.first_token is None:
                sequence.first_token = now
            sequence.token_gap = now - sequence.last_token
            sequence.last_token = now
        return produced

    def _free(self, sequence: Sequence) -> None:
        if not sequence.held:
            self.blocks.release(sequence.blocks)
            sequence.blocks = []

    def _schedule_running(self, step: list[Sequence], budget: int) -> tuple[int, int]:
        prefill = 0
        position = 0
        while position < len(self.running):
            sequence = self.running[position]
            want = min(len(sequence.tokens) - sequence.computed, budget)
            if want == 0:
                break
            while not self._allocate(sequence, want):
                victim = self.running.pop()
                self._preempt(victim)
                if victim is sequence:
                    break
            if position >= len(self.running):
                break
            sequence.scheduled = want
            budget -= want
            if want > 1 or not sequence.output_tokens:
                prefill += want
            step.append(sequence)
            position += 1
        return budget, prefill

    def _admit(self, step: list[Sequence], budget: int, now: float) -> tuple[int, int]:
        prefill = 0
        while self.waiting and budget and len(self.running) < self._limits.max_sequences:
            sequence = self.waiting[0]
            total = len(sequence.tokens)
            hit = self.blocks.longest_hit(sequence.hashes, total)
            hits = len(hit) * self.blocks.block_size
            cached = max(hits, min(sequence.remote_tokens, total - 1))
            want = min(total - cached, budget)
            needed = -(-(cached + want) // self.blocks.block_size) - len(hit)
            if needed > self.blocks.free - self.blocks.idle(hit):
                break
            self.waiting.popleft()
            self.blocks.share(hit)
            sequence.blocks = hit
            sequence.computed = cached
            sequence.stored = len(hit)
            if sequence.admitted is None:
                sequence.admitted = now
                sequence.cached_tokens = cached if sequence.remote_cached is None else sequence.remote_cached
                self.counters.queried_tokens += total
                self.counters.hit_tokens += hits
            self._allocate(sequence, want)
            sequence.scheduled = want
            budget -= want
            prefill += want
            self.running.append(sequence)
            step.append(sequence)
        return budget, prefill

    def _allocate(self, sequence: Sequence, want: int) -> bool:
        size = self.blocks.block_size
        until = sequence.computed + want
        needed = -(-until // size) - len(sequence.blocks)
        if needed > 0:
            if needed > self.blocks.free:
                return False
            sequence.blocks += self.blocks.take(needed)
        full = until // size
        if full > sequence.stored:
            if full > len(sequence.hashes):
                kvcache.chain(sequence.tokens, size, sequence.origin.seed, sequence.hashes)
            span = range(sequence.stored, full)
            self.blocks.store(sequence.blocks, sequence.hashes, span, sequence.tokens, sequence.origin)
            in_prompt = min(full, sequence.prompt_tokens // size) - sequence.stored
            sequence.stored_tokens += max(0, in_prompt) * size
            sequence.stored = full
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.stored = sequence.remote_tokens = 0
        sequence.preemptions += 1
        self.counters.preemptions += 1
        self.waiting.appendleft(sequence)
