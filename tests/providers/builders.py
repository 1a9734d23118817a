"""Requests and providers for the pure core's tests."""

import json

from extproc.providers import outward
from extproc.providers.exchange import Answer, Streamed, Try
from extproc.providers.note import Note, Speech
from extproc.requests import parse
from extproc.types import HttpRequest
from matrixinfer.api import networking

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
NOW = 1_700_000_000


def a_provider(type="OpenAI", **spec):  # noqa: A002 - its name in the manifest
    return networking.ExternalModelProvider.model_validate(
        {
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"providerType": type, "baseURL": "https://api.example.com/v1", **spec},
        }
    )


def sent(path, type="OpenAI", *, spec=None, usage=True, **body):  # noqa: A002
    """What goes to a provider for a request."""
    text = json.dumps({"model": "ours", **body}).encode()
    request = parse.parse(HttpRequest("POST", path, {"content-type": "application/json"}, text))
    return outward.outward(request, a_provider(type, **(spec or {})), usage=usage)


def translated(path, **body):
    """The body that a provider of the other API gets."""
    other = "Anthropic" if path == CHAT else "OpenAI"
    given = {"messages": [{"role": "user", "content": "Hello"}]}
    if path == MESSAGES:
        given["max_tokens"] = 10
    return json.loads(sent(path, other, **{**given, **body}).body)


def a_note(client, speaks):
    return Note("api.example.com", "/v1/x", Speech(speaks), Speech(client), "default/p")


def a_try(client, speaks):
    return Try(a_note(client, speaks))


def an_answer(client, speaks):
    return Answer(a_note(client, speaks), NOW)


def a_stream(client, speaks):
    """An exchange whose answer is a stream."""
    made = an_answer(client, speaks)
    assert isinstance(made.response(200, {"content-type": "text/event-stream"}, end=False), Streamed)
    return made


def events(stream):
    """The data of a stream's events, decoded."""
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
