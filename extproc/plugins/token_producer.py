"""`token-producer`: where the models' tokenizers are, and how prompts become token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from extproc.scheduling.framework import parameter

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenizerOf:
    """Where the tokenizer of some models is, and how their engine renders chats."""

    model: str  # the engine's name for the model, or a pattern with * and ?
    source: str  # a folder, or the model's id in the local hub cache; "none": text blocks
    revision: str = "main"  # in the hub cache
    chat_template: str = ""  # file, as vLLM's --chat-template; "": the model's own
    trust_request_chat_template: bool = False  # as vLLM's flag
    default_chat_template_kwargs: str = "{}"  # JSON, as vLLM's flag

    def __post_init__(self) -> None:
        self.template_defaults()

    def template_defaults(self) -> dict[str, Any]:
        """Return `defaultChatTemplateKwargs` as values."""
        try:
            value = json.loads(self.default_chat_template_kwargs)
        except ValueError as error:
            raise ValueError(f"defaultChatTemplateKwargs must be JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError("defaultChatTemplateKwargs must be a JSON object")  # noqa: TRY004 - reported as a wrong value
        return value


class TokenProducer:
    """Settings of tokenization; there is one, whether a configuration names it or not.

    A model's tokenizer is looked for in this order: the annotation `networking.matrixinfer.ai/tokenizer` of its
    ModelServer, `tokenizers` (the first whose `model` fits), `folders` (FOLDER/<model>), the model's name as a folder,
    the local hub cache. Nothing is downloaded. Names tried are the engine's name for the model and, for a LoRA
    adapter, that of its base model. Without a tokenizer a model has text blocks,
    and with `enabled` false every model.
    `hubCache` "": $HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub. `blockSizeTokens` 0: as the prefix
    index's. `memoMiB` 64: ids of pieces of text, some twelve million tokens. `inlineBytes` 4096: more unknown text is
    encoded beside the loop (4096 bytes take a millisecond), six times as much for byte-level BPE, which is six times as
    quick. `maxPendingMiB` 2: text waiting to be encoded, 0.1 to 0.7 seconds of a core; requests beyond have text blocks. `recheckSeconds` 10: how often files are looked at, and what failed is tried again.
    `askEngines` false: where a model has no tokenizer, an engine that serves it is asked (`/tokenize`) for plain chats and
    texts of up to 1 MiB; requests wait for it, `askTimeoutSeconds` 0.25 at most, and have text blocks then. An engine that
    fails is left alone for `recheckSeconds`. Where it has one, an engine's `/tokenizer_info` says which chat template it
    renders with, if the engine has that enabled. The last resort: it costs the engine what it costs to tokenize there.
    Upstream's `vllm` and `udsTokenizerConfig` name a server that each request would wait for: refused by name.
    Source: llm-d's token-producer, whose default (`estimate`) is what text blocks are.
    """

    TYPE = "token-producer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameters of ours, but for the name."""

        LACKS: ClassVar = {
            "modelName": "each model has its own tokenizer; name it in `tokenizers`, as model and source",
            **dict.fromkeys(
                ("backend", "vllm", "udsTokenizerConfig", "estimate"),
                "prompts are tokenized here, without a server; name the model's files in `tokenizers`",
            ),
        }

        tokenizers: tuple[TokenizerOf, ...] = ()
        folders: tuple[str, ...] = ()
        hub_cache: str = ""
        enabled: bool = True
        block_size_tokens: int = parameter(0, minimum=0, maximum=4096)
        memo_mib: int = parameter(64, minimum=1, name="memoMiB")
        inline_bytes: int = parameter(4096, minimum=0)
        max_pending_mib: int = parameter(2, minimum=1, name="maxPendingMiB")
        recheck_seconds: float = parameter(10.0, minimum=0.1)
        ask_engines: bool = False
        ask_timeout_seconds: float = parameter(0.25, minimum=0.01, maximum=10)

        @property
        def memo_bytes(self) -> int:
            """Bound of the memo."""
            return self.memo_mib * _MIB

        @property
        def pending_bytes(self) -> int:
            """Bound of the text that waits to be encoded."""
            return self.max_pending_mib * _MIB

    def __init__(self, params: Params) -> None:
        self.params = params
