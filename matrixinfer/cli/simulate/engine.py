"""An engine in virtual time: continuous batching over a prefix cache, in stretches of equal steps instead of single ones.

The rules and the step's duration are those of `engine.simulator.batch`: running sequences first, then the waiting ones in
order of arrival, long prompts in pieces under the step's token budget, the newest running sequence gives way when memory
runs out, a freed block stays findable until it is the least recently freed. What is coarser here:

- A stretch in which every sequence only decodes is one event, ended by the next answer that is complete or by a newcomer
  (whom the engine looks at after the step that is under way). Answers end in order of a step count, not by counting each.
- Memory is counted in tokens, a cached block as all of its tokens, a prompt's at its admission. Blocks are the trace's.
- Blocks of an answer are findable when it is complete.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from math import ceil
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from matrixinfer.cli.simulate.cluster import Group

NEVER: Final = float("inf")
_ROUNDING: Final = 1e-9  # of a step: what adding up durations may lose


class Listener(Protocol):
    """Hears what an engine's cache takes and gives up, as subscribers of its KV events do."""

    def stored(self, engine: int, chain: Sequence[int], begin: int, now: float) -> None:
        """Hear that the blocks of `chain` from number `begin` on can be found."""

    def removed(self, engine: int, block: int, now: float) -> None:
        """Hear that the block cannot be found any more."""


class Request:
    """One request in an engine."""

    __slots__ = (
        "adapter",
        "answer",
        "arrived",
        "cached",
        "chain",
        "computed",
        "ends_at_step",
        "first_token",
        "generated",
        "number",
        "output",
        "private",
        "prompt",
        "scheduled",
    )

    def __init__(  # noqa: PLR0913 - what a request is made of
        self,
        number: int,
        *,
        chain: list[int],
        answer: list[int],
        prompt: int,
        output: int,
        adapter: int,
        arrived: float,
    ) -> None:
        self.number = number
        self.chain = chain  # blocks of the prompt
        self.answer = answer  # blocks that the answer completes
        self.prompt = prompt  # tokens
        self.output = output  # tokens
        self.adapter = adapter  # 0: the base model
        self.arrived = arrived
        self.cached = -1  # prompt tokens found in the cache; -1: not admitted yet
        self.computed = 0
        self.scheduled = 0
        self.generated = 0  # before it gave way for the last time
        self.private = 0  # tokens that are in no block of the chain, when its prompt was computed
        self.ends_at_step = 0
        self.first_token = -1.0


