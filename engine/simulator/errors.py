"""Refusals in vLLM's words."""

from typing import Any

import orjson


class ApiError(Exception):
    """Answered to the client as it is."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """Give the error object."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}
        )

    def body_for_anthropic(self) -> bytes:
        """Give the error as /v1/messages words it; what validation refuses stays as it is."""
        if self.kind == "Bad Request":
            return self.body()
        return orjson.dumps({"type": "error", "error": {"type": self.kind, "message": self.message}})


Complaint = tuple[str, str, str, Any]
"""What validation says of a field: kind, place, message, and what was given."""


def invalid(kind: str, loc: str, message: str, given: Any, ctx: dict[str, Any] | None = None) -> ApiError:
    """Give the error for a field that validation refuses."""
    return _refusal([_entry((kind, loc, message, given)) | ({"ctx": ctx} if ctx else {})])


def invalid_all(*complaints: Complaint) -> ApiError:
    """Give the error for a field that none of its possible types takes."""
    return _refusal([_entry(complaint) for complaint in complaints])


def _entry(complaint: Complaint) -> dict[str, Any]:
    kind, loc, message, given = complaint
    return {"type": kind, "loc": loc, "msg": message, "input": _brief(given)}


def _refusal(entries: list[dict[str, Any]]) -> ApiError:
    count = "1 validation error" if len(entries) == 1 else f"{len(entries)} validation errors"
    message = "".join([f"{count}:", *(f"\n  {entry}" for entry in entries)])
    return ApiError(400, message, kind="Bad Request", param=entries[0]["loc"])


def parameter(message: str, name: str, value: Any = None) -> ApiError:
    """Give the error for a parameter whose value the engine refuses."""
    shown = f"(parameter={name})" if value is None else f"(parameter={name}, value={value})"
    return ApiError(400, f"{message} {shown}", param=name)


def missing(field: str, body: Any) -> ApiError:
    """Give a required field that is not there."""
    return invalid("missing", f"body.{field}", "Field required", body)


def unknown_model(model: str, names: tuple[str, ...]) -> ApiError:
    """Give a model that is not served here."""
    return ApiError(
        404,
        f"The model `{model}` does not exist. Valid aliases: {', '.join(names)}.",
        kind="NotFoundError",
        param="model",
    )


def too_long(limit: int, prompt_tokens: int, *, exact: bool = False) -> ApiError:
    """Give the error for a prompt over the context length; a text is only encoded up to there."""
    shown = prompt_tokens if exact else limit + 1
    how_many = f"{shown}" if exact else f"at least {shown}"
    return parameter(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains {how_many} input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
        "input_tokens",
        shown,
    )


def _brief(given: Any) -> str:
    if isinstance(given, dict | list):
        return f"<{type(given).__name__} of {len(given)} items>"
    return str(given)
