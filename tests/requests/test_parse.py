"""What a body becomes, and what is said about a body that cannot be placed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.requests import parse
from extproc.types import Api, HttpRequest, InferenceRequest

CHAT = "/v1/chat/completions"


def a_request(body, path=CHAT, method="POST", **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpRequest(method, path, {"content-type": "application/json", **headers}, raw)


def a_chat(*turns, **more):
    return {"model": "demo", "messages": [{"role": "user", "content": turn} for turn in turns], **more}


def test_a_chat_is_read():
    request = parse.parse(
        a_request(a_chat("hi", stream=True, max_tokens=7, cache_salt="s"), CHAT + "?x=1", **{"x-request-id": "r-1"})
    )

    assert (request.id, request.api, request.path, request.model) == ("r-1", Api.CHAT, CHAT, "demo")
    assert (request.stream, request.max_tokens, request.cache_salt, request.wants_usage) == (True, 7, "s", False)


def test_a_later_turn_extends_the_prefix():
    first = parse.parse(a_request(a_chat("one", tools=[{"type": "function"}]))).prefix
    later = parse.parse(a_request(a_chat("one", "two", tools=[{"type": "function"}]))).prefix

    assert later.startswith(first)
    assert len(first) > 20


def test_the_order_of_keys_does_not_change_the_prefix():
    body = a_chat("one", tools=[{"type": "function"}])
    turned = dict(reversed(body.items()))

    assert parse.parse(a_request(body)).prefix == parse.parse(a_request(turned)).prefix


def test_anthropic_system_precedes_the_messages():
    body = {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}], "system": "be brief"}

    request = parse.parse(a_request(body, "/v1/messages"))

    assert request.api is Api.MESSAGES
    assert request.prefix.startswith(b'"be brief"\n[{"role"')


@pytest.mark.parametrize(
    ("prompt", "prefix", "tokens"),
    [
        ("hello wor", b'"hello wor', 3),
        (["hello"], b'"hello', 2),
        (["ab", "cd"], b'"ab", "cd', 3),
        ([1, 2, 3], b"1, 2, 3", 3),
        ([[1, 2], [3]], b"1, 2], [3", 3),
        ([[1], [2, 3, 4], [5]], b"1], [2, 3, 4], [5", 5),
        ("", b'"', 1),
    ],
)
def test_every_form_of_a_prompt_is_read(prompt, prefix, tokens):
    request = parse.parse(a_request({"model": "demo", "prompt": prompt}, "/v1/completions"))

    assert (request.prefix, request.prompt_tokens) == (prefix, tokens)


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ({"prompt": "hello, wor"}, 1),
        ({"prompt": ["hello"]}, 1),
        ({"prompt": ["a, b", 'c", "d', "[]"]}, 3),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": "a", "prompt_embeds": ["AA==", "AA=="]}, 3),
        ({"prompt": None, "prompt_embeds": "AA=="}, 1),
        ({"prompt": ["a", "b"], "best_of": 9}, 2),
    ],
)
def test_each_prompt_of_a_list_has_its_choices(prompt, choices):
    request = parse.parse(a_request({"model": "demo", **prompt}, "/v1/completions"))

    assert request.choices == choices


@pytest.mark.parametrize(
    ("n", "choices"),
    [
        (b"3", 3),
        (b"2.0", 2),
        (b'" 4 "', 4),  # as engines read it
        (b"null", 1),
        (b"0", 1),
        (b"-2", 1),
        (b"2.5", 1),
        (b'"many"', 1),
        (b"[2]", 1),
        (b"1e999", 1),
        (b"1000000000", 1),
    ],
)
def test_n_is_read_as_engines_read_it(n, choices):
    request = parse.parse(a_request(b'{"model":"demo","messages":[{}],"n":%b}' % n))

    assert request.choices == choices


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{}]}),
        ("/tokenize", {"prompt": ["a", "b"]}),
    ],
)
def test_where_engines_know_no_choices_there_is_one(path, body):
    assert parse.parse(a_request({"model": "demo", "n": 5, **body}, path)).choices == 1


def test_a_longer_text_extends_a_shorter_one():
    short, long = (
        parse.parse(a_request({"model": "demo", "prompt": text}, "/v1/completions")).prefix for text in ("ab", "abc")
    )

    assert long.startswith(short)


@pytest.mark.parametrize("before", ["image/png", "image/jpeg"])  # an odd and an even place
@pytest.mark.parametrize("size", [4_000, 40_000])
def test_an_image_counts_no_text(before, size):
    image = {"type": "image_url", "image_url": {"url": f"data:{before};base64," + "A" * size}}
    body = {"model": "demo", "messages": [{"role": "user", "content": [image]}]}

    assert parse.parse(a_request(body)).prompt_tokens < 50


@pytest.mark.parametrize(
    ("path", "body", "api"),
    [
        ("/v1/embeddings", {"input": "x"}, Api.EMBEDDINGS),
        ("/v1/embeddings", {"input": [[1, 2]]}, Api.EMBEDDINGS),
        ("/v1/responses", {"input": "x", "max_output_tokens": 3}, Api.RESPONSES),
        ("/v1/responses", {"input": [{"role": "user", "content": "x"}], "instructions": "y"}, Api.RESPONSES),
        ("/v1/messages/count_tokens", {"messages": [{}]}, Api.NATIVE),
        ("/tokenize", {"prompt": "x"}, Api.NATIVE),
        ("/detokenize", {"tokens": [1]}, Api.NATIVE),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}, Api.NATIVE),
        ("/rerank", {"query": "x", "documents": ["y"]}, Api.NATIVE),
        ("/v1/score", {"text_1": "x", "text_2": "y"}, Api.NATIVE),
        ("/score", {"queries": "x", "documents": "y"}, Api.NATIVE),
        ("/pooling", {"input": "x"}, Api.NATIVE),
        ("/classify", {"input": ["x"]}, Api.NATIVE),
        ("/generate", {"text": "x", "sampling_params": {}}, Api.NATIVE),
        ("/generate", {"input_ids": [1, 2]}, Api.NATIVE),
    ],
)
def test_every_path_of_the_engines_is_read(path, body, api):
    request = parse.parse(a_request({"model": "demo", **body}, path))

    assert (request.api, request.model) == (api, "demo")


def test_the_last_of_two_models_counts():
    assert parse.parse(a_request(b'{"model":"a","messages":[{}],"model":"b"}')).model == "b"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "empty"),
        (b"{", None, "not JSON"),
        (b"no healthy upstream", None, "not JSON"),
        (b'{"model":"a"} {}', None, "trailing"),
        (b"[]", None, "object"),
        (b'"x"', None, "object"),
        (b'\xef\xbb\xbf{"model":"a"}', None, "byte order mark"),
        (b'{"model":"\xff"}', None, "UTF-8"),
        ('{"model":"é"}'.encode("utf-16"), None, "UTF-8"),
        (b'{"messages":[{}]}', "model", "name the model"),
        (b'{"model":" ","messages":[{}]}', "model", "name the model"),
        (b'{"model":null,"messages":[{}]}', "model", "name the model"),
        (b'{"model":5,"messages":[{}]}', "model", "str"),
        (b'{"model":"a"}', "messages", "required"),
        (b'{"model":"a","messages":null}', "messages", "required"),
        (b'{"model":"a","messages":[]}', "messages", "empty array"),
        (b'{"model":"a","messages":"hi"}', "messages", "expected an array"),
        (b'{"model":"a","messages":[{}],"tools":{}}', "tools", "expected an array"),
        (b'{"model":"a","messages":[{}],"stream":"yes"}', "stream", "bool"),
        (b'{"model":"a","messages":[{}],"stream_options":[]}', "stream_options", "object"),
        (
            b'{"model":"a","messages":[{}],"stream_options":{"include_usage":3}}',
            "stream_options.include_usage",
            "bool",
        ),
        (b'{"model":"a","messages":[{}],"max_tokens":"7"}', "max_tokens", "int"),
        (b'{"model":"a","messages":[{}],"max_tokens":7.5}', "max_tokens", "integer"),
        (b'{"model":"a","messages":[{}],"max_tokens":1e999}', "max_tokens", "range"),
        (b'{"model":"a","messages":[{}],"max_tokens":1' + b"0" * 5000 + b"}", "max_tokens", "range"),
        (b'{"model":"a","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}", None, "nested too deeply"),
        (b'{"model":"a","x":' + b'{"x":' * 200_000 + b"1" + b"}" * 200_001, None, "nested too deeply"),
    ],
)
def test_a_body_that_cannot_be_placed_is_told_why(body, param, says):
    with pytest.raises(errors.BadRequest) as caught:
        parse.parse(a_request(body))

    assert caught.value.param == param
    assert says in caught.value.message


@pytest.mark.parametrize("prompt", [[], 5, {}, True])
def test_a_prompt_of_another_type_is_refused(prompt):
    with pytest.raises(errors.BadRequest) as caught:
        parse.parse(a_request({"model": "a", "prompt": prompt}, "/v1/completions"))

    assert caught.value.param == "prompt"


def test_whole_floats_are_integers():
    assert parse.parse(a_request(b'{"model":"a","messages":[{}],"max_tokens":7.0}')).max_tokens == 7


@pytest.mark.parametrize(
    ("media", "accepted"),
    [
        ("", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON", True),
        ("application/vnd.x+json", True),
        ("multipart/form-data; boundary=x", False),
        ("application/x-www-form-urlencoded", False),
        ("text/plain", False),
    ],
)
def test_only_json_is_read(media, accepted):
    http = HttpRequest("POST", CHAT, {"content-type": media} if media else {}, json.dumps(a_chat("x")).encode())
    if accepted:
        assert parse.parse(http).model == "demo"
    else:
        with pytest.raises(errors.UnsupportedMediaType, match="application/json"):
            parse.parse(http)


def test_compressed_bodies_are_refused():
    with pytest.raises(errors.UnsupportedMediaType, match="content-encoding"):
        parse.parse(a_request(a_chat("x"), **{"content-encoding": "gzip"}))


def test_audio_is_refused_clearly():
    with pytest.raises(errors.UnsupportedMediaType, match="audio"):
        parse.parse(a_request(b"", "/v1/audio/transcriptions"))


@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/v1/load_lora_adapter", "/sleep", "/v1/chat/completions/"])
def test_other_paths_are_not_served(path):
    with pytest.raises(errors.NotFound, match="no such path"):
        parse.parse(a_request(a_chat("x"), path))


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("OPTIONS", CHAT), ("POST", "/v1/models")])
def test_other_methods_are_not_served(method, path):
    with pytest.raises(errors.MethodNotAllowed):
        parse.parse(a_request(a_chat("x"), path, method))


def the_answer(http):
    try:
        return parse.parse(http)
    except errors.Rejection as rejection:
        return rejection


@given(st.binary(max_size=300), st.sampled_from([CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/nope"]))
def test_any_bytes_give_a_request_or_a_rejection(body, path):
    answer = the_answer(a_request(body, path))

    assert answer.model if isinstance(answer, InferenceRequest) else answer.message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('aé你\\"\ud800 \n', max_size=9),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "messages", "stream", "stream_options", "include_usage", "prompt", "x"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["messages", "stream", "prompt", "max_tokens", "n"]), JSON), st.booleans())
def test_any_object_gives_a_request_or_a_rejection(body, ascii_only):
    raw = json.dumps({"model": "demo", **body}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    for path in (CHAT, "/v1/completions"):
        answer = the_answer(a_request(raw, path))

        assert isinstance(answer, InferenceRequest) or 400 <= answer.status < 500


@given(
    places=st.lists(st.tuples(st.integers(0, 20_000), st.sampled_from("é߿漢ࠀ🙂\U0010ffff")), max_size=8),
    cut=st.integers(0, 3),
    odd=st.none() | st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=3)),
)
def test_a_long_body_is_counted_in_characters_or_refused_as_a_short_one_is(places, cut, odd):
    text = bytearray(b"x" * 20_000)
    for at, character in places:
        text[at : at + 1] = character.encode()
    if odd is not None:
        text[odd[0] : odd[0]] = odd[1]
    raw = bytes(text[: len(text) - cut])
    raw = b'{"model":"demo","messages":[{"content":"' + raw.replace(b'"', b"'").replace(b"\\", b"/") + b'"}]}'
    try:
        characters = len(raw.decode())
    except UnicodeDecodeError as error:
        with pytest.raises(errors.BadRequest, match=f"UTF-8 \\(byte {error.start}\\)"):
            parse.parse(a_request(raw))
        return

    if raw.isascii():
        return
    assert parse._wide(raw) == len(raw) - characters


@pytest.mark.parametrize("semicolons", [0, 5, 31, 32, 100])
@pytest.mark.parametrize("size", [100, 40_000])
def test_an_image_is_seen_behind_any_number_of_semicolons(semicolons, size):
    text = b"; " * semicolons + b"word " * (size // 5)

    assert parse.estimate(text + b";base64,AAAA", 0) == parse.estimate(text, 0)
