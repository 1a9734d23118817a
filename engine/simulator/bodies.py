"""Request bodies: JSON to the few values that shape an answer; what validation refuses, in pydantic's words.

Fields the simulator has no use for (temperature, tools' schemas, logit bias, ...) are let through, as any value of them gives
the same text here.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import orjson

from engine.simulator import http1
from engine.simulator.errors import ApiError, invalid, invalid_all, missing, parameter

Body = dict[str, Any]
_MOST_CHOICES = 16_384
_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n", "off"), False),
}


def load(request: http1.Request) -> Body:
    """Give the body as an object; ApiError if it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            400, "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", kind="Bad Request"
        )
    if not request.body:
        raise invalid("missing", "body", "Field required", None)
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        body = _load_slowly(request.body)
    if not isinstance(body, dict):
        raise invalid(
            "model_attributes_type", "body", "Input should be a valid dictionary or object to extract fields from", body
        )
    return body


def _load_slowly(data: bytes) -> Any:
    """Python's own decoder: takes what orjson does not (NaN, deep nesting to a point), and words the error."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise invalid("json_invalid", f"body.{error.pos}", "JSON decode error", {}, {"error": error.msg}) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "There was an error parsing the body", kind="Bad Request") from error


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the answer is made and framed."""

    max_tokens: int | None
    limit_name: str
    n: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool


POOLING = Sampling(
    max_tokens=0,
    limit_name="max_tokens",
    n=1,
    stop=(),
    stop_token_ids=frozenset(),
    ignore_eos=True,
    stream=False,
    include_usage=False,
    continuous_usage=False,
)
"""For prompts that are computed and not continued."""


def sampling(body: Body, *limits: str) -> Sampling:
    """Read the fields that OpenAI's endpoints share; `limits` name the fields for the length, the strongest first."""
    limit_name = next((name for name in limits if body.get(name) is not None), limits[-1])
    max_tokens = integer(body, limit_name)
    if max_tokens is not None and max_tokens < 1:
        raise parameter(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    n = integer(body, "n")
    if n is not None and n < 1:
        raise ApiError(400, f"n must be at least 1, got {n}.")
    if n is not None and n > _MOST_CHOICES:
        raise ApiError(
            400,
            f"n must be at most {_MOST_CHOICES}, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
            "environment variable.",
        )
    temperature = number(body, "temperature")
    if temperature is not None and not math.isfinite(temperature):
        raise parameter(f"temperature must be a finite number, got {temperature}.", "temperature", temperature)
    if temperature is not None and temperature < 0:
        raise parameter(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    stream = flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid(
            "model_attributes_type",
            "body.stream_options",
            "Input should be a valid dictionary or object to extract fields from",
            options,
        )
    if options and not stream:
        raise parameter("Stream options can only be defined when `stream=True`.", "stream_options")
    stop = body.get("stop")
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ()) if isinstance(stop, list | None) else (stop,)
    if not all(isinstance(s, str) for s in strings):
        raise invalid_all(
            ("string_type", "body.stop", "Input should be a valid string", stop),
            ("list_type", "body.stop", "Input should be a valid list", stop),
        )
    if "" in strings:
        raise ApiError(400, "stop cannot contain an empty string.")
    include = bool(options and options.get("include_usage"))
    return Sampling(
        max_tokens=max_tokens,
        limit_name=limit_name,
        n=n or 1,
        stop=strings,
        stop_token_ids=frozenset(t for t in body.get("stop_token_ids") or () if isinstance(t, int)),
        ignore_eos=flag(body, "ignore_eos"),
        stream=stream,
        include_usage=include,
        continuous_usage=bool(include and options and options.get("continuous_usage_stats")),
    )


def with_default_length(given: Sampling, tokens: int) -> Sampling:
    """Give the same with a limit, where the request names none: completions have one by definition."""
    return given if given.max_tokens is not None else replace(given, max_tokens=tokens)


def text(body: Body, name: str) -> str | None:
    """Give an optional string."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise invalid("string_type", f"body.{name}", "Input should be a valid string", value)


def integer(body: Body, name: str) -> int | None:
    """Give an optional whole number; numbers and digits that stand for one are taken, as pydantic does."""
    value = body.get(name)
    if value is None or isinstance(value, int):
        return None if value is None else int(value)
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        raise invalid(
            "int_from_float",
            f"body.{name}",
            "Input should be a valid integer, got a number with a fractional part",
            value,
        )
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise invalid(
                "int_parsing",
                f"body.{name}",
                "Input should be a valid integer, unable to parse string as an integer",
                value,
            ) from None
    raise invalid("int_type", f"body.{name}", "Input should be a valid integer", value)


def number(body: Body, name: str) -> float | None:
    """Give an optional number; text that stands for one is taken, as pydantic does."""
    value = body.get(name)
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise invalid(
                "float_parsing",
                f"body.{name}",
                "Input should be a valid number, unable to parse string as a number",
                value,
            ) from None
    raise invalid("float_type", f"body.{name}", "Input should be a valid number", value)


def flag(body: Body, name: str) -> bool:
    """Give an optional yes or no; words and numbers for it are taken, as pydantic does."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str | int | float):
        known = _FLAGS.get(str(value).lower())
        if known is not None:
            return known
        raise invalid(
            "bool_parsing", f"body.{name}", "Input should be a valid boolean, unable to interpret input", value
        )
    raise invalid("bool_type", f"body.{name}", "Input should be a valid boolean", value)


def messages(body: Body) -> list[dict[str, Any]]:
    """Give the conversation."""
    given = body.get("messages")
    if "messages" not in body:
        raise missing("messages", body)
    if not isinstance(given, list):
        raise invalid("list_type", "body.messages", "Input should be a valid list", given)
    for i, message in enumerate(given):
        where = f"body.messages.{i}"
        if not isinstance(message, dict):
            raise invalid("dict_type", where, "Input should be a valid dictionary", message)
        if "role" not in message:
            raise invalid("missing", f"{where}.role", "Field required", message)
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict | str) for part in content):
                raise invalid("dict_type", f"{where}.content", "Input should be a valid dictionary", content)
        elif content is not None and not isinstance(content, str):
            raise invalid("string_type", f"{where}.content", "Input should be a valid string", content)
    if not given:
        raise ApiError(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
    return given
