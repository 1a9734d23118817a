"""`precise-prefix-cache-producer`: the exact prefix index, fed by the engines' KV events."""

from __future__ import annotations

import re
from dataclasses import dataclass

from extproc.scheduling.framework import parameter

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PORT = 65_535


@dataclass(frozen=True, slots=True)
class TokenProcessor:
    """How token ids become blocks."""

    block_size_tokens: int = parameter(0, minimum=0, maximum=4096)
    block_size: int = parameter(0, minimum=0, maximum=4096)  # its name in older versions
    hash_seed: str = ""
    hash_algorithm: str = ""

    def __post_init__(self) -> None:
        if self.block_size and self.block_size_tokens and self.block_size != self.block_size_tokens:
            raise ValueError("blockSize is the older name of blockSizeTokens: give one of the two")


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bounds of the index."""

    size: int = parameter(16_000_000, minimum=1)
    pod_cache_size: int = parameter(10, minimum=1)


@dataclass(frozen=True, slots=True)
class BlockIndexSettings:
    """Where blocks are kept: in this process."""

    in_memory_config: InMemory = InMemory()
    enable_metrics: bool = True
    metrics_logging_interval: str = "0s"


@dataclass(frozen=True, slots=True)
class Backend:
    """What a block counts in a tier."""

    name: str
    weight: float = parameter(1.0, minimum=0, maximum=1)


@dataclass(frozen=True, slots=True)
class Indexer:
    """The index and its weights."""

    kv_block_index_config: BlockIndexSettings = BlockIndexSettings()
    kv_cache_backend_configs: tuple[Backend, ...] = ()


@dataclass(frozen=True, slots=True)
class PodDiscovery:
    """Ports of engines that do not say where they publish."""

    socket_port: int = parameter(5557, minimum=1, maximum=_PORT)
    replay_socket_port: int = parameter(0, minimum=0, maximum=_PORT)


@dataclass(frozen=True, slots=True)
class KvEvents:
    """How events are followed."""

    topic_filter: str = ""
    discover_pods: bool = True
    pod_discovery_config: PodDiscovery = PodDiscovery()
    concurrency: int = parameter(1, minimum=1)
    zmq_endpoint: str = ""

    def __post_init__(self) -> None:
        if self.zmq_endpoint:
            raise ValueError(
                "zmqEndpoint is not supported: each engine is followed at its own socket; remove it, and let engines "
                "bind tcp://*:5557"
            )


@dataclass(frozen=True, slots=True)
class Exact:
    """Parameters of the exact index, the same for the producer and for the scorer that brings its own."""

    token_processor_config: TokenProcessor = TokenProcessor()
    indexer_config: Indexer = Indexer()
    kv_events_config: KvEvents = KvEvents()
    speculative_indexing: bool = True
    speculative_ttl: str = parameter("2s", name="speculativeTTL")

    def __post_init__(self) -> None:
        seconds(self.speculative_ttl)
        weights(self)


class PrecisePrefixCacheProducer:
    """Settings of the exact index; there is one, and it is on whether a configuration names it or not.

    Without this plugin in the configuration, engines are followed that say themselves where they publish; with it, those
    that do not say are looked for at `kvEventsConfig.podDiscoveryConfig.socketPort` 5557, and past batches asked for at
    `replaySocketPort` 0 (none). `kvEventsConfig.discoverPods` true: false follows none. `topicFilter` "": every topic
    (upstream's "kv@" loses engines with vLLM's default topic).
    `tokenProcessorConfig.blockSizeTokens` 0: as the token producer's. `hashSeed` and `hashAlgorithm` may have any value:
    engines' hashes are mapped by tokens and never computed, so that nothing depends on them.
    `indexerConfig.kvBlockIndexConfig.inMemoryConfig.size` 16 million: pairs of endpoint and block, some 60 bytes each once
    they are there; the least recently used give way. `podCacheSize` is a bound that this index does not need: every
    holder of a block is kept. Metrics are always kept (`enableMetrics`, `metricsLoggingInterval`), and events are applied
    by one loop (`concurrency`). `indexerConfig.kvCacheBackendConfigs`: what a block counts in a tier by its name: `gpu` 1.0,
    `cpu` 0.8 as upstream, `disk` 0.5.
    `speculativeIndexing` true (upstream: false): a request that was just routed counts as held for `speculativeTTL` 2s,
    or until the engine tells of its blocks; without it a burst of equal prompts spreads out before the first event.
    Refused by name: `zmqEndpoint`; the back-ends `costAwareMemoryConfig`, `redisConfig`, `valkeyConfig` (each picker
    follows all engines itself); `tokenizersPoolConfig` and `prefixStoreConfig` (see token-producer).
    Source: llm-d's precise-prefix-cache-producer.
    """

    TYPE = "precise-prefix-cache-producer"
    Params = Exact

    def __init__(self, params: Exact) -> None:
        self.params = params


def seconds(text: str) -> float:
    """Read a duration such as 2s, 1.5s, 500ms or 1m30s. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"speculativeTTL must be a duration such as 2s or 500ms, not {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def weights(params: Exact) -> tuple[float, float, float]:
    """Return what a block counts on GPU, in CPU memory, elsewhere. Raises ValueError for a tier that there is not."""
    known = {"gpu": 1.0, "cpu": 0.8, "disk": 0.5}
    for one in params.indexer_config.kv_cache_backend_configs:
        if one.name.lower() not in known:
            raise ValueError(f"kvCacheBackendConfigs: no tier is called {one.name!r}; there are {', '.join(known)}")
        known[one.name.lower()] = one.weight
    return known["gpu"], known["cpu"], known["disk"]
