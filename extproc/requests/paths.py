"""The paths that are served, and what a body must hold at each of them.

A path that is not here is answered 404 by the picker: the gateway offers inference, not an engine's administration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from extproc.types import Api

MODELS: Final = frozenset({"/v1/models", "/models"})  # GET; answered by the picker from its routes
MODEL: Final = "/v1/models/"  # GET, then a model's name


@dataclass(frozen=True, slots=True)
class Shape:
    """What a POST body of one path holds. Names are keys of the body."""

    api: Api
    needs: tuple[str, ...]  # one of these must be there
    prefix: tuple[str, ...]  # what precedes generation, in the engine's order; () where no cache is used
    usage: bool = False  # streams answer `stream_options`
    multipart: bool = False  # the engine reads a form, which the picker does not


_CONVERSATION: Final = ("tools", "messages")
_MESSAGES: Final = Shape(Api.MESSAGES, needs=("messages",), prefix=("tools", "system", "messages"))
_RERANK: Final = Shape(Api.NATIVE, needs=("query",), prefix=("query",))
_SCORE: Final = Shape(
    Api.NATIVE,
    needs=("text_1", "queries", "data_1", "query"),
    prefix=("text_1", "queries", "data_1", "query"),
)
_POOL: Final = Shape(Api.NATIVE, needs=("input", "messages", "data"), prefix=("messages", "input", "data"))
_AUDIO: Final = Shape(Api.NATIVE, needs=(), prefix=(), multipart=True)

SHAPES: Final[dict[str, Shape]] = {
    "/v1/chat/completions": Shape(Api.CHAT, needs=("messages",), prefix=_CONVERSATION, usage=True),
    "/v1/completions": Shape(Api.COMPLETIONS, needs=("prompt", "prompt_embeds"), prefix=("prompt",), usage=True),
    "/v1/embeddings": Shape(Api.EMBEDDINGS, needs=("input", "messages"), prefix=("messages", "input")),
    "/v1/responses": Shape(
        Api.RESPONSES, needs=("input", "previous_response_id"), prefix=("tools", "instructions", "input")
    ),
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": Shape(Api.NATIVE, needs=("messages",), prefix=()),
    "/tokenize": Shape(Api.NATIVE, needs=("prompt", "messages"), prefix=()),
    "/detokenize": Shape(Api.NATIVE, needs=("tokens",), prefix=()),
    "/rerank": _RERANK,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/score": _SCORE,
    "/v1/score": _SCORE,
    "/pooling": _POOL,
    "/classify": _POOL,
    "/generate": Shape(Api.NATIVE, needs=("text", "input_ids"), prefix=("text", "input_ids")),
    "/v1/audio/transcriptions": _AUDIO,
    "/v1/audio/translations": _AUDIO,
}
