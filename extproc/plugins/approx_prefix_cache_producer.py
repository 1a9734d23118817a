"""`approx-prefix-cache-producer`: how prefixes are cut into blocks and how many are remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from extproc.scheduling.framework import parameter

_BYTES_PER_TOKEN = 4  # English text, roughly; upstream's estimate, too


class ApproxPrefixCacheProducer:
    """Settings of the learned prefix index; there is one, whether a configuration names it or not.

    `blockSizeTokens` 16: the engines' own block size, 4 bytes of text for a token. `maxPrefixBlocksToMatch` 8192 and
    `maxPrefixTokensToMatch` 131072: what lies behind the nearer of the two bounds is not looked at (upstream
    cuts at 2048 blocks). `lruCapacityPerServer` 31250: blocks remembered for each endpoint, upstream's; half a million
    tokens, about the KV cache of one large GPU. `autoTune` is upstream's adoption of the engine's own block size; text
    blocks do not follow tokens closely enough for it, so that only `false` is accepted.
    Source: llm-d's approx-prefix-cache-producer.
    """

    TYPE = "approx-prefix-cache-producer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        LACKS: ClassVar = {
            "prefixHashSource": "blocks are hashed here, from the request itself; remove it",
            "blockSize": "it is called blockSizeTokens",
        }

        auto_tune: bool = False
        block_size_tokens: int = parameter(16, minimum=1, maximum=4096)
        max_prefix_blocks_to_match: int = parameter(8192, minimum=1)
        max_prefix_tokens_to_match: int = parameter(131_072, minimum=1)
        lru_capacity_per_server: int = parameter(31_250, minimum=1)

        def __post_init__(self) -> None:
            if self.auto_tune:
                raise ValueError("autoTune must be false: blocks of text have a fixed size")

        @property
        def block_bytes(self) -> int:
            """Size of a text block."""
            return self.block_size_tokens * _BYTES_PER_TOKEN

        @property
        def max_blocks(self) -> int:
            """Bound of a chain's length."""
            return min(
                self.max_prefix_blocks_to_match, max(1, self.max_prefix_tokens_to_match // self.block_size_tokens)
            )

    def __init__(self, params: Params) -> None:
        self.params = params
