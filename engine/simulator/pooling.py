"""Embeddings, scores and reranking: prompts that are computed once and give numbers instead of text.

The numbers mean little: an embedding is a point on the unit sphere that depends on the tokens alone, a score is the share of
tokens that two texts have in common.
"""

import base64
import math
import random
import secrets
import time
from array import array
from collections.abc import Iterable
from typing import Any

import orjson
from xxhash import xxh3_64_intdigest

from engine.simulator import batch, bodies
from engine.simulator.answer import Answer
from engine.simulator.errors import ApiError, missing

_DIMENSIONS = 256


class Pooled:
    """What these forms share: they never stream."""

    prefix = ""

    def __init__(self, *, model: str) -> None:
        self.request_id = f"{self.prefix}-{secrets.token_hex(8)}"
        self.model = model

    def opening(self, answer: Answer) -> Iterable[bytes]:  # noqa: ARG002 (the form's signature)
        """Give nothing."""
        return ()

    def token(self, answer: Answer, sequence: batch.Sequence, words: bytes) -> bytes | None:  # noqa: ARG002 (as above)
        """Give nothing."""
        return None

    def closing(self, answer: Answer) -> Iterable[bytes]:  # noqa: ARG002 (as above)
        """Give nothing."""
        return ()


class Embeddings(Pooled):
    """The answer of /v1/embeddings."""

    prefix = "embd"

    def __init__(self, body: bodies.Body, *, model: str) -> None:
        super().__init__(model=model)
        self._dimensions = bodies.integer(body, "dimensions") or _DIMENSIONS
        self._base64 = bodies.text(body, "encoding_format") == "base64"

    def body(self, answer: Answer) -> bytes:
        """Give the whole answer."""
        return orjson.dumps(
            {
                "id": self.request_id,
                "object": "list",
                "created": int(time.time()),
                "model": self.model,
                "data": [
                    {"index": sequence.index, "object": "embedding", "embedding": self._embedding(sequence.tokens)}
                    for sequence in answer.sequences
                ],
                "usage": _usage(answer),
            }
        )

    def _embedding(self, tokens: "array[int]") -> str | list[float]:
        draw = random.Random(xxh3_64_intdigest(tokens.tobytes()))  # noqa: S311 (an embedding, no secret)
        values = [draw.gauss(0, 1) for _ in range(self._dimensions)]
        norm = math.hypot(*values)
        unit = [value / norm for value in values]
        return base64.b64encode(array("f", unit).tobytes()).decode() if self._base64 else unit


class Scores(Pooled):
    """The answers of /v1/score and /v1/rerank; the texts themselves are compared."""

    prefix = "score"

    def __init__(self, pairs: list[tuple[str, str]], *, model: str, rerank: bool, top_n: int | None) -> None:
        if rerank:
            self.prefix = "rerank"
        super().__init__(model=model)
        self._pairs = pairs
        self._rerank = rerank
        self._top_n = top_n

    def body(self, answer: Answer) -> bytes:
        """Give the whole answer."""
        scores = [_overlap(first, second) for first, second in self._pairs]
        if self._rerank:
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            results = [
                {"index": i, "document": {"text": self._pairs[i][1], "multi_modal": None}, "relevance_score": scores[i]}
                for i in order[: self._top_n or None]
            ]
            usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
            return orjson.dumps({"id": self.request_id, "model": self.model, "usage": usage, "results": results})
        return orjson.dumps(
            {
                "id": self.request_id,
                "object": "list",
                "created": int(time.time()),
                "model": self.model,
                "data": [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)],
                "usage": _usage(answer),
            }
        )


def texts(body: bodies.Body, *names: str) -> list[str]:
    """Give the one or many texts under the first of these names that is there."""
    name = next((name for name in names if name in body), None)
    if name is None:
        raise missing(names[0], body)
    given = body[name]
    listed = given if isinstance(given, list) else [given]
    every = [item.get("text") if isinstance(item, dict) else item for item in listed]
    plain = [item for item in every if isinstance(item, str)]
    if not plain or len(plain) != len(every):
        raise ApiError(400, f"{name} must be a text or a list of texts.", param=name)
    return plain


def _usage(answer: Answer) -> dict[str, Any]:
    tokens = answer.prompt_tokens
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def _overlap(first: str, second: str) -> float:
    one, other = set(first.lower().split()), set(second.lower().split())
    return len(one & other) / (len(one | other) or 1)
