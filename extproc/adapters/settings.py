"""The scheduler's configuration file: read strictly at the start, followed while the picker runs.

A file that turns bad keeps the last good configuration in force; the reason is logged, counted and shown. The endpoint
table and the prefix index outlive every change.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Final

from extproc import plugins
from extproc.adapters import custom, pages
from extproc.adapters.kv_sources import Discovery
from extproc.errors import ConfigError
from extproc.kvcache.blocks import BlockIndex
from extproc.kvcache.exact import ExactIndex
from extproc.kvcache.replica import Chain
from extproc.plugins.core_metrics_extractor import CoreMetricsExtractor
from extproc.plugins.precise_prefix_cache_producer import Exact, seconds, weights
from extproc.plugins.token_producer import TokenProducer
from extproc.scheduling import config
from extproc.tokens import chain
from extproc.tokens.blocks import Bounds, TokenBlocks
from extproc.tokens.text import TextBlocks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from extproc.tokens.blocks import Counts, Tokenizers

_ENGINES: Final = {"vllm": "vLLM", "sglang": "SGLang"}  # upstream's names of engines
_LOG = logging.getLogger(__name__)
_LOOK_S: Final = 1.0  # a stat a second; it also sees the swapped links of a mounted ConfigMap
_EMPTY: Final = {"apiVersion": config.API_VERSIONS[0], "kind": config.KIND}


class Settings:
    """The configuration in force. Without a file it is the built-in default; a file may name custom plugins, too."""

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises ConfigError."""
        self.path = path
        self.loads = 1
        self.failures = 0
        self.problem = ""  # of the file as it stands; "" if it is in force
        builtin = plugins.BUILTIN  # without a file nothing else can be named
        self._catalogue = dataclasses.replace(builtin, types=builtin.types + custom.found()) if path else builtin
        self._stamp = self._stat()
        self.current = self._read()

    def described(self) -> dict[str, Any]:
        """Return the configuration as plain values, defaults and injected plugins included."""
        current = self.current
        return {
            "file": str(self.path) if self.path else None,
            "problem": self.problem or None,
            "loads": self.loads,
            "profile": {
                "name": current.profile.name,
                "plugins": [{"pluginRef": name, "weight": weight} for name, weight in current.profile.plugins],
            },
            "flow_control": None if current.flow is None else current.flow.document(),
            "plugins": [
                {"name": spec.name, "type": spec.type.TYPE, "parameters": dataclasses.asdict(spec.params)}
                for spec in current.plugins
            ],
        }

    async def follow(self, use: Callable[[config.Config], None]) -> None:
        """Give every new good configuration to `use`, until cancelled."""
        while self.path is not None:
            await asyncio.sleep(_LOOK_S)
            if self.changed():
                use(self.current)

    def changed(self) -> bool:
        """Look at the file; tells whether a new configuration is in force."""
        stamp = self._stat()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.current = self._read()
        except ConfigError as error:
            self.failures += 1
            self.problem = str(error)
            _LOG.error("the new configuration cannot be used; the last good one stays", extra={"problem": str(error)})
            return False
        self.loads += 1
        self.problem = ""
        _LOG.info("a new configuration is in force", extra={"file": str(self.path)})
        return True

    def _read(self) -> config.Config:
        if self.path is None:
            return config.load(_EMPTY, self._catalogue)
        try:
            text = self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("", f"{self.path} cannot be read: {error}") from error
        current = config.load(config.parse(text), self._catalogue)
        custom.try_out(current)
        block_tokens(current)
        return current

    def _stat(self) -> tuple[int, int, int] | None:
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def blocks(current: config.Config) -> TextBlocks:
    """Return how prefixes are cut into blocks of text."""
    return TextBlocks(block_bytes=current.prefix.block_bytes, max_blocks=current.prefix.max_blocks)


def token_blocks(current: config.Config, tokenizers: Tokenizers, counts: Counts) -> TokenBlocks:
    """Return how prefixes are cut into blocks of tokens, and of text where there are none."""
    params = tokens(current)
    bounds = Bounds(
        block_tokens=block_tokens(current),
        max_blocks=current.prefix.max_blocks,
        inline_bytes=params.inline_bytes,
        pending_bytes=params.pending_bytes,
    )
    return TokenBlocks(tokenizers, blocks(current), bounds, counts)


