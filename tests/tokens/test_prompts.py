from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.tokens import conversation
from extproc.tokens.model import Fault
from extproc.tokens.template import ChatTemplate, TemplateFault
from extproc.types import Api, InferenceRequest
from tests.tokens import tiny

DUMP = "{% for message in messages %}{{ message | tojson }}\n{% endfor %}{{ tools | tojson }}"
SNIPPETS = (
    "{{ messages }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content.__class__ }}",
    "{% if x %}",
    "{% endif %}",
    "{{ [].__class__.__base__.__subclasses__() }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "text",
    "{#",
    "{{ self.__init__ }}",
    "{{ messages.clear() }}",
    "{% set messages = 1 %}",
    "{{ tools | tojson }}",
    "{% raw %}",
)
SHOUT = "{{ raise_exception('no: ' ~ messages[0].content) }}"


def a_request(body, api=Api.CHAT, path="/v1/chat/completions"):
    return InferenceRequest(
        id="1",
        api=api,
        path=path,
        headers={},
        model="demo",
        stream=False,
        prefix=b"",
        prompt_tokens=1,
        max_tokens=None,
        wants_usage=False,
        cache_salt="",
        body=json.dumps(body).encode(),
    )


def rendered(body, template=tiny.CHATML, api=Api.CHAT, **options):
    return tiny.a_model(template=template, **options).prompt(a_request(body, api)).text


def turn(content, role="user", **more):
    return {"role": role, "content": content, **more}


def test_a_chat_is_rendered_with_the_generation_prompt():
    assert rendered({"messages": [turn("Hi")]}) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_without_the_generation_prompt_if_asked():
    assert rendered({"messages": [turn("Hi")], "add_generation_prompt": False}) == "<|im_start|>user\nHi<|im_end|>\n"


def test_the_final_message_is_left_open_to_be_continued():
    body = {"messages": [turn("Hi"), turn("Well, ", "assistant")], "continue_final_message": True}

    assert rendered({**body, "add_generation_prompt": False}).endswith("<|im_start|>assistant\nWell, ")


def test_parts_of_text_are_lines_of_a_string_where_the_template_takes_strings():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": ""}, "b", {"type": "input_text", "text": "c"}]

    assert "user\na\nb\nc<|im_end|>" in rendered({"messages": [turn(parts)]})


def test_strings_are_parts_where_the_template_walks_over_parts():
    template = "{% for m in messages %}{% for part in m['content'] %}[{{ part | tojson }}]{% endfor %}{% endfor %}"
    content = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, "b"]

    assert rendered({"messages": [turn("x"), turn(content)]}, template) == (
        '[{"type": "text", "text": "x"}][{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]'
        '[{"type": "text", "text": "b"}]'
    )


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (tiny.CHATML, "string"),
        (tiny.PARTS, "openai"),
        ("{% for m in messages[1:] %}{% for c in m.content | list %}{% endfor %}{% endfor %}", "openai"),
        ("{% set rest = messages %}{% for m in rest %}{% for c in m['content'] %}{% endfor %}{% endfor %}", "openai"),
        (
            "{% macro show(what) %}{% for c in what %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            "openai",
        ),
        (
            "{% macro show(what) %}{% for c in what %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.role) }}{% endfor %}",
            "string",
        ),
        (
            "{% for m in messages %}{% set content = m.content %}{% for c in content %}{% endfor %}{% endfor %}",
            "openai",
        ),
        (
            "{% set ns = namespace(m=0) %}{% set ns.m = messages %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
            "string",
        ),
        ("{% for m in tools %}{% for c in m['content'] %}{% endfor %}{% endfor %}", "string"),
    ],
)
def test_the_form_of_contents_is_read_off_the_template(template, form):
    assert ChatTemplate.compile(template, str).format == form


def test_tools_have_the_engines_keys_in_their_order():
    tool = {"function": {"parameters": {"b": 1, "a": 2}, "name": "f", "odd": 1}, "type": "function", "odd": 2}

    text = rendered({"messages": [turn("x")], "tools": [tool]}, DUMP)

    assert text.endswith(
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"b": 1, "a": 2}}}]'
    )


@pytest.mark.parametrize(
    ("given", "shown"),
    [('{"a": [1.0, "é"]}', '{"a": [1.0, "é"]}'), ("", "{}"), ("not json", "{}"), ("[1]", "{}"), ({"x": 1}, '{"x": 1}')],
)
def test_arguments_of_tool_calls_are_objects(given, shown):
    call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": given}}

    text = rendered({"messages": [turn(None, "assistant", tool_calls=[call])]}, DUMP)

    assert (
        f'"tool_calls": [{{"id": "c", "function": {{"arguments": {shown}, "name": "f"}}, "type": "function"}}]' in text
    )


