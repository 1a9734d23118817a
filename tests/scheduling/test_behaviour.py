"""The default profile at work: text blocks, the learned index, the table and the scheduler together, in memory."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from extproc.kvcache.index import PrefixIndex
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.scheduling.framework import Cycle
from extproc.tokens.text import TextBlocks
from tests.scheduling.builders import a_request, a_scheduler, the_default_scheduler


@dataclass
class Pool:
    """Four engines (or so) behind one scheduler; requests begin and end when a test says so."""

    scheduler: object = field(default_factory=the_default_scheduler)
    engines: int = 4
    seed: int = 1

    def __post_init__(self):
        self.table = EndpointTable(capacity=4)
        for at in range(self.engines):
            self.table.upsert(Endpoint(address=f"10.0.0.{at}:8000", pod=f"default/pod-{at}", engine="vLLM"))
        self.index = PrefixIndex()
        self.draw = random.Random(self.seed)
        self.counts = Counter()
        self.running = defaultdict(deque)  # by row: prompt tokens of its requests, oldest first
        self.hit_blocks = 0
        self.all_blocks = 0

    def begin(self, prefix):
        request = a_request(prefix, prompt_tokens=len(prefix) // 4)
        hashes = TextBlocks().chain(request, "demo")
        rows = np.array(self.table.rows(), dtype=np.intp)
        cycle = Cycle(
            request=request,
            table=self.table,
            rows=rows,
            matched=self.index.match(hashes, rows),
            blocks=len(hashes),
            now=1.0,
            draw=self.draw,
            trunk=self.index.trunk(hashes),
        )
        row = self.scheduler.schedule(cycle).rows[0]
        self.hit_blocks += int(cycle.matched[row])
        self.all_blocks += len(hashes)
        self.index.learn(hashes, row)
        self.table.inflight[row] += 1
        self.table.inflight_tokens[row] += request.prompt_tokens
        self.running[row].append(request.prompt_tokens)
        self.counts[row] += 1
        return row

    def end(self, row):
        """The oldest request of this engine ends."""
        self.table.inflight[row] -= 1
        self.table.inflight_tokens[row] -= self.running[row].popleft()

    def serve(self, prefix):
        row = self.begin(prefix)
        self.end(row)
        return row

    @property
    def hit_rate(self):
        """Share of all blocks that the chosen engine held."""
        return self.hit_blocks / self.all_blocks

    @property
    def imbalance(self):
        """The busiest engine's requests over the mean."""
        return max(self.counts.values()) / (sum(self.counts.values()) / self.engines)


def text(draw, size):
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=size))


def chat(*messages):
    """What precedes generation, as the picker sees it: the list of messages without its closing bracket."""
    listed = [{"role": role, "content": content} for role, content in messages]
    return json.dumps(listed).encode().removesuffix(b"]")


class Conversation:
    def __init__(self, seed, *, system="", first=300, answer=200, question=200):
        self.draw = random.Random(f"conversation {seed}")
        self.messages = [("system", system)] if system else []
        self.messages.append(("user", first if isinstance(first, str) else text(self.draw, first)))
        self.answer, self.question = answer, question

    @property
    def prefix(self):
        return chat(*self.messages)

    def go_on(self):
        self.messages.append(("assistant", text(self.draw, self.answer)))
        self.messages.append(("user", text(self.draw, self.question)))


SYSTEM = text(random.Random(0), 200)


def one_after_the_other(pool, conversations, turns):
    return [[turn_of(pool, one, turn) for turn in range(turns)] for one in conversations]


def turn_of(pool, conversation, turn):
    if turn:
        conversation.go_on()
    return pool.serve(conversation.prefix)


def in_turns(pool, conversations, turns):
    """Every conversation's first turn, then every second turn, in changing order; all of a turn at the same time."""
    order = random.Random(5)
    rows = {at: [] for at in range(len(conversations))}
    for turn in range(turns):
        begun = []
        for at in order.sample(range(len(conversations)), len(conversations)):
            if turn:
                conversations[at].go_on()
            row = pool.begin(conversations[at].prefix)
            rows[at].append(row)
            begun.append(row)
        for row in begun:
            pool.end(row)
    return list(rows.values())