def tokens(current: config.Config) -> TokenProducer.Params:
    """Return the token producer's parameters. Raises ConfigError if there is more than one."""
    found = [spec for spec in current.plugins if spec.type is TokenProducer]
    if len(found) > 1:
        raise ConfigError(f"plugins.{found[1].name}", f"there can be one {TokenProducer.TYPE} only")
    return found[0].params if found else TokenProducer.Params()


def metrics(current: config.Config) -> dict[str, dict[str, pages.Metric]]:
    """Return the metrics of one's own that are to be read: by engine, by attribute."""
    found: dict[str, dict[str, pages.Metric]] = {}
    for spec in current.plugins:
        if spec.type is CoreMetricsExtractor:
            for engine in spec.params.engine_configs:
                wanted = found.setdefault(_ENGINES[engine.name], {})
                wanted.update((one.attribute_key, pages.metric(one.metric_spec)) for one in engine.custom_metrics)
    return found


def exact(current: config.Config) -> Exact:
    """Return the parameters of the exact index. Raises ConfigError if they are given more than once."""
    found = [spec for spec in current.plugins if spec.type.Params is Exact]
    if len(found) > 1:
        raise ConfigError(
            f"plugins.{found[1].name}", f"there is one exact index, and {found[0].name} has its parameters already"
        )
    return found[0].params if found else Exact()


def block_tokens(current: config.Config) -> int:
    """Return the tokens in a block. Raises ConfigError if plugins want different sizes."""
    processor = exact(current).token_processor_config
    wanted = {
        "token-producer": tokens(current).block_size_tokens,
        "tokenProcessorConfig": processor.block_size_tokens or processor.block_size,
    }
    sizes = {size for size in wanted.values() if size}
    if len(sizes) > 1:
        raise ConfigError(
            "plugins", f"blocks have one size: blockSizeTokens is {' and '.join(map(str, wanted.values()))}"
        )
    return sizes.pop() if sizes else int(current.prefix.block_size_tokens)


def discovery(current: config.Config) -> Discovery:
    """Return how publishers of KV events are found."""
    events = exact(current).kv_events_config
    named = any(spec.type.Params is Exact for spec in current.plugins)
    ports = events.pod_discovery_config
    return Discovery(
        enabled=events.discover_pods,
        topic=events.topic_filter,
        port=ports.socket_port if named else None,
        replay_port=(ports.replay_socket_port or None) if named else None,
    )


def exact_index(current: config.Config, *, secret: int) -> ExactIndex:
    """Make the exact index, empty. `secret`: 64 bits of chance. Raises ConfigError if its size cannot be reserved."""
    params = exact(current)
    return ExactIndex(
        _block_index(params, secret),
        Chain(chain.root, blocks_of_tokens, block_tokens(current)),
        weights=weights(params),
        expected_s=_expected_s(params),
    )


def follow_exact(index: ExactIndex, *, before: config.Config, after: config.Config, secret: int) -> bool:
    """Bring the exact index in step with a new configuration; True if engines have to be followed anew."""
    params = exact(after)
    index.weights, index.expected_s = weights(params), _expected_s(params)
    size = params.indexer_config.kv_block_index_config.in_memory_config.size
    rebuilt = size != index.index.capacity or block_tokens(after) != index.chain.block_tokens
    if rebuilt:
        index.rebuild(_block_index(params, secret), Chain(chain.root, blocks_of_tokens, block_tokens(after)))
    return rebuilt or discovery(before) != discovery(after)


def blocks_of_tokens(tokens: Sequence[int], previous: int, size: int) -> list[int]:
    """Return the hashes of the full blocks of `tokens` behind the block, or the root, `previous`."""
    return chain.chain(chain.packed(tokens), previous, size)


def _expected_s(params: Exact) -> float:
    return seconds(params.speculative_ttl) if params.speculative_indexing else 0.0


def _block_index(params: Exact, secret: int) -> BlockIndex:
    size = params.indexer_config.kv_block_index_config.in_memory_config.size
    try:
        return BlockIndex(capacity=size, secret=secret)
    except (MemoryError, ValueError) as error:
        raise ConfigError(
            "plugins", f"inMemoryConfig.size {size} is more than this machine can reserve: {error}"
        ) from error
