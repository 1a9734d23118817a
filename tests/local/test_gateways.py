"""Several gateways before the same engines, and the Redis in which they count together."""

import argparse

import pytest

from extproc.adapters.redis_limits import endpoints
from matrixinfer.cli import up
from matrixinfer.local import counter, ports
from matrixinfer.local.containers import Backoff
from matrixinfer.local.stack import CannotStart, Config, Stack
from tests.e2e.stack import a_pod, a_route, a_server, running
from tests.limits import server
from tests.local.procs import alive
from tests.local.waiting import eventually_async

LIMITED = "  rateLimit: {unit: month, requestsPerUnit: 1000, global: {redis: {address: 'redis.elsewhere:6379'}}}\n"


@pytest.fixture
def documents():
    return [a_pod("demo-0"), a_server(), a_route(), a_route("limited") + LIMITED]


async def asked(world, gateway):
    """Remaining requests and status, of an answer of this gateway."""
    body = {"model": "limited", "prompt": "hello", "max_tokens": 1}
    async with world.http.post(f"{gateway.url}/v1/completions", json=body) as answer:
        return answer.headers.get("x-ratelimit-remaining-requests"), answer.status


@pytest.mark.envoy
async def test_two_gateways_count_a_global_limit_in_one_redis_also_after_it_was_killed(tmp_path, documents):
    if server.binary() is None:
        pytest.skip("no redis-server")
    async with running(tmp_path / "manifests", *documents, gateways=2, redis=counter.HERE) as world:
        first, second = world.stack.gateways
        pids = world.stack.pids()
        left = [await asked(world, gateway) for gateway in (first, second, first)]
        world.kill("redis")
        left += [await asked(world, gateway) for gateway in (first, second)]

        async def all_are_counted():
            """What is left is told by Redis again; without it each gateway tells of its half."""
            left.append(await asked(world, second))
            return left[-1][0] == str(1000 - len(left))

        await eventually_async(all_are_counted)

        assert [status for _, status in left] == [200] * len(left)
        assert [remaining for remaining, _ in left[:3]] == ["999", "998", "997"]
        assert set(pids) == {"envoy", "picker", "envoy-2", "picker-2", "redis", "default/demo-0/engine"}
        assert first.url != second.url
    assert not any(alive(pid) for pid in pids.values())


@pytest.mark.envoy
async def test_each_gateway_serves_what_changes_and_has_the_ports_that_follow(tmp_path, documents):
    port = ports.choose(0, option="--port")
    config = Config(
        directory=tmp_path,
        port=port,
        admin_port=0,
        metrics_port=0,
        gateways=2,
        envoy_workers=1,
        backoff=Backoff(0.1, 1),
    )
    for number, text in enumerate(documents):
        (tmp_path / f"{number}.yaml").write_text(text)
    async with Stack(config) as stack:
        await stack.ready()

        assert [one.port for one in stack.gateways] == [port, port + 1]
        assert sorted(file.name for file in stack.logs.glob("[ep]*.log")) == [
            "envoy-2.log",
            "envoy.log",
            "picker-2.log",
            "picker.log",
        ]


async def test_a_redis_that_cannot_be_started_says_what_to_install(tmp_path, documents, monkeypatch):
    (tmp_path / "all.yaml").write_text("---\n".join(documents))
    monkeypatch.setattr("shutil.which", lambda name, **_how: None if "server" in name else f"/bin/{name}")

    with pytest.raises(CannotStart, match="install it"):
        async with Stack(Config(directory=tmp_path, port=0, admin_port=0, metrics_port=0, redis=counter.HERE)):
            pass


def test_an_address_of_redis_is_a_host_and_port_or_a_url():
    parser = argparse.ArgumentParser(exit_on_error=False)
    up.arguments(parser)

    assert parser.parse_args(["d", "--redis"]).redis is True
    assert parser.parse_args(["d", "--redis", "redis.example:7000"]).redis == "redis://redis.example:7000"
    assert parser.parse_args(["d", "--redis=rediss://u:p@h:1"]).redis == "rediss://u:p@h:1"
    with pytest.raises(argparse.ArgumentError, match="DIR before --redis"):
        parser.parse_args(["--redis", "examples/quickstart"])


def test_one_server_may_stand_for_any_address_that_routes_name(tmp_path):
    file = counter.entry(tmp_path, "redis://:secret@127.0.0.1:7000")
    (one,) = endpoints(file)

    assert one.answers_to("redis.default:6379")
    assert (one.hosts, one.password) == ((("127.0.0.1", 7000),), "secret")
    assert file.stat().st_mode & 0o077 == 0