@pytest.mark.parametrize("how", [one_after_the_other, in_turns])
@pytest.mark.parametrize("system", ["", SYSTEM], ids=["no-system-prompt", "short-system-prompt"])
@pytest.mark.parametrize("answer", [200, 4000], ids=["short-answers", "long-answers"])
def test_ten_conversations_of_five_turns_stay_where_they_began_and_spread(how, system, answer):
    pool = Pool()

    rows = how(pool, [Conversation(at, system=system, answer=answer) for at in range(10)], 5)

    assert [len(set(one)) for one in rows] == [1] * 10
    assert len(pool.counts) == 4
    assert max(pool.counts.values()) <= 15  # three conversations of ten


@pytest.mark.parametrize("how", [one_after_the_other, in_turns])
@pytest.mark.parametrize("system", ["", SYSTEM, 4 * SYSTEM], ids=["no-system-prompt", "short-one", "longer-one"])
@pytest.mark.parametrize("answer", [20, 4000], ids=["short-answers", "long-answers"])
def test_conversations_that_open_with_a_word_stay_where_they_began(how, system, answer):
    pool = Pool()
    rows = how(pool, [Conversation(at, system=system, first=f"Story {at}", answer=answer) for at in range(10)], 5)

    assert [len(set(one)) for one in rows] == [1] * 10
    assert len(pool.counts) == 4


def test_one_prompt_for_all_spreads_once_all_hold_it():
    pool = Pool()
    draw = random.Random(1)
    prompt = chat(("user", text(draw, 800)))
    running = []

    for _ in range(3000):
        if len(running) == 16:
            pool.end(running.pop(draw.randrange(16)))
        running.append(pool.begin(prompt))

    assert max(pool.counts.values()) / min(pool.counts.values()) < 1.1


def test_the_same_prompt_again_goes_where_it_was():
    pool = Pool()
    prompt = chat(("user", text(random.Random(1), 20)))

    assert len({pool.serve(prompt) for _ in range(20)}) == 1


@pytest.mark.parametrize("common", [20, 64, 100, 300, 450])
def test_prompts_that_share_a_short_beginning_only_spread(common):
    pool = Pool()
    draw = random.Random(2)
    beginning = text(draw, common)

    for _ in range(400):
        pool.serve(chat(("user", beginning + text(draw, 30))))

    assert max(pool.counts.values()) <= 102


def test_prompts_that_share_most_of_themselves_stay_together_while_the_engine_is_free():
    pool = Pool()
    draw = random.Random(2)
    beginning = text(draw, 4000)

    rows = {pool.serve(chat(("system", beginning), ("user", text(draw, 400)))) for _ in range(40)}

    assert len(rows) == 1


def test_random_placement_finds_far_less():
    prefix_aware, at_random = Pool(), Pool(scheduler=a_scheduler("random-picker"))

    for pool in (prefix_aware, at_random):
        in_turns(pool, [Conversation(at) for at in range(10)], 5)

    assert prefix_aware.hit_blocks > 1.5 * at_random.hit_blocks


@pytest.mark.parametrize("seed", range(5))
def test_cold_requests_one_at_a_time_spread_evenly(seed):
    pool = Pool(seed=seed)
    draw = random.Random(seed)

    for _ in range(400):
        pool.serve(chat(("user", text(draw, 300))))

    assert pool.imbalance == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_prompts_too_short_for_a_block_spread_evenly(seed):
    pool = Pool(seed=seed)

    for _ in range(400):
        pool.serve(b"hello")

    assert pool.imbalance == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("system", ["", SYSTEM], ids=["nothing-shared", "short-system-prompt"])
