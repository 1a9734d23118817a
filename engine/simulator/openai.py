"""The forms of OpenAI's chat completions and completions, field for field as vLLM writes them.

Everything of an event but its words is made once per answer, as bytes.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from engine.simulator import batch
from engine.simulator.answer import Answer

FINGERPRINT = "vllm-0.32.0-628a25d7"
_FINGERPRINT_FIELD = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
DONE = b"data: [DONE]\n\n"


def usage(answer: Answer, stored_tokens: int | None) -> dict[str, object]:
    """Give the token counts of a whole answer, all fields."""
    return {
        **_counts(answer),
        "prompt_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "created_cache_tokens": stored_tokens,
            "multimodal_tokens": None,
        },
        "completion_tokens_details": None,
    }


def _counts(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.prompt_tokens, answer.generated_tokens
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


@dataclass(frozen=True, slots=True)
class Frame:
    """What an answer says besides its words."""

    model: str
    request_key: str
    include_usage: bool = False
    continuous_usage: bool = False


class _Events:
    """What the two streams share: the head of each event, and usage."""

    _running_details = b""

    def __init__(self, frame: Frame, *, prefix: str, kind: str) -> None:
        self.request_id = f"{prefix}-{frame.request_key}"
        self.created = int(time.time())
        self.model = frame.model
        self._include_usage = frame.include_usage
        self._continuous = frame.continuous_usage
        head = {"id": self.request_id, "object": kind, "created": self.created, "model": frame.model}
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['

    def _stored(self, answer: Answer) -> int | None:
        """Give the prompt tokens that went into the cache; only chat tells."""
        raise NotImplementedError

    def _running_usage(self, sequence: batch.Sequence) -> bytes:
        """Give the usage of one choice: a chunk tells nothing of the others, nor of their prompts."""
        if not self._continuous:
            return b""
        prompt, completion = sequence.prompt_tokens, sequence.output_tokens
        counts = (prompt, prompt + completion, completion, self._running_details)
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % counts

    def closing(self, answer: Answer) -> Iterable[bytes]:
        """Give the usage, where asked for, and the end mark."""
        if self._include_usage:
            details: dict[str, int] = {"cached_tokens": answer.cached_tokens}
            stored = self._stored(answer)
            if stored is not None:
                details["created_cache_tokens"] = stored
            counts = orjson.dumps({**_counts(answer), "prompt_tokens_details": details})
            yield b'%b],"usage":%b%b}\n\n' % (self._head, counts, _FINGERPRINT_FIELD)
        yield DONE

    def _fingerprint(self, sequence: batch.Sequence) -> bytes:
        return b"" if sequence.finish is None or self._include_usage else _FINGERPRINT_FIELD


class Chat(_Events):
    """Chat completions."""

    _running_details = b',"completion_tokens_details":null'

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame, prefix="chatcmpl", kind="chat.completion.chunk")

    def opening(self, answer: Answer) -> Iterable[bytes]:
        """Give the role of each choice."""
        running = b""
        if self._continuous:
            prompt = answer.prompt_tokens
            counts = (prompt, prompt, self._running_details)
            running = b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":0%b}' % counts
        for sequence in answer.sequences:
            yield (
                b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b'
                b',"prompt_token_ids":null,"prompt_text":null}\n\n' % (self._head, sequence.index, running)
            )

    def token(self, answer: Answer, sequence: batch.Sequence, words: bytes) -> bytes:  # noqa: ARG002 (the form's signature)
        """Give new words of a choice."""
        usage_field = self._running_usage(sequence) if self._continuous else b""
        if sequence.finish is None:
            return b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null,"token_ids":null}]%b}\n\n' % (
                self._head, sequence.index, words, usage_field,
            )  # fmt: skip
        return (
            b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":"%b","stop_reason":%b,"token_ids":null}]%b%b}\n\n'
            % (
                self._head, sequence.index, words, sequence.finish.encode(), orjson.dumps(sequence.stop_reason),
                usage_field, self._fingerprint(sequence),
            )
        )  # fmt: skip

    def _stored(self, answer: Answer) -> int | None:
        return answer.stored_tokens

    def body(self, answer: Answer) -> bytes:
        """Give the whole answer."""
        choices = [
            {
                "index": sequence.index,
                "message": {
                    "role": "assistant",
                    "content": answer.text_of(sequence),
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": sequence.finish,
                "stop_reason": sequence.stop_reason,
                "token_ids": None,
                "routed_experts": None,
            }
            for sequence in answer.sequences
        ]
        return orjson.dumps(
            {
                "id": self.request_id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": usage(answer, self._stored(answer)),
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "prompt_text": None,
                "kv_transfer_params": answer.kv_transfer_params,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )


class Completion(_Events):
    """Completions."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame, prefix="cmpl", kind="text_completion")

    def opening(self, answer: Answer) -> Iterable[bytes]:  # noqa: ARG002 (the form's signature)
        """Nothing comes before the words."""
        return ()

    def token(self, answer: Answer, sequence: batch.Sequence, words: bytes) -> bytes:  # noqa: ARG002 (the form's signature)
        """Give new words of a choice."""
        finish = b"null" if sequence.finish is None else b'"%b"' % sequence.finish.encode()
        return (
            b'%b{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":null,'
            b'"token_ids":null}]%b%b}\n\n'
            % (
                self._head, sequence.index, words, finish, orjson.dumps(sequence.stop_reason),
                self._running_usage(sequence), self._fingerprint(sequence),
            )
        )  # fmt: skip

    def _stored(self, answer: Answer) -> int | None:  # noqa: ARG002 (as the class above declares it)
        return None

    def body(self, answer: Answer) -> bytes:
        """Give the whole answer."""
        choices = [
            {
                "index": sequence.index,
                "text": answer.text_of(sequence),
                "logprobs": None,
                "finish_reason": sequence.finish,
                "stop_reason": sequence.stop_reason,
                "token_ids": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "routed_experts": None,
            }
            for sequence in answer.sequences
        ]
        return orjson.dumps(
            {
                "id": self.request_id,
                "object": "text_completion",
                "created": self.created,
                "model": self.model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": usage(answer, self._stored(answer)),
                "kv_transfer_params": answer.kv_transfer_params,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )
