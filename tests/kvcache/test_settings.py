import pytest

from extproc import plugins
from extproc.adapters import settings
from extproc.adapters.kv_sources import Discovery
from extproc.errors import ConfigError
from extproc.plugins import precise_prefix_cache_producer as producer
from extproc.scheduling import config

HEAD = {"apiVersion": config.API_VERSIONS[0], "kind": config.KIND}


def loaded(*specs):
    return config.load({**HEAD, "plugins": list(specs)} if specs else HEAD, plugins.BUILTIN)


def precise(kind="precise-prefix-cache-producer", **parameters):
    return {"type": kind, "parameters": parameters}


def test_without_a_word_engines_that_say_where_they_publish_are_followed():
    assert settings.discovery(loaded()) == Discovery(enabled=True, topic="", port=None, replay_port=None)
    assert settings.exact_index(loaded(), secret=1).weights == (1.0, 0.8, 0.5)


def test_upstreams_configuration_is_taken_whole():
    current = loaded(
        precise(
            tokenProcessorConfig={"blockSizeTokens": 64, "hashSeed": "42"},
            speculativeIndexing=True,
            speculativeTTL="1s500ms",
            kvEventsConfig={
                "topicFilter": "kv@",
                "concurrency": 32,
                "discoverPods": True,
                "podDiscoveryConfig": {"socketPort": 5556},
            },
            indexerConfig={
                "kvBlockIndexConfig": {"inMemoryConfig": {"size": 50_000, "podCacheSize": 10}, "enableMetrics": True},
                "kvCacheBackendConfigs": [{"name": "cpu", "weight": 0.6}],
            },
        ),
        {
            "type": "prefix-cache-scorer",
            "parameters": {"prefixMatchInfoProducerName": "precise-prefix-cache-producer"},
        },
    )
    index = settings.exact_index(current, secret=1)

    assert settings.discovery(current) == Discovery(enabled=True, topic="kv@", port=5556, replay_port=None)
    assert (index.chain.block_tokens, index.index.capacity) == (64, 50_000)
    assert (index.weights, index.expected_s) == ((1.0, 0.6, 0.5), 1.5)


def test_the_scorer_brings_the_same_parameters():
    current = loaded(precise("precise-prefix-cache-scorer", speculativeIndexing=False))

    assert settings.exact_index(current, secret=1).expected_s == 0.0
    assert settings.discovery(current).port == 5557


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"kvEventsConfig": {"zmqEndpoint": "tcp://*:5557"}}, "zmqEndpoint is not supported"),
        ({"indexerConfig": {"kvCacheBackendConfigs": [{"name": "tape"}]}}, "no tier is called 'tape'"),
        ({"indexerConfig": {"tokenizersPoolConfig": {}}}, "tokenizersPoolConfig"),
        ({"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {}}}}, "redisConfig"),
        ({"speculativeTTL": "soon"}, "speculativeTTL must be a duration"),
        ({"tokenProcessorConfig": {"blockSize": 16, "blockSizeTokens": 32}}, "older name"),
    ],
)
def test_what_we_lack_is_named(parameters, words):
    with pytest.raises(ConfigError, match=words):
        loaded(precise(**parameters))


def test_there_is_one_exact_index_and_one_size_of_blocks():
    with pytest.raises(ConfigError, match="there is one exact index"):
        settings.exact(loaded(precise(), precise("precise-prefix-cache-scorer")))
    with pytest.raises(ConfigError, match="blocks have one size"):
        settings.block_tokens(
            loaded(
                precise(tokenProcessorConfig={"blockSizeTokens": 32}),
                {"type": "token-producer", "parameters": {"blockSizeTokens": 16}},
            )
        )


def test_another_size_of_blocks_begins_anew_and_another_weight_does_not():
    before, heavier = loaded(), loaded(precise(kvEventsConfig={"discoverPods": True}))
    larger = loaded(precise(tokenProcessorConfig={"blockSizeTokens": 32}))
    exact = settings.exact_index(before, secret=1)
    index = exact.index

    assert settings.follow_exact(exact, before=before, after=heavier, secret=2)  # a port to look at
    assert exact.index is index
    assert not settings.follow_exact(exact, before=heavier, after=heavier, secret=2)
    assert settings.follow_exact(exact, before=heavier, after=larger, secret=2)
    assert exact.index is not index
    assert exact.chain.block_tokens == 32


@pytest.mark.parametrize(("text", "s"), [("2s", 2.0), ("500ms", 0.5), ("1m30s", 90.0), ("1.5s", 1.5)])
def test_durations_are_read_as_go_writes_them(text, s):
    assert producer.seconds(text) == pytest.approx(s)