@pytest.mark.parametrize("seed", range(5))
def test_a_closed_loop_of_cold_requests_spreads_evenly(seed, system):
    pool = Pool(seed=seed)
    draw = random.Random(seed)
    running = []

    for _ in range(3000):
        if len(running) == 16:
            pool.end(running.pop(draw.randrange(16)))  # any of them: as uneven as service can be
        running.append(pool.begin(chat(("user", system + text(draw, 800)))))

    assert max(pool.counts.values()) / min(pool.counts.values()) < 1.1


def test_a_burst_within_one_scrape_interval_does_not_herd():
    pool = Pool()
    pool.table.waiting[:4] = [0, 3, 5, 4]  # the last scrape saw row 0 idle

    for at in range(40):
        pool.begin(chat(("user", text(random.Random(at), 300))))

    assert max(pool.counts.values()) <= 13  # 1.25 times the fair ten
    assert min(pool.counts.values()) >= 7


def test_a_hot_prefix_holds_no_engine_above_its_bound():
    pool = Pool()
    hot = text(random.Random(9), 6400)
    running = []
    draw = random.Random(3)

    for at in range(1000):
        if len(running) == 32:
            pool.end(running.pop(draw.randrange(32)))
        running.append(pool.begin(chat(("system", hot), ("user", text(draw, 200)))))
        if at > 100:
            assert pool.table.inflight.max() <= 10  # ceil(1.25 * 32 / 4)

    assert pool.imbalance < 1.1
    assert pool.hit_blocks > 0.9 * pool.all_blocks


def test_a_conversation_leaves_a_saturated_engine_and_stays_where_it_went():
    pool = Pool()
    conversation = Conversation(1, first=3000)
    home = pool.serve(conversation.prefix)
    pool.table.inflight[home] = 40

    conversation.go_on()
    refuge = pool.serve(conversation.prefix)
    pool.table.inflight[home] = 0
    conversation.go_on()

    assert refuge != home
    assert pool.serve(conversation.prefix) == refuge


def test_a_slow_engine_gets_less():
    pool = Pool()
    draw = random.Random(4)
    running = []

    for _ in range(2000):
        if len(running) == 24:
            fast = [at for at, row in enumerate(running) if row != 0]
            pool.end(running.pop(draw.choice(fast) if draw.random() < 0.95 and fast else 0))
        running.append(pool.begin(chat(("user", text(draw, 300)))))

    assert pool.counts[0] < 0.6 * max(pool.counts.values())


PLACING = [
    ("lmetric-scorer",),
    ("dynamo-cost-scorer",),
    ("prefix-cache-affinity-filter", "token-load-scorer"),
]


@pytest.mark.parametrize("plugins", PLACING, ids=lambda one: one[0])
def test_each_way_of_placing_finds_what_random_does_not_and_spreads(plugins):
    placing, at_random = Pool(scheduler=a_scheduler(*plugins)), Pool(scheduler=a_scheduler("random-picker"))

    for pool in (placing, at_random):
        in_turns(pool, [Conversation(at, first=8000, answer=400) for at in range(16)], 5)

    assert placing.hit_rate > 1.3 * at_random.hit_rate
    assert placing.imbalance < 1.1


@pytest.mark.parametrize("plugins", PLACING, ids=lambda one: one[0])
def test_each_way_of_placing_leaves_a_hot_engine(plugins):
    pool = Pool(scheduler=a_scheduler(*plugins))
    conversation = Conversation(1, first=3000)
    home = pool.serve(conversation.prefix)
    pool.table.inflight[home], pool.table.inflight_tokens[home] = 60, 400_000

    conversation.go_on()

    assert pool.serve(conversation.prefix) != home


def test_what_an_engine_held_is_forgotten_when_it_leaves():
    pool = Pool()
    conversation = Conversation(1)
    home = pool.serve(conversation.prefix)
    address = pool.table.address(home)

    pool.index.forget(pool.table.remove(address))
    pool.table.upsert(Endpoint(address="10.0.9.9:8000", pod="default/new", engine="vLLM"))
    conversation.go_on()
    pool.serve(conversation.prefix)

    assert pool.hit_blocks == 0
