"""Our token ids against a live vLLM's: `/tokenize` and the render endpoints say what the engine would prefill.

`make test-engines` starts the engine; VLLM_URL names it and VLLM_MODEL the folder with its tokenizer. Its chat template is
what the engine itself says it is.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from extproc.adapters import tokens_files
from extproc.plugins.token_producer import TokenizerOf
from extproc.tokens.memo import Memo
from extproc.tokens.model import Fault, ModelTokenizer
from extproc.tokens.remote import Remote
from extproc.types import Api
from tests.tokens.test_prompts import a_request, turn

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif("VLLM_URL" not in os.environ, reason="VLLM_URL names no live vLLM"),
]

STRINGS = (
    "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools | tojson }}{{ documents | tojson }}"
    "{{ mood | default('none') }}{{ reasoning_effort }}{{ enable_thinking }}{{ add_generation_prompt }}{{ eos_token }}"
)
PARTS = "{% for m in messages %}{% for c in m['content'] %}{{ c | tojson }}{% endfor %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}"
TOOL = {
    "type": "function",
    "function": {
        "description": "looks <up> & says »so«",
        "name": "look",
        "strict": True,
        "parameters": {"type": "object", "properties": {"what": {"type": "string", "x": 1.50}}, "required": []},
        "odd": 1,
    },
}
CALL = {
    "type": "function",
    "index": 0,
    "id": "call_1",
    "function": {"name": "look", "arguments": '{"what": "é", "n": 1.0, "list": [1, null]}', "odd": 1},
}
CHATS = {
    "hello": {"messages": [turn("hello world")]},
    "system": {
        "messages": [
            turn("Be brief.", "system", name="boss", odd=1),
            turn("Hi"),
            turn("Yes?", "assistant"),
            turn("é 漢字 🙂"),
        ]
    },
    "parts": {
        "messages": [
            turn(
                [
                    {"type": "text", "text": "a", "cache_control": {"x": 1}},
                    {"type": "text", "text": ""},
                    {"type": "text", "text": "b"},
                ]
            )
        ]
    },
    "billing": {"messages": [turn("x-anthropic-billing-header: 7\nBe brief.", "system"), turn("Hi")]},
    "tools": {
        "messages": [
            turn("What?"),
            turn(None, "assistant", tool_calls=[CALL], reasoning="hm"),
            turn([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "tool", tool_call_id="call_1"),
        ],
        "tools": [TOOL],
    },
    "odd arguments": {
        "messages": [
            turn(None, "assistant", tool_calls=[{**CALL, "function": {"name": "f", "arguments": arguments}}])
            for arguments in ("", "nonsense", "[1]", '"x"')
        ]
    },
    "empty calls": {"messages": [turn("x", "assistant", tool_calls=[])]},
    "developers": {"messages": [turn("one", "developer"), turn("x"), turn("two", "developer")]},
    "no generation": {"messages": [turn("x")], "add_generation_prompt": False},
    "continued": {
        "messages": [turn("x"), turn("Well, then", "assistant")],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "kwargs": {"messages": [turn("x")], "chat_template_kwargs": {"mood": "<&>", "enable_thinking": True, "unread": 1}},
    "special": {"messages": [turn("x")], "add_special_tokens": True},
    "tokens in text": {"messages": [turn("a <|end|><|begin|>user\nb <|pad|> c")]},
    "long": {
        "messages": [
            turn("The quick brown fox\njumps over the lazy dog. " * 120),
            turn("A\n\nb  c\td\r\n" * 80, "assistant"),
            turn("?"),
        ]
    },
}
ANTHROPIC = {
    "hello": {"messages": [turn("hello")]},
    "system": {
        "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "Be brief."}],
        "messages": [turn("x")],
    },
    "later system": {"system": "a", "messages": [turn("x"), turn("b", "system"), turn("y", "assistant"), turn("z")]},
    "tools": {
        "messages": [
            turn("What?"),
            turn(
                [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"b": 1, "a": "é"}},
                ],
                "assistant",
            ),
            turn(
                [
                    {"type": "text", "text": "Here: "},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "r1"}, {"type": "text", "text": "r2"}],
                    },
                    {"type": "text", "text": "So?"},
                ]
            ),
            turn([{"type": "tool_use", "id": "t2", "name": "look", "input": {}}], "assistant"),
            turn([{"type": "tool_result", "tool_use_id": "t2", "content": "plain"}]),
        ],
        "tools": [{"name": "look", "description": "looks", "input_schema": {"properties": {}}}],
        "tool_choice": {"type": "none"},
    },
    "no thinking": {"messages": [turn("x")], "thinking": {"type": "disabled"}},
    "effort": {"messages": [turn("x")], "output_config": {"effort": "low"}},
}
RESPONSES = {
    "hello": {"input": "hello", "instructions": "Be brief."},
    "items": {
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "What?"}, {"type": "input_text", "text": "And?"}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'},
            {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "r1"},
            {"type": "function_call_output", "call_id": "c2", "output": "r2"},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Rain.", "annotations": []}],
            },
            {"role": "user", "content": "Thanks"},
        ],
        "tools": [
            {
                "type": "function",
                "name": "look",
                "description": "looks",
                "parameters": {"type": "object"},
                "strict": True,
            }
        ],
        "tool_choice": "none",
    },
    "effort": {"input": "x", "reasoning": {"effort": "high"}},
    "unfinished": {
        "input": [
            {"role": "user", "content": "Count."},
            {
                "type": "message",
                "id": "msg_1",
                "status": "incomplete",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "One, two", "annotations": []}],
            },
        ]
    },
}


def post(path, body):
    request = urllib.request.Request(  # noqa: S310 - our own engine
        os.environ["VLLM_URL"] + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from None


def ids(found):
    """Token ids in a render endpoint's answer, wherever they are."""
    if isinstance(found, dict):
        for key in ("token_ids", "prompt_token_ids"):
            if found.get(key):
                return found[key]
        found = list(found.values())
    if isinstance(found, list):
        return next((one for each in found if isinstance(each, dict | list) if (one := ids(each))), None)
    return None