class Engine:
    """One engine. `add` and `wake` are told the time; `wakes_at` says when it has to be woken."""

    def __init__(self, place: int, shape: Group, *, block_tokens: int, listeners: Sequence[Listener] = ()) -> None:
        self.place = place
        self.wakes_at = NEVER
        self.waiting: deque[Request] = deque()
        self.busy_s = 0.0
        self.computed_tokens = 0
        self.preemptions = 0
        self._shape = shape
        self._block = block_tokens
        self.capacity = shape.capacity
        self._decode_s = [shape.decode_s(n) for n in range(shape.max_num_seqs + 1)]
        self._listeners = listeners  # the list is its owner's, who may add to it
        # The cache: users of each findable block; those without, the least recently freed first.
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private = 0  # tokens of running sequences that are in no findable block
        # The batch.
        self._running: dict[Request, None] = {}  # in order of admission
        self._prefilling: list[Request] = []
        self._decoding = 0
        self._ending: list[tuple[int, int, Request]] = []  # heap: step, order; entries of those that gave way are stale
        self._pushed = 0
        self._step = 0
        # The stretch under way.
        self._began = 0.0
        self._count = 0
        self._step_s = 0.0

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Share of the cache that running sequences use."""
        used = len(self._users) - len(self._idle)
        return min((used * self._block + self._private) / self.capacity, 1.0)

    @property
    def findable(self) -> Collection[int]:
        """Blocks that can be found: what a replay of its events comes to."""
        return self._users.keys()

    def fits(self, prompt: int, output: int, blocks: int) -> bool:
        """Tell whether a request could ever run here."""
        return max(prompt, blocks * self._block) + output <= self.capacity

    def holds(self, chain: Sequence[int]) -> int:
        """Count the blocks at the chain's start that can be found."""
        users = self._users
        for at, block in enumerate(chain):
            if block not in users:
                return at
        return len(chain)

    def add(self, sequence: Request, now: float) -> None:
        """Take a request."""
        self.waiting.append(sequence)
        if not self._count:
            self._begin(now)
        elif self._count > 1 and len(self._running) < self._shape.max_num_seqs:
            done = max(1, ceil((now - self._began) / self._step_s - _ROUNDING)) if self._step_s else 1
            if done < self._count:
                self._count = done
                self.wakes_at = self._began + done * self._step_s

    def wake(self, now: float) -> list[Request]:
        """End the stretch and begin the next; returns the answers that are complete."""
        self.busy_s += now - self._began
        self._step += self._count
        self._private += self._decoding * self._count
        done: list[Request] = []
        if self._prefilling:
            self._prefilled(now, done)
        ending, step = self._ending, self._step
        while ending and ending[0][0] <= step:
            at, _, sequence = heapq.heappop(ending)
            if sequence.ends_at_step == at:
                sequence.ends_at_step = -1
                self._decoding -= 1
                self._leave(sequence, sequence.output - sequence.generated, now)
                done.append(sequence)
        self._begin(now)
        return done

    def _prefilled(self, now: float, done: list[Request]) -> None:
        """Count in what this step has computed; whoever is through has its first token."""
        still: list[Request] = []
        for sequence in self._prefilling:
            sequence.computed += sequence.scheduled
            self.computed_tokens += sequence.scheduled
            if sequence.computed < sequence.prompt + sequence.generated:
                still.append(sequence)
                continue
            if sequence.first_token < 0:
                sequence.first_token = now
            left = sequence.output - sequence.generated - 1
            if left <= 0:
                self._leave(sequence, 0, now)
                done.append(sequence)
            else:
                self._private += 1
                self._decoding += 1
                sequence.ends_at_step = self._step + left
                self._pushed += 1
                heapq.heappush(self._ending, (sequence.ends_at_step, self._pushed, sequence))
        self._prefilling = still

    def _begin(self, now: float) -> None:
        """Begin a stretch; `wakes_at` is its end, NEVER where there is nothing to do."""
        room = self._make_room(now)
        budget = self._shape.max_num_batched_tokens - self._decoding
        prefill_s = 0.0
        sequences = self._decoding
        for sequence in self._prefilling:
            want = min(sequence.prompt + sequence.generated - sequence.computed, budget)
            sequence.scheduled = want
            if want > 0:
                budget -= want
                sequences += 1
                prefill_s += self._shape.prefill_s(sequence.computed, sequence.computed + want)
        if room and self.waiting and budget > 0:
            seconds, admitted = self._admit(budget, now)
            prefill_s += seconds
            sequences += admitted
        self._began = now
        if not sequences:
            self._count, self.wakes_at = 0, NEVER
            return
        self._step_s = self._decode_s[sequences] + prefill_s
        self._count = 1 if sequences > self._decoding else self._until_change()
        self.wakes_at = now + self._count * self._step_s

    def _until_change(self) -> int:
        """Count the steps until an answer is complete or memory runs out."""
        ending = self._ending
        while ending[0][2].ends_at_step != ending[0][0]:
            heapq.heappop(ending)
        return max(1, min(ending[0][0] - self._step, self._free() // self._decoding))

    def _make_room(self, now: float) -> bool:
        """Have memory for a step of those that decode; False if somebody had to give way."""
        steady = True
        while self._free() < self._decoding and self._running:
            victim = next(reversed(self._running))
            self._give_way(victim)
            steady = False
        self._evict(now)
        return steady

    def _give_way(self, sequence: Request) -> None:
        self.preemptions += 1
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
            grown = 0
        else:
            self._decoding -= 1
            grown = sequence.output - sequence.generated - (sequence.ends_at_step - self._step)
        sequence.ends_at_step = -1
        self._release(sequence, sequence.chain, grown)
        sequence.generated += grown
        sequence.computed = 0
        self.waiting.appendleft(sequence)

    def _admit(self, budget: int, now: float) -> tuple[float, int]:
        seconds, admitted = 0.0, 0
        passed: list[Request] = []  # those whose adapter has no place in this batch
        while self.waiting and budget > 0 and len(self._running) < self._shape.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.adapter and not self._adapter_fits(sequence.adapter):
                passed.append(self.waiting.popleft())
                continue
            if not self._take(sequence, now):
                break
            self.waiting.popleft()
            want = min(sequence.prompt + sequence.generated - sequence.computed, budget)
            sequence.scheduled = want
            budget -= want
            seconds += self._shape.prefill_s(sequence.computed, sequence.computed + want)
            admitted += 1
        self.waiting.extendleft(reversed(passed))
        if admitted:
            self._evict(now)
        return seconds, admitted

    def _adapter_fits(self, adapter: int) -> bool:
        loaded = {one.adapter for one in self._running if one.adapter}
        return adapter in loaded or len(loaded) < self._shape.max_loras

    def _take(self, sequence: Request, now: float) -> bool:
        """Give a sequence its memory; False if there is not enough."""
        users, idle, chain = self._users, self._idle, sequence.chain
        hit = self.holds(chain)
        block = self._block
        total = sequence.prompt + sequence.generated
        private = max(0, total - len(chain) * block)
        unused = sum(1 for one in chain[:hit] if not users[one])
        if (len(chain) - hit + unused) * block + private > self._free():
            return False
        for one in chain[:hit]:
            if not users[one]:
                del idle[one]
            users[one] += 1
        for one in chain[hit:]:
            users[one] = 1
        if hit < len(chain):
            for listener in self._listeners:
                listener.stored(self.place, chain, hit, now)
        size = self._shape.block_size
        cached = min(hit * block, (total - 1) // size * size)
        sequence.computed = cached
        if sequence.cached < 0:
            sequence.cached = min(cached, sequence.prompt)
        sequence.private = private
        self._private += private
        self._running[sequence] = None
        self._prefilling.append(sequence)
        return True

    def _leave(self, sequence: Request, grown: int, now: float) -> None:
        """Let a complete answer go; its blocks stay findable."""
        chain = sequence.chain
        if sequence.answer:
            users = self._users
            full = sequence.prompt // self._block
            chain = chain[:full] + sequence.answer
            for one in sequence.chain[full:]:
                self._free_block(one)
            for one in sequence.answer:
                users[one] = users.get(one, 0) + 1
                self._idle.pop(one, None)
            for listener in self._listeners:
                listener.stored(self.place, chain, full, now)
        self._release(sequence, chain, grown)

    def _release(self, sequence: Request, chain: list[int], grown: int) -> None:
        """Stop using blocks, the end of the chain before its beginning, and `grown` tokens of an answer."""
        users, idle = self._users, self._idle
        for one in reversed(chain):
            left = users[one] - 1
            users[one] = left
            if not left:
                idle[one] = None
        self._private -= sequence.private + grown
        del self._running[sequence]

    def _free_block(self, block: int) -> None:
        self._users[block] -= 1
        if not self._users[block]:
            self._idle[block] = None

    def _free(self) -> int:
        """Tokens that nobody uses; some of them may hold findable blocks."""
        return self.capacity - (len(self._users) - len(self._idle)) * self._block - self._private

    def _evict(self, now: float) -> None:
        """Give up findable blocks whose memory is in use otherwise."""
        over = len(self._users) * self._block + self._private - self.capacity
        for _ in range(ceil(over / self._block)):
            if not self._idle:
                break
            block, _none = self._idle.popitem(last=False)
            del self._users[block]
            for listener in self._listeners:
                listener.removed(self.place, block, now)