def test_results_of_tools_are_one_string_in_every_form():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    text = rendered(
        {"messages": [turn(parts, "tool", tool_call_id="c")]}, DUMP + "{% for x in messages[0].content %}{% endfor %}"
    )

    assert '{"role": "tool", "content": "a\\nb", "tool_call_id": "c"}' in text


def test_reasoning_reaches_the_template_under_both_names():
    text = rendered({"messages": [turn("x", "assistant", reasoning_content="why")]}, DUMP)

    assert '"reasoning": "why", "reasoning_content": "why"' in text


def test_developers_become_one_system_message_where_the_template_does_not_know_them():
    messages = [turn("first", "developer"), turn("x"), turn("second", "developer")]

    assert rendered({"messages": messages}).startswith(
        "<|im_start|>system\nfirst\n\nsecond<|im_end|>\n<|im_start|>user\nx"
    )
    assert '"role": "developer"' in rendered({"messages": messages}, DUMP + "{# 'developer' #}")


def test_arguments_that_the_template_reads_are_passed_on():
    template = "{{ documents | tojson }} {{ mood }} {{ enable_thinking }} {{ reasoning_effort }} {{ bos_token }}"
    body = {"messages": [turn("x")], "documents": [{"title": "t"}], "reasoning_effort": "none"}

    text = rendered({**body, "chat_template_kwargs": {"mood": "<gay>", "bos_token": "^"}}, template)

    assert text == '[{"title": "t"}] <gay> False none ^'


def test_the_engines_default_arguments_give_way_to_the_requests():
    template = "{{ a }}{{ b }}"
    body = {"messages": [turn("x")], "chat_template_kwargs": {"b": "request"}}

    assert rendered(body, template, defaults={"a": "engine ", "b": "engine"}) == "engine request"


def test_time_is_an_argument():
    assert rendered({"messages": [turn("x")]}, "{{ strftime_now('%d') }}", now="noon") == "%d:noon"


def test_templates_go_by_name_and_tools():
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    settings_ = {"settings": {"chat_template": named}}
    tools = [{"type": "function", "function": {"name": "f"}}]

    assert rendered({"messages": [turn("x")]}, **settings_) == "plain"
    assert rendered({"messages": [turn("x")], "tools": tools}, **settings_) == "tools"
    assert (
        rendered({"messages": [turn("x")], "chat_template": "tool_use"}, trusts_templates=True, **settings_) == "tools"
    )


def test_a_request_brings_a_template_only_where_it_is_trusted():
    body = {"messages": [turn("x")], "chat_template": "mine"}

    assert rendered(body, trusts_templates=True) == "mine"
    with pytest.raises(Fault) as caught:
        rendered(body)
    assert caught.value.reason == "untrusted"


def test_generation_blocks_and_loop_controls_are_known():
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )

    assert rendered({"messages": [turn("x"), turn("y")]}, template) == "x"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (SHOUT, "no: x"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__ }}{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ undefined.attribute }}", "undefined"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for", "not valid"),
    ],
)
def test_what_fails_in_a_template_is_a_fault(template, why):
    with pytest.raises(Fault, match=why) as caught:
        rendered({"messages": [turn("x")]}, template)

    assert caught.value.reason == "template"


@settings(max_examples=60)
@given(source=st.lists(st.sampled_from(SNIPPETS), max_size=6).map("".join))
def test_any_template_renders_or_is_a_fault_and_changes_nothing(source):
    messages = [turn("x")]
    body = {"messages": messages}

    try:
        text = rendered(body, source)
    except Fault:
        text = ""

    assert messages == [{"role": "user", "content": "x"}]
    assert "<class 'object'>" not in text
    assert "subprocess" not in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    api=st.sampled_from(list(Api)),
    body=st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "prompt",
                "input",
                "tools",
                "system",
                "instructions",
                "chat_template_kwargs",
                "thinking",
                "text",
            ]
        ),
        JSON,
    ),
)
@example(Api.COMPLETIONS, {"prompt": [[], None]})
def test_any_body_gives_a_prompt_or_a_fault(api, body):
    try:
        prompt = MODEL.prompt(a_request(body, api, "/generate"))
    except Fault:
        return
    assert isinstance(prompt.text, str)


MODEL = tiny.a_model(template=tiny.PARTS)


def test_images_stand_in_the_text_by_their_content():
    def with_image(data):
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return MODEL.prompt(a_request({"messages": [turn([{"type": "text", "text": "look: "}, image])]}))

    one, other = with_image("aaaa"), with_image("bbbb")

    assert (one.exact, other.exact) == (False, False)
    assert one.text != other.text
    assert one.text == with_image("aaaa").text
    assert one.text.startswith("<|im_start|>user\nlook: ")


