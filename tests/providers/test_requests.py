"""Requests in the words of the other API: what is translated, what is refused by name, what is passed over."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.providers import chat_to_messages, messages_to_chat
from extproc.providers.note import read
from extproc.types import Usage
from tests.providers.builders import CHAT, MESSAGES, sent, translated

PIXEL = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city":"Oslo"}'}},
        {"id": "c2", "type": "function", "function": {"name": "f", "arguments": ""}},
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "cold"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "warm"}]},
    {"role": "user", "content": "And now?"},
]  # fmt: skip


def test_a_conversation_becomes_turns():
    made = translated(CHAT, messages=CONVERSATION)

    assert made["system"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    assert [turn["role"] for turn in made["messages"]] == ["user", "assistant", "user"]
    assert made["messages"][0]["content"][1]["source"] == {"type": "base64", "media_type": "image/png", "data": PIXEL}
    assert made["messages"][1]["content"] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
    ]
    assert made["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "cold"},
        {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "warm"}]},
        {"type": "text", "text": "And now?"},
    ]


def test_turns_become_a_conversation():
    anthropic = translated(CHAT, messages=CONVERSATION)

    back = translated(MESSAGES, messages=anthropic["messages"], system=anthropic["system"])["messages"]

    assert back[0] == {"role": "system", "content": anthropic["system"]}
    assert back[1]["content"][1] == CONVERSATION[2]["content"][1]
    assert back[2]["tool_calls"][0] == CONVERSATION[3]["tool_calls"][0]
    assert back[3:5] == CONVERSATION[4:6]
    assert back[5] == {"role": "user", "content": [{"type": "text", "text": "And now?"}]}


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ({}, {"max_tokens": 4096}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 3}, {"temperature": 0.5, "top_p": 0.9, "top_k": 3}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"tools": [FUNCTION]}, {"tools": [TOOL]}),
        ({"tools": [FUNCTION], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": {"type": "any"}}),
        ({"tools": [FUNCTION], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": {"type": "none"}}),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": [FUNCTION], "parallel_tool_calls": False},
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        ({"n": 1, "logprobs": False, "presence_penalty": 0.0, "response_format": {"type": "text"}}, {}),
        ({"seed": 3, "store": False, "service_tier": "auto", "n": None}, {}),
    ],
)
def test_what_chat_asks_is_asked_of_anthropic(body, made):
    found = translated(CHAT, **body)

    assert found == {"model": "ours", "max_tokens": 4096, "messages": found["messages"], **made}


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ({}, {}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"stop_sequences": ["a"]}, {"stop": ["a"]}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": False},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        ({"thinking": {"type": "disabled"}, "service_tier": "auto"}, {}),
    ],
)
def test_what_messages_ask_is_asked_of_openai(body, made):
    found = translated(MESSAGES, **body)

    assert found == {"model": "ours", "max_completion_tokens": 10, "messages": found["messages"], **made}


def test_a_result_that_is_an_error_says_so():
    blocks = [{"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": "no such city"}]

    found = translated(MESSAGES, messages=[{"role": "user", "content": blocks}])

    assert found["messages"] == [{"role": "tool", "tool_call_id": "c", "content": "Error: no such city"}]


def refused(translate, body):
    """The field that a refusal names; None if there is none."""
    try:
        translate(dict(body))
    except errors.BadRequest as refusal:
        return refusal.param or ""
    return None


def message(**fields):
    return {"messages": [{"role": "user", "content": "Hello"}, fields]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"n": 2}, "n"),
        (CHAT, {"temperature": 1.5}, "temperature"),
        (CHAT, {"logprobs": True}, "logprobs"),
        (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty"),
        (CHAT, {"logit_bias": {"1": 2}}, "logit_bias"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
        (CHAT, {"something_new": 1}, "something_new"),
        (CHAT, {"tools": [{"type": "custom"}]}, "tools[0].type"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        (CHAT, message(role="system", content="late"), "messages[1].role"),
        (CHAT, message(role="function", content="x"), "messages[1].role"),
        (CHAT, message(role="user", content=[{"type": "input_audio"}]), "messages[1].content[0].type"),
        (CHAT, message(role="assistant", function_call={}), "messages[1].function_call"),
        (
            CHAT,
            message(role="assistant", tool_calls=[{"id": "c", "function": {"name": "f", "arguments": "[1]"}}]),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (CHAT, {"messages": ["Hello"]}, "messages"),
        (CHAT, {"messages": [{"role": "system", "content": "alone"}]}, "messages"),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        (MESSAGES, {"top_k": 3}, "top_k"),
        (MESSAGES, {"max_tokens": None}, "max_tokens"),
        (MESSAGES, {"mcp_servers": []}, "mcp_servers"),
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        (MESSAGES, {"tool_choice": {"type": "any"}}, "tool_choice"),
        (MESSAGES, message(role="assistant", content="The answer is"), "messages"),
        (MESSAGES, message(role="user", content=[{"type": "document"}]), "messages[1].content[0].type"),
        (
            MESSAGES,
            message(role="user", content=[{"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "c"}]),
            "messages[1].content[1]",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(path, body, param):
    with pytest.raises(errors.BadRequest) as refused:
        translated(path, **body)

    assert refused.value.param == param


def test_the_same_api_keeps_every_byte_but_the_model():
    body = {"messages": [{"role": "user", "content": "Hé"}], "n": 3, "anything": [1]}

    made = sent(CHAT, "OpenAI", spec={"model": "theirs"}, **body)

    assert json.loads(made.body) == {"model": "theirs", **body}
    assert sent(CHAT, "OpenAI", **body).body is None


def test_a_stream_of_the_same_api_is_asked_for_usage_at_its_end_only():
    made = sent(CHAT, "OpenAI", stream=True, messages=[{"role": "user", "content": "x"}])

    assert json.loads(made.body)["stream_options"] == {"include_usage": True}
    assert made.usage is Usage.HIDE_ALL


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("https://api.example.com", "/v1/chat/completions"),
        ("https://api.example.com/v1", "/v1/chat/completions"),
        ("https://api.example.com/openai/v1/", "/openai/v1/chat/completions"),
        ("https://api.example.com/gateway", "/gateway/v1/chat/completions"),
    ],
)
def test_the_path_goes_behind_that_of_the_base(base, path):
    note = read(sent(CHAT, spec={"baseURL": base}, messages=[{"role": "user", "content": "x"}]).note)

    assert (note.path, note.host) == (path, "api.example.com")


@pytest.mark.parametrize(
    ("path", "type_"), [("/v1/completions", "Anthropic"), ("/tokenize", "OpenAI"), ("/v1/embeddings", "Anthropic")]
)
def test_a_path_that_the_provider_does_not_know_is_refused(path, type_):
    with pytest.raises(errors.BadRequest, match="does not know"):
        sent(path, type_, prompt="x", input="x")


def test_counting_tokens_is_not_asked_of_openai():
    with pytest.raises(errors.BadRequest, match="does not know"):
        sent("/v1/messages/count_tokens", "OpenAI", messages=[{"role": "user", "content": "x"}])


TEXT = st.text(min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(TEXT, st.one_of(st.integers(-9, 9), TEXT), max_size=2)


@st.composite
def turns(draw):
    """A conversation of Anthropic's API in the form that both translations give."""
    made = []
    for number in range(draw(st.integers(1, 3))):
        made.append(
            {
                "role": "user",
                "content": [{"type": "text", "text": text} for text in draw(st.lists(TEXT, min_size=1, max_size=2))],
            }
        )
        said = [{"type": "text", "text": draw(TEXT)}] if draw(st.booleans()) else []
        calls = [
            {"type": "tool_use", "id": f"c{number}-{at}", "name": draw(TEXT), "input": draw(ARGUMENTS)}
            for at in range(draw(st.integers(0 if said else 1, 2)))
        ]
        made.append({"role": "assistant", "content": said + calls})
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": draw(TEXT)} for call in calls]
        made.append({"role": "user", "content": [*results, {"type": "text", "text": draw(TEXT)}]})
        made.append({"role": "assistant", "content": [{"type": "text", "text": draw(TEXT)}]})
    return [*made, {"role": "user", "content": [{"type": "text", "text": draw(TEXT)}]}]


@given(turns(), st.text(max_size=5))
def test_there_and_back_a_conversation_is_the_same(messages, system):
    body = {"model": "m", "max_tokens": 9, "messages": messages} | (
        {"system": [{"type": "text", "text": system}]} if system else {}
    )

    chat = messages_to_chat.translated(body, model="m")
    back = chat_to_messages.translated(chat, model="m", max_tokens=1)

    assert back == body


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "role",
                        "content",
                        "text",
                        "image_url",
                        "url",
                        "tool_calls",
                        "function",
                        "name",
                        "arguments",
                        "id",
                        "source",
                        "input",
                        "tool_use_id",
                        "tool_call_id",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_a_client_sends_is_translated_or_refused(junk):
    for key in ("messages", "tools", "tool_choice", "system", "stop", "metadata", "thinking", "user"):
        base = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], key: junk}
        for one in (
            lambda body: chat_to_messages.translated(body, model="m", max_tokens=1),
            lambda body: messages_to_chat.translated(body, model="m"),
        ):
            assert refused(one, base) != ""
