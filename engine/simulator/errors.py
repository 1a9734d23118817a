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


def invalid(kind: str, loc: str, message: str, given: Any, ctx: dict[str, Any] | None = None) -> ApiError:
    """Give a field that validation refuses."""
    entry: dict[str, Any] = {"type": kind, "loc": loc, "msg": message, "input": _brief(given)}
    if ctx:
        entry["ctx"] = ctx
    return ApiError(400, f"1 validation error:\n  {entry}", kind="Bad Request", param=loc)


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


def too_long(limit: int, prompt_tokens: int, max_tokens: int | None) -> ApiError:
    """Give a prompt, or a prompt and the answer asked for, over the context length."""
    begin = f"This model's maximum context length is {limit} tokens. However, "
    if prompt_tokens > limit or max_tokens is None:
        shown = limit + 1  # the engine's tokenizer stops there
        message = (
            f"{begin}your prompt contains at least {shown} input tokens, which exceeds this limit even without any output "
            f"tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={shown})"
        )
    else:
        message = (
            f"{begin}you requested {max_tokens} output tokens and your prompt contains {prompt_tokens} input tokens, for a "
            f"total of {prompt_tokens + max_tokens} tokens. Please reduce the length of the input prompt or the number of "
            f"requested output tokens. (parameter=input_tokens, value={prompt_tokens})"
        )
    return ApiError(400, message, param="input_tokens")


def _brief(given: Any) -> Any:
    if isinstance(given, dict | list):
        return f"<{type(given).__name__} of {len(given)} items>"
    return given
