from __future__ import annotations

import json

import pytest

from extproc.adapters.errands import Errands
from extproc.tokens.blocks import Bounds, Counts, TokenBlocks
from extproc.tokens.remote import Remote
from extproc.tokens.text import TextBlocks
from extproc.types import Api, Called, Unread
from tests.simulator.running import Simulator
from tests.tokens.test_prompts import a_request, turn

HELLO = {"model": "asked for", "messages": [turn("hello")], "temperature": 0}


class Bare:
    """Nobody has a tokenizer; engines may be asked."""

    def __init__(self, remote):
        self.remote = remote

    def find(self, _model):
        return None


def a_remote(url="http://engine", failures=None, **options):
    return Remote(lambda _model: url, lambda *what: failures.append(what), **options)


def some_blocks(remote):
    return TokenBlocks(Bare(remote), TextBlocks(), Bounds(block_tokens=2), Counts())


def test_a_chat_is_asked_for_under_the_engines_name():
    question = a_remote().question(a_request({**HELLO, "tools": [], "add_generation_prompt": False}), "engine's")

    assert (question.call.method, question.call.url) == ("POST", "http://engine/tokenize")
    assert json.loads(question.call.body) == {
        "model": "engine's",
        "messages": [turn("hello")],
        "tools": [],
        "add_generation_prompt": False,
    }


def test_a_text_is_asked_for_with_its_special_tokens():
    question = a_remote().question(a_request({"prompt": "hello"}, Api.COMPLETIONS), "m")

    assert json.loads(question.call.body) == {"model": "m", "prompt": "hello", "add_special_tokens": True}


@pytest.mark.parametrize(
    ("body", "api"),
    [
        ({"messages": [turn("x")], "reasoning_effort": "low"}, Api.CHAT),
        ({"messages": [turn("x")], "documents": []}, Api.CHAT),
        ({"messages": [turn([{"type": "image_url", "image_url": {"url": "x"}}])]}, Api.CHAT),
        ({"messages": [turn("x", "assistant", reasoning_content="y")]}, Api.CHAT),
        ({"messages": "x"}, Api.CHAT),
        ({"prompt": ["a", "b"]}, Api.COMPLETIONS),
        ({"messages": [turn("x")]}, Api.MESSAGES),
        ({"input": "x"}, Api.RESPONSES),
        ({"prompt": "x" * (1 << 20)}, Api.COMPLETIONS),
    ],
)
def test_what_might_not_be_exact_is_not_asked(body, api):
    assert a_remote().question(a_request(body, api), "m") is None


def test_an_answer_is_remembered():
    blocks = some_blocks(a_remote())
    unread = blocks.prefix(a_request(HELLO), "m")

    read = unread.read(Called(200, b'{"tokens": [1, 2, 3], "count": 3}'))

    assert (read.tokens, read.exact, len(read.hashes)) == (3, True, 1)
    assert blocks.prefix(a_request({**HELLO, "temperature": 1}), "m") == read


@pytest.mark.parametrize(
    ("called", "failed"),
    [
        (Called(0, b"", "timeout"), True),
        (Called(500, b"{}"), True),
        (Called(200, b"no json"), True),
        (Called(200, b"[]"), True),
        (Called(200, b'{"tokens": [-1]}'), True),
        (Called(400, b"{}"), False),
    ],
)
def test_without_an_answer_there_are_text_blocks(called, failed):
    failures = []
    blocks = some_blocks(a_remote(failures=failures))
    request = a_request(HELLO)._replace(prefix=b"x" * 100)

    read = blocks.prefix(request, "m").read(called)

    assert read == TextBlocks().prefix(request, "m")
    assert blocks.counts.requests == {"no-answer": 1}
    assert bool(failures) == failed


def test_few_questions_are_open_at_once():
    remote = a_remote(most=2)
    blocks = some_blocks(remote)
    first, second, third = (blocks.prefix(a_request({**HELLO, "messages": [turn(str(n))]}), "m") for n in range(3))

    assert [isinstance(one, Unread) for one in (first, second, third)] == [True, True, False]
    first.otherwise()
    second.read(Called(200, b'{"tokens": []}'))
    assert remote.asking == 0


def test_an_engine_that_is_left_alone_is_not_asked():
    assert a_remote(url="").question(a_request(HELLO), "m") is None


async def test_an_engine_is_asked_and_answers():
    async def ids(text):
        unread = some_blocks(remote).prefix(a_request({"prompt": text}, Api.COMPLETIONS), "demo")
        return unread.read(await errands.run(unread.work))

    with Simulator() as engine:
        remote, errands = a_remote(url=engine.url, timeout_s=5), Errands()
        try:
            first, longer = [await ids("one two three"), await ids("one two three four five six seven")]
        finally:
            await errands.calls.close()
            errands.close()

    assert first.exact
    assert longer.tokens > first.tokens
    assert longer.hashes[: len(first.hashes) - 1] == first.hashes[:-1]