def test_completions_take_text_ids_and_lists_of_them():
    def completion(prompt, **more):
        found = MODEL.prompt(a_request({"prompt": prompt, **more}, Api.COMPLETIONS))
        return found.text, None if found.ids is None else found.ids.tolist(), found.special, found.exact

    assert completion("hello") == ("hello", None, True, True)
    assert completion("hello", add_special_tokens=False) == ("hello", None, False, True)
    assert completion([1, 2, 3]) == ("", [1, 2, 3], False, True)
    assert completion([[1, 2], [3]]) == ("", [1, 2], False, False)
    assert completion(["a", "b"]) == ("a", None, True, False)
    assert completion(["a"]) == ("a", None, True, True)


def test_special_tokens_are_put_around_completions_as_the_tokenizer_says():
    prompt = MODEL.prompt(a_request({"prompt": "hello"}, Api.COMPLETIONS))
    ids = MODEL.encoder.ids("hello")

    assert MODEL.around(ids, prompt).tolist() == [0, *ids.tolist()]
    assert tiny.a_model("gpt2").around(ids, prompt).tolist() == ids.tolist()
    assert tiny.a_model("gpt2", settings={"add_bos_token": True}).around(ids, prompt).tolist() == [0, *ids.tolist()]
    assert tiny.a_model(settings={"add_bos_token": False}).around(ids, prompt).tolist() == ids.tolist()


@pytest.mark.parametrize("ids", [[1, True], [1.5], [-1], [2**40], [[1], ["a"]], [None], [{}]])
def test_what_are_no_token_ids_is_a_fault(ids):
    with pytest.raises(Fault):
        MODEL.prompt(a_request({"prompt": [ids] if isinstance(ids[0], list) else ids}, Api.COMPLETIONS))


def test_anthropic_bodies_become_chats():
    body = {
        "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "Be brief."}],
        "messages": [
            turn("What is the weather?"),
            turn(
                [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                ],
                "assistant",
            ),
            turn(
                [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "So?"},
                ]
            ),
        ],
        "tools": [{"name": "f", "input_schema": {"properties": {}}}],
        "max_tokens": 5,
    }

    lines = rendered(body, DUMP, Api.MESSAGES).splitlines()

    assert [json.loads(line) for line in lines] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "t", "function": {"arguments": {"a": 1}, "name": "f"}, "type": "function"}],
            "reasoning": "hm",
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "rain", "tool_call_id": "t"},
        {"role": "user", "content": "So?"},
        [
            {
                "type": "function",
                "function": {"name": "f", "description": None, "parameters": {"properties": {}, "type": "object"}},
            }
        ],
    ]


def test_later_system_messages_come_first_where_the_template_wants_it():
    strict = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
    body = {"system": "a", "messages": [turn("u"), turn("b", "system")], "max_tokens": 1}

    assert rendered(body, strict, Api.MESSAGES) == "system:ab;user:u;"
    assert rendered(body, "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}", Api.MESSAGES) == (
        "system:a;user:u;system:b;"
    )


def test_thinking_is_switched_off_by_what_the_template_listens_to():
    body = {"messages": [turn("x")], "thinking": {"type": "disabled"}, "max_tokens": 1}

    assert rendered(body, "{{ enable_thinking }}", Api.MESSAGES) == "False"
    assert rendered(body, "{{ reasoning_effort if reasoning_effort != 'none' else 'max' }}", Api.MESSAGES) == "low"


def test_responses_become_chats():
    body = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
            {"role": "user", "content": "Thanks"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    }

    lines = rendered(body, DUMP, Api.RESPONSES).splitlines()

    assert [json.loads(line) for line in lines] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "function": {"arguments": {"a": 1}, "name": "f"}, "type": "function"}],
            "reasoning": "hm",
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "Thanks"},
        [{"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object"}}}],
    ]


def test_what_only_the_engine_knows_is_a_fault():
    with pytest.raises(Fault, match="previous_response_id"):
        rendered({"input": "x", "previous_response_id": "resp_1"}, api=Api.RESPONSES)


def test_a_conversation_extends_the_prompt_of_the_turn_before():
    messages = [turn("a"), turn("b", "assistant"), turn("c")]

    assert rendered({"messages": messages}).startswith(
        rendered({"messages": messages[:2], "add_generation_prompt": False})
    )


def test_messages_have_to_be_objects_with_roles():
    template = ChatTemplate.compile(tiny.CHATML, str)
    for messages in ([{"content": "x"}], [{"role": 1, "content": "x"}], [{"role": "user", "content": [1]}]):
        with pytest.raises(TemplateFault):
            conversation.conversation(messages, template)