@pytest.fixture(scope="module")
def tokenizer():
    with urllib.request.urlopen(os.environ["VLLM_URL"] + "/tokenizer_info", timeout=60) as answer:  # noqa: S310
        template = json.load(answer)["chat_template"]
    source = tokens_files.Source(Path(os.environ["VLLM_MODEL"]), TokenizerOf(model="tiny", source=""))
    files = tokens_files.read(source)
    files = type(files)(
        files.tokenizer, files.tokenizer_config, config=files.config, templates=(("default", template),)
    )
    return ModelTokenizer(files, memo=Memo(), number=1, strftime_now=str, trusts_templates=True)


def ours(tokenizer, body, api=Api.CHAT):
    prompt = tokenizer.prompt(a_request(body, api))
    made = prompt.ids if prompt.ids is not None else tokenizer.encoder.ids(prompt.text)
    return tokenizer.around(made, prompt).tolist()


@pytest.mark.parametrize("template", [None, STRINGS, PARTS], ids=["own", "strings", "parts"])
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_has_the_ids_of_tokenize(tokenizer, name, template):
    body = {"model": "tiny", **CHATS[name], **({"chat_template": template} if template else {})}
    if name == "continued" and template == STRINGS:
        pytest.skip("the template does not name the content, and the engine refuses to continue it")

    assert ours(tokenizer, body) == post("/tokenize", body)["tokens"]


@pytest.mark.parametrize("name", CHATS)
def test_what_engines_are_asked_where_there_is_no_tokenizer_gives_the_same_ids(tokenizer, name):
    body = {"model": "tiny", **CHATS[name]}

    question = Remote(lambda _model: "http://engine", print).question(a_request(body), "tiny")

    assert post("/tokenize", json.loads(question.call.body))["tokens"] == ours(tokenizer, body)


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_has_the_ids_that_are_prefilled(tokenizer, name):
    body = {"model": "tiny", "max_tokens": 1, "tool_choice": "none", **CHATS[name]}

    assert ours(tokenizer, body) == post("/v1/chat/completions", {**body, "return_token_ids": True})["prompt_token_ids"]


@pytest.mark.parametrize(
    "more",
    [{"documents": [{"title": "t", "text": "é"}]}, {"reasoning_effort": "none"}, {"reasoning_effort": "high"}],
    ids=["documents", "none", "high"],
)
def test_fields_of_chats_reach_the_template(tokenizer, more):
    body = {"model": "tiny", "max_tokens": 1, "messages": [turn("x")], "chat_template": STRINGS, **more}

    assert ours(tokenizer, body) == post("/v1/chat/completions", {**body, "return_token_ids": True})["prompt_token_ids"]


@pytest.mark.parametrize("name", ANTHROPIC)
def test_an_anthropic_body_has_the_ids_that_are_rendered(tokenizer, name):
    body = {"model": "tiny", "max_tokens": 1, **ANTHROPIC[name]}

    assert ours(tokenizer, body, Api.MESSAGES) == ids(post("/v1/messages/render", body))


@pytest.mark.parametrize("name", RESPONSES)
def test_a_responses_body_has_the_ids_that_are_rendered(tokenizer, name):
    body = {"model": "tiny", "max_output_tokens": 1, **RESPONSES[name]}

    assert ours(tokenizer, body, Api.RESPONSES) == ids(post("/v1/responses/render", body))


@pytest.mark.parametrize(
    "prompt", ["hello world", " leading", "a <|end|> b", "é 漢字 🙂\n\n" * 50, [5, 6, 7]], ids=repr
)
def test_a_completion_has_the_ids_that_are_prefilled(tokenizer, prompt):
    body = {"model": "tiny", "max_tokens": 1, "prompt": prompt}

    found = post("/v1/completions", {**body, "return_token_ids": True})["choices"][0]["prompt_token_ids"]

    assert ours(tokenizer, body, Api.COMPLETIONS) == found


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages.append(1) }}", "{% for"])
def test_what_the_engine_refuses_has_no_ids(tokenizer, template):
    body = {"model": "tiny", "messages": [turn("x")], "chat_template": template}

    with pytest.raises(AssertionError, match=r" 4| 5"):
        post("/tokenize", body)
    with pytest.raises(Fault):
        ours(tokenizer, body)
