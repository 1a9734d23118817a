"""Token ids asked of an engine's `/tokenize`: the last resort, for a model whose tokenizer is nowhere at hand.

Only what the engine's answer is sure to be exact for is asked: plain chats and texts. Few questions are open at once, none
for longer than `timeout_s`, and an engine that fails is left alone for a while: requests have text blocks then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from xxhash import xxh3_128_digest

from extproc.tokens.chain import packed
from extproc.tokens.memo import Memo
from extproc.types import Api, Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.tokens.chain import TokenIds
    from extproc.types import Called, InferenceRequest

_OK: Final = 200
_MEMO: Final = 16 << 20  # bytes of answers: four million tokens
_MOST_BYTES: Final = 1 << 20  # of a question: its answer is as long, and read on the loop
_HEADERS: Final = {"content-type": "application/json"}
_PASSED_ON: Final = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template_kwargs",
)
_NOT_UNDERSTOOD: Final = ("documents", "reasoning_effort", "chat_template", "truncate_prompt_tokens", "suffix")


class Question(NamedTuple):
    """What is asked, or known already."""

    key: bytes
    model: str
    ids: TokenIds | None
    call: Call


class Remote:
    """Asks engines, remembers what they said. Used on the loop only."""

    def __init__(
        self, url: Callable[[str], str], failed: Callable[[str, str], None], *, timeout_s: float = 0.25, most: int = 16
    ) -> None:
        """`url`: of an engine that serves a model, "" if none is to be asked; `failed`: hears of a model and why."""
        self.memo = Memo(_MEMO)
        self.asking = 0
        self.timeout_s = timeout_s
        self._url = url
        self._failed = failed
        self._most = most

    def question(self, request: InferenceRequest, model: str) -> Question | None:
        """Return what to ask for `request`, which has to be answered or dropped; None: nothing can be asked now."""
        if self.asking >= self._most or len(request.body) > _MOST_BYTES or not (url := self._url(model)):
            return None
        body = _body(request, model)
        if body is None:
            return None
        key = xxh3_128_digest(body)
        ids = self.memo.get(key)
        if ids is None:
            self.asking += 1
        return Question(key, model, ids, Call("POST", f"{url}/tokenize", self.timeout_s, _HEADERS, body))

    def answered(self, question: Question, called: Called) -> TokenIds | None:
        """Take the answer: the ids, or None if there are none."""
        self.asking -= 1
        why = called.fault or ("" if called.status == _OK else f"status {called.status}")
        if not why:
            try:
                ids = packed(orjson.loads(called.body)["tokens"])
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                why = f"not understood: {error}"
            else:
                self.memo.put(question.key, ids)
                return ids
        if called.status // 100 != 4:  # noqa: PLR2004 - a 4xx is about this request, not about the engine
            self._failed(question.model, why)
        return None

    def dropped(self) -> None:
        """Hear that a question is not waited for any more."""
        self.asking -= 1


def _body(request: InferenceRequest, model: str) -> bytes | None:
    """Return the question for `/tokenize`; None where its answer might be another than what the engine prefills."""
    try:
        given: Any = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(given, dict) or any(given.get(name) is not None for name in _NOT_UNDERSTOOD):
        return None
    if request.api is Api.CHAT and _is_plain(given.get("messages")):
        return orjson.dumps({"model": model, **{name: given[name] for name in _PASSED_ON if name in given}})
    if request.api is Api.COMPLETIONS and isinstance(given.get("prompt"), str):
        special = given.get("add_special_tokens") is not False
        return orjson.dumps({"model": model, "prompt": given["prompt"], "add_special_tokens": special})
    return None


def _is_plain(messages: Any) -> bool:
    """Tell whether messages hold text only, and no reasoning, whose old name `/tokenize` does not know."""
    return isinstance(messages, list) and all(
        isinstance(one, dict)
        and "reasoning_content" not in one
        and (
            not isinstance(one.get("content"), list)
            or all(isinstance(part, dict) and part.get("type") == "text" for part in one["content"])
        )
        for one in messages
    )
