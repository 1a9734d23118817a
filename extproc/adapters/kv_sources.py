"""Where an endpoint publishes its KV events: one source for each data-parallel rank.

In this order: the pod's annotation `networking.matrixinfer.ai/kv-events` (`port=5557,replay=5558,ranks=2`, or `none`); the
engine's own word (`GET /kv_event_sources`, vLLM from 0.32 on); the configured port, for engines that have no such page.
Ranks publish at consecutive ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.scheduling.endpoints import Endpoint

ANNOTATION: Final = "networking.matrixinfer.ai/kv-events"
_PORTS: Final = 65_535
_RANKS: Final = 1_024
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Source:
    """One publisher."""

    address: str  # tcp://ip:port
    replay: str | None = None  # where past batches are asked for; None: nowhere


@dataclass(frozen=True, slots=True)
class Discovery:
    """How publishers are found."""

    enabled: bool = True
    topic: str = ""  # beginning of the topics that are wanted
    port: int | None = None  # of engines that do not say; None: those are not followed
    replay_port: int | None = None


class _Told(msgspec.Struct):
    endpoint: str | None = None
    replay_endpoint: str | None = None
    enable_kv_cache_events: bool = True
    publisher: str = "zmq"


async def find(session: aiohttp.ClientSession, scheme: str, endpoint: Endpoint, how: Discovery) -> tuple[Source, ...]:
    """Return an endpoint's publishers. Raises ValueError for an annotation that cannot be used."""
    host = endpoint.address.rpartition(":")[0]
    if endpoint.kv_events:
        return annotated(host, endpoint.kv_events)
    try:
        async with session.get(f"{scheme}://{endpoint.address}/kv_event_sources", allow_redirects=False) as answer:
            told = await answer.read() if answer.status == _OK else None
    except (aiohttp.ClientError, TimeoutError, OSError):
        told = None
    if told is not None:
        return told_by_engine(host, told)
    return () if how.port is None else _ranks(host, how.port, how.replay_port, 1)


def annotated(host: str, value: str) -> tuple[Source, ...]:
    """Read the annotation. Raises ValueError with what to change."""
    if value.strip() == "none":
        return ()
    given: dict[str, int] = {}
    for part in value.split(","):
        key, equals, number = part.strip().partition("=")
        if key not in ("port", "replay", "ranks") or not equals or not number.strip().isdigit():
            raise ValueError(
                f"annotation {ANNOTATION}: {part.strip()!r} is none of port=NUMBER, replay=NUMBER, ranks=NUMBER"
            )
        given[key] = int(number)
    ranks = given.get("ranks", 1)
    if "port" not in given or not 1 <= ranks <= _RANKS or max(given.values()) + ranks > _PORTS + 1:
        raise ValueError(f"annotation {ANNOTATION}: needs port=NUMBER, and ports up to {_PORTS}")
    return _ranks(host, given["port"], given.get("replay"), ranks)


def told_by_engine(host: str, page: bytes) -> tuple[Source, ...]:
    """Read the engine's page: publishers by rank; those that are no ZMQ sockets over TCP are left out."""
    try:
        told: Mapping[str, _Told] = msgspec.json.decode(page, type=dict[str, _Told])
    except msgspec.MsgspecError:
        return ()
    sources = []
    for one in told.values():
        port = _port(one.endpoint)
        if one.enable_kv_cache_events and one.publisher == "zmq" and port is not None:
            replay = _port(one.replay_endpoint)
            sources.append(_source(host, port, replay))
    return tuple(sources)


def _ranks(host: str, port: int, replay: int | None, ranks: int) -> tuple[Source, ...]:
    return tuple(_source(host, port + rank, None if replay is None else replay + rank) for rank in range(ranks))


def _source(host: str, port: int, replay: int | None) -> Source:
    return Source(f"tcp://{host}:{port}", None if replay is None else f"tcp://{host}:{replay}")


def _port(address: str | None) -> int | None:
    """Return the port of `tcp://*:5557`; the engine's own host is where its endpoint is."""
    if address is None or not address.startswith("tcp://"):
        return None
    port = address.rpartition(":")[2]
    return int(port) if port.isdigit() and 0 < int(port) <= _PORTS else None
