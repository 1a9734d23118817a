from __future__ import annotations

import json
import random
import sysconfig
from array import array
from pathlib import Path

import pytest

from extproc.errors import Busy
from extproc.tokens import chain
from extproc.tokens.blocks import Bounds, Counts, TokenBlocks
from extproc.tokens.text import TextBlocks
from extproc.types import Api, Prefix, Unread
from tests.director.stage import Stage, a_chat, told
from tests.tokens import tiny
from tests.tokens.test_prompts import a_request, turn

EXPLAIN = {"x-matrixinfer-explain": "1"}
WORDS = (Path(sysconfig.get_path("stdlib")) / "subprocess.py").read_text()


class Shelf:
    """Tokenizers by model."""

    remote = None

    def __init__(self, **tokenizers):
        self.tokenizers = tokenizers
        self.faults = []

    def find(self, model):
        return self.tokenizers.get(model)

    def fault(self, model, fault):
        self.faults.append((model, fault.reason))


def some_blocks(tokenizer=None, **bounds):
    return TokenBlocks(Shelf(demo=tokenizer or tiny.a_model()), TextBlocks(), Bounds(**bounds), Counts())


def fresh(length, seed):
    lines = WORDS.splitlines(keepends=True)
    return "".join(random.Random(seed).choices(lines, k=length // 10))[:length]


def finished(found):
    return found.read(found.work()) if isinstance(found, Unread) else found


def test_a_short_prompt_is_its_tokens_at_once():
    tokenizer = tiny.a_model()
    body = {"messages": [turn("The quick brown fox jumps over the lazy dog. " * 4)]}
    blocks = some_blocks(tokenizer, block_tokens=8)

    prefix = blocks.prefix(a_request(body), "demo")

    ids = tokenizer.encoder.ids(tokenizer.prompt(a_request(body)).text)
    opening = len(tokenizer.encoder.ids("<|im_start|>assistant\n"))
    hashes = chain.chain(ids, chain.root("demo"), 8)
    lasting = (len(ids) - opening) // 8
    assert prefix == Prefix(hashes, 8, len(ids), exact=True, lasting=lasting, words=array("Q", hashes))


def test_long_unknown_text_is_read_beside_the_loop_and_known_then():
    body = {"messages": [turn(fresh(30_000, 1))]}
    blocks = some_blocks()

    first = blocks.prefix(a_request(body), "demo")
    read = finished(first)

    assert isinstance(first, Unread)
    assert blocks.prefix(a_request(body), "demo") == read
    assert blocks.counts.pending_bytes == 0
    assert read.tokens == len(tiny.a_model().encoder.ids(tiny.a_model().prompt(a_request(body)).text))


def test_the_same_unknown_text_is_encoded_once():
    tokenizer = tiny.a_model()
    encoded = []
    encode = tokenizer.encoder.encode
    tokenizer.encoder.encode = lambda texts: encoded.append(sum(map(len, texts))) or encode(texts)
    body = {"messages": [turn(fresh(30_000, 2))]}
    blocks = some_blocks(tokenizer)

    first, second = (blocks.prefix(a_request(body), "demo") for _ in range(2))
    read = [finished(one) for one in (first, second)]

    assert read[0] == read[1]
    assert encoded[-1] == 0


def test_a_sibling_whose_twin_left_encodes_for_itself():
    body = {"messages": [turn(fresh(30_000, 3))]}
    blocks = some_blocks()
    first, second = (blocks.prefix(a_request(body), "demo") for _ in range(2))

    first.otherwise()

    assert finished(second).exact
    assert blocks.counts.pending_bytes == 0


def test_too_much_waiting_text_has_text_blocks():
    blocks = some_blocks(pending_bytes=40_000)
    waiting = blocks.prefix(a_request({"messages": [turn(fresh(30_000, 4))]}), "demo")

    refused = blocks.prefix(a_request({"messages": [turn(fresh(30_000, 5))]}), "demo")

    assert (refused.tokens, refused.exact) == (None, False)
    assert blocks.counts.requests["busy"] == 1
    finished(waiting)
    assert isinstance(blocks.prefix(a_request({"messages": [turn(fresh(30_000, 5))]}), "demo"), Unread)


def test_one_text_is_never_too_long_to_wait_for():
    assert isinstance(
        some_blocks(pending_bytes=1).prefix(a_request({"messages": [turn(fresh(30_000, 9))]}), "demo"), Unread
    )


@pytest.mark.parametrize("messages", [[turn("x")] * 2001, [turn("x" * (8 << 20))]], ids=["messages", "bytes"])
def test_what_takes_the_loop_too_long_has_text_blocks(messages):
    blocks = some_blocks()

    assert blocks.prefix(a_request({"messages": messages}), "demo").tokens is None
    assert blocks.counts.requests == {"too-long": 1}


def test_token_ids_are_taken_as_they_are():
    prefix = some_blocks(block_tokens=2).prefix(a_request({"prompt": [5, 6, 7]}, Api.COMPLETIONS), "demo")

    hashes = chain.chain(chain.packed([5, 6]), chain.root("demo"), 2)
    assert prefix == Prefix(hashes, 2, 3, exact=True, words=array("Q", hashes))


def test_a_batch_counts_all_its_tokens():
    prefix = some_blocks(block_tokens=2).prefix(a_request({"prompt": [[5, 6], [7], [8, 9]]}, Api.COMPLETIONS), "demo")

    assert (len(prefix.hashes), prefix.tokens, prefix.exact) == (1, 5, False)


@pytest.mark.parametrize(
    ("model", "body", "why"),
    [
        ("other", {"messages": [turn("x")]}, "no-tokenizer"),
        ("demo", {"messages": [turn("x")], "chat_template": "y"}, "untrusted"),
        ("demo", {"messages": [turn([{"type": "odd"}])]}, "template"),
        ("demo", {"messages": [turn(3)]}, "body"),
    ],
)
def test_text_blocks_take_the_place_of_what_cannot_be_told(model, body, why):
    blocks = some_blocks()
    request = a_request(body)._replace(prefix=b"x" * 200)

    prefix = blocks.prefix(request, model)

    assert prefix == TextBlocks().prefix(request, model)
    assert blocks.counts.requests == {why: 1}


def test_text_and_tokens_share_no_hash():
    text = "aaaa" * 100
    request = a_request({"prompt": text}, Api.COMPLETIONS)._replace(prefix=text.encode())

    tokens = some_blocks().prefix(request, "demo")

    assert tokens.hashes
    assert not set(tokens.hashes) & set(TextBlocks().prefix(request, "demo").hashes)


def a_stage(**bounds):
    stage = Stage()
    stage.blocks = TokenBlocks(Shelf(demo=tiny.a_model()), TextBlocks(), Bounds(**bounds), Counts())
    stage.director.use_scheduler(stage.director._scheduler, stage.blocks)
    return stage


def test_the_director_decides_by_tokens_and_says_so():
    stage = a_stage()
    content = fresh(30_000, 6)

    decision = told(stage.director.decide(a_chat(content, headers=EXPLAIN)))

    shown = json.loads(decision.explanation)
    ids = tiny.a_model().encoder.ids(f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")
    assert shown["prefix"] == "tokens"
    assert (shown["prompt_tokens"], shown["blocks"]) == (len(ids), len(ids) // 16)


def test_a_busy_picker_decides_by_text():
    stage = a_stage()
    story = stage.director.decide(a_chat(fresh(30_000, 7), headers=EXPLAIN))
    next(story)

    with pytest.raises(StopIteration) as end:
        story.throw(Busy())

    assert json.loads(end.value.value.explanation)["prefix"] == "text"
    assert stage.blocks.counts.pending_bytes == 0


def test_a_client_that_leaves_takes_its_text_along():
    stage = a_stage()
    story = stage.director.decide(a_chat(fresh(30_000, 8)))
    next(story)
    assert stage.blocks.counts.pending_bytes > 0

    story.close()

    assert stage.blocks.counts.pending_bytes == 0


def test_the_next_turn_finds_the_endpoint_of_the_turn_before():
    stage = a_stage()
    first = told(stage.director.decide(a_chat("Tell me of foxes. " * 10)))

    for _ in range(2):
        again = told(stage.director.decide(a_chat("Tell me of foxes. " * 10, "They are red.", "And of dogs.")))
        assert again.endpoints[0] == first.endpoints[0]


def test_what_opens_the_answer_is_not_learned_where_the_next_turn_has_something_else():
    """Qwen3's template closes the thoughts that it does not want, and leaves them out of the history."""
    quiet = tiny.CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
    blocks = some_blocks(tiny.a_model(template=quiet), block_tokens=4)
    turns = [turn("Tell me of foxes."), turn("They are red.", "assistant"), turn("And of dogs.")]

    first, second = (blocks.prefix(a_request({"messages": turns[:count]}), "demo") for count in (1, 3))

    shared = sum(one == other for one, other in zip(first.hashes, second.hashes, strict=False))
    assert 0 < first.lasting <= shared < len(first.hashes)
