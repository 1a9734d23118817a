"""Limits that several pickers count together, in Redis: one atomic script for an admission, one for its settlement.

No request waits longer than a bound, and none fails for Redis' sake: one that is slow, away or answers nonsense makes the
errand Busy, and the picker goes on with its own share. Then Redis is left alone for a while. What was spent is told in
order of its end, again and again until Redis has taken it; the script ignores what it has heard.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import ssl
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from extproc.adapters import resp, telemetry
from extproc.errors import Busy, ConfigError
from extproc.types import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from extproc.traffic.limits.limiter import Counts
    from extproc.types import Spent, Take

_LOG = logging.getLogger(__name__)
_PREFIX: Final = "matrixinfer:"
_WITHIN_S: Final = 0.05  # for an admission: Redis in the same zone takes below a millisecond
_SETTLE_WITHIN_S: Final = 2.0
_AWAY_S: Final = 0.1  # without asking, after a failure; twice as long after the next
_LONGEST_AWAY_S: Final = 1.0
_TELL_AGAIN_S: Final = 0.2
_OTHERS_S: Final = 0.5  # in which the other pickers tell theirs, too, when it is back
_TOLD_AT_ONCE: Final = 32  # settlements in a command
_STEPS_TO_READ: Final = 4  # of the loop: from the socket to the connection, the command, its task
_AT_ONCE: Final = 16  # commands under way, each with a connection: one picker's loop does not fill more
_LAST_WORDS_S: Final = 1.0
_TTL_S: Final = 3660  # of a reservation: the ledger gives up earlier
_MOST_UNSETTLED: Final = 100_000  # some 40 MB
_KINDS: Final = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a counter is, and how it is entered."""

    kind: str  # "", sentinel, cluster
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = None
    path: str = ""  # number of the database; of Sentinel: name of the service
    ca_file: str | None = None
    stands_for: str = ""  # an address that routes name instead of its own; "*": all

    def answers_to(self, address: str) -> bool:
        """Tell whether a route that names `address` means this one."""
        if self.stands_for:
            return self.stands_for in ("*", address)
        return any(address in (f"{host}:{port}", f"[{host}]:{port}") for host, port in self.hosts)


def endpoint(url: str) -> Endpoint:
    """Read `redis[s][+sentinel|+cluster]://[user[:password]@]host[:port][,host...][/database or service][?ca_file=...]`.

    Raises ConfigError.
    """
    # Some Pythons refuse an authority with brackets behind its beginning, as several hosts have it.
    authority = url.partition("://")[2].partition("/")[0].partition("?")[0]
    parts = urlsplit(url.replace(authority, "hosts", 1) if authority else url)
    if parts.scheme not in _KINDS or not authority:
        raise ConfigError("redis", f"an address begins with one of {', '.join(kind + '://' for kind in _KINDS)}")
    credentials, _, hosts = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    found = []
    for host in hosts.split(","):
        try:
            one = urlsplit(f"//{host}")
            found.append((one.hostname or "", one.port or _PORT))
        except ValueError:
            raise ConfigError("redis", f"{host} is no host:port") from None
    name, _, value = parts.query.partition("=")
    if parts.query and name != "ca_file":
        raise ConfigError("redis", f"{name} is not known: there is ca_file")
    scheme, _, kind = parts.scheme.partition("+")
    path = parts.path.strip("/")
    if kind == "sentinel" and not path:
        raise ConfigError("redis", "name the service that Sentinel watches: redis+sentinel://host:26379/NAME")
    if kind != "sentinel" and path and not path.isdecimal():
        raise ConfigError("redis", f"{path} is no number of a database")
    return Endpoint(
        kind=kind,
        tls=scheme == "rediss",
        hosts=tuple(found),
        username=unquote(user) or None,
        password=unquote(password) or None,
        path=path,
        ca_file=unquote(value) or None,
    )


def endpoints(file: Path | None) -> tuple[Endpoint, ...]:
    """Read a file with one `[address that routes name] URL` on each line. Raises ConfigError."""
    if file is None:
        return ()
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("redis", f"{file} cannot be read: {error}") from error
    return tuple(_entry(line.split()) for line in lines if line.strip() and not line.startswith("#"))


def _entry(words: list[str]) -> Endpoint:
    if len(words) > 2:  # noqa: PLR2004 - an address and a URL
        raise ConfigError("redis", "a line is a URL, or an address that routes name and a URL")
    stands_for = words[0] if len(words) > 1 else ""
    return replace(endpoint(words[-1]), stands_for=stands_for)


class Stores:
    """All counters that routes name. One client for each address."""

    def __init__(self, known: Sequence[Endpoint], *, picker: str, within_s: float = _WITHIN_S) -> None:
        """`picker`: a name that no other picker has."""
        self.counts: Counter[str] = Counter()
        self.told: Callable[[Spent], None] = lambda _spent: None  # hears what Redis has taken
        self.heard: Callable[[str, int, Mapping[str, float]], None] = lambda *_heard: None  # and what is used then
        self._known = known
        self._picker = picker
        self._within_s = within_s
        self._stores: dict[str, _Store] = {}

    async def take(self, take: Take) -> Taken:
        """Charge. Raises Busy where there is no answer in time."""
        store = self._of(take.store)
        now = asyncio.get_running_loop().time()
        if now < store.away_until or store.behind:
            self.counts["skipped"] += 1
            raise Busy
        arguments: list[Any] = ["take", take.ticket, self._picker, _TTL_S]
        for asked in take.limits:
            arguments += (
                asked.amount,
                asked.limit,
                repr(asked.rate),
                int(asked.shadow),
                repr(asked.level),
                asked.untold,
            )
        keys = (asked.key for asked in take.limits)
        try:
            taken = _taken(await _within(self._within_s, store.run(take.route, keys, arguments)), len(take.limits))
            _check(take, taken)
        except TimeoutError:
            self.counts["slow"] += 1
        except Exception as error:  # noqa: BLE001 - whatever the client raises: no request fails for it
            self.counts["failed"] += 1
            _LOG.warning("Redis cannot count", extra={"address": take.store, "problem": str(error)})
        else:
            self.counts["ok"] += 1
            store.away_s = _AWAY_S
            return taken
        now = asyncio.get_running_loop().time()
        if now >= store.away_until:  # of those that were under way together, the first speaks for all
            store.away_until = now + store.away_s
            store.away_s = min(2 * store.away_s, _LONGEST_AWAY_S)
        raise Busy

    def tell(self, spent: Spent) -> None:
        """Pass on what was spent, as soon as Redis takes it."""
        store = self._of(spent.store)
        if len(store.unsettled) >= _MOST_UNSETTLED:
            self.told(store.unsettled.popleft())
            self.counts["lost"] += 1
        store.unsettled.append(spent)
        if store.teller is None:
            store.teller = asyncio.get_running_loop().create_task(self._tell(store))

    def client(self, address: str) -> Any:
        """Return the client of the server that `address` means, for others who share something there."""
        return self._of(address).client

    async def close(self) -> None:
        """Tell what is left if Redis takes it at once, and leave; what is not told expires there."""
        tellers = [store.teller for store in self._stores.values() if store.teller is not None]
        if tellers:
            await asyncio.wait(tellers, timeout=_LAST_WORDS_S)
        for store in self._stores.values():
            if store.teller is not None:
                store.teller.cancel()
            await store.close()

    def metrics(self, counts: Counts) -> Iterable[Metric]:
        """Yield the metrics of limits."""
        yield telemetry.counter(
            "matrixinfer_limits_over",
            "Times that a limit left no room, by whose it is and what it counts; shadow: the request went on.",
            {labels: float(number) for labels, number in counts.over.items()},
            ("scope", "type", "mode"),
        )
        yield telemetry.counter(
            "matrixinfer_limits_settled",
            "Requests that met a limit and are over, by how it was found what they took.",
            {(by,): float(number) for by, number in counts.settled.items()},
            ("by",),
        )
        yield telemetry.counter(
            "matrixinfer_limits_alone", "Requests that met a global limit without its Redis.", {(): counts.alone}
        )
        yield telemetry.counter(
            "matrixinfer_limits_store_calls",
            "What became of admissions that Redis was to count, and settlements that it lost or refused.",
            {(result,): float(number) for result, number in self.counts.items()},
            ("result",),
        )
        yield telemetry.gauge(
            "matrixinfer_limits_unsettled",
            "Settlements that Redis has not taken yet.",
            sum(len(store.unsettled) for store in self._stores.values()),
        )

    def _of(self, address: str) -> _Store:
        store = self._stores.get(address)
        if store is None:
            host, _, port = address.rpartition(":")
            plain = Endpoint("", tls=False, hosts=((host.strip("[]"), int(port)),))
            found = next((one for one in self._known if one.answers_to(address)), plain)
            store = self._stores[address] = _Store(found)
        return store

    async def _tell(self, store: _Store) -> None:
        while store.unsettled:
            together = _alike(store.unsettled)
            keys, arguments = _settlement(together)
            try:
                async with asyncio.timeout(_SETTLE_WITHIN_S):
                    heard = _heard(await store.run(together[0].route, keys, arguments), keys)
            except Exception as error:  # noqa: BLE001 - likewise: it is told again
                self.counts["unsettled"] += 1
                store.behind = store.behind or isinstance(error, (OSError, TimeoutError, RedisConnectionError))
                await asyncio.sleep(_TELL_AGAIN_S)
                continue
            for spent in together:
                if store.unsettled and store.unsettled[0] is spent:
                    store.unsettled.popleft()
                    self.told(spent)
            self.heard(together[0].store, *heard)
            if store.behind and not store.unsettled:
                store.behind = False
                store.away_until = asyncio.get_running_loop().time() + _OTHERS_S
        store.teller = None


class _Store:
    """One counter."""

    def __init__(self, where: Endpoint) -> None:
        self.away_until = 0.0
        self.away_s = _AWAY_S
        self.behind = False  # it was not there to be told what was spent: its word is not the whole truth
        self.unsettled: deque[Spent] = deque()
        self.teller: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._sentinels: list[Any] = []
        self.client: Any = self._connect(where)

    async def run(self, route: str, keys: Iterable[str], arguments: list[Any]) -> Any:
        """Run the script on a route's keys, which a Cluster keeps together for the braces."""
        named = [f"{_PREFIX}{{{route}}}/{name}" for name in ("due", "open", "pickers")]
        named += [_PREFIX + key for key in keys]
        text, digest = _script()
        async with self._turns:
            try:
                return await self.client.execute_command("EVALSHA", digest, len(named), *named, *arguments)
            except NoScriptError:
                return await self.client.execute_command("EVAL", text, len(named), *named, *arguments)

    async def close(self) -> None:
        """Close all connections."""
        for each in (self.client, *self._sentinels):
            await each.aclose()

    def _connect(self, where: Endpoint) -> Any:
        options: dict[str, Any] = {
            "username": where.username,
            "password": where.password,
            "socket_connect_timeout": _SETTLE_WITHIN_S,
            "socket_timeout": _SETTLE_WITHIN_S,
        }
        if where.tls:
            options |= {"ssl": True, "ssl_ca_certs": where.ca_file}
        if where.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in where.hosts]
            return redis.asyncio.RedisCluster(startup_nodes=nodes, **options)
        user = (where.username,) if where.username is not None else ()
        greeting = [("AUTH", *user, where.password)] if where.password is not None else []
        tls = ssl.create_default_context(cafile=where.ca_file) if where.tls else None
        if where.kind == "sentinel":
            make: Any = redis.asyncio.Sentinel  # untyped
            sentinel = make(where.hosts, sentinel_kwargs=options, **options)
            self._sentinels = list(sentinel.sentinels)
            return resp.Client(lambda: sentinel.discover_master(where.path), greeting=greeting, tls=tls)
        if where.path:
            greeting.append(("SELECT", where.path))

        async def here() -> tuple[str, int]:
            return where.hosts[0]

        return resp.Client(here, greeting=greeting, tls=tls)


async def _within(limit_s: float, work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for an answer, `limit_s` at most. Raises TimeoutError, and what the work raises.

    A loop that was held up finds answer and end of the time together: then the answer counts.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=limit_s)
        for _ in range(_STEPS_TO_READ):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
    finally:
        task.cancel()
    raise TimeoutError


def _alike(unsettled: deque[Spent]) -> list[Spent]:
    """Return the oldest, and of those behind them as many of the same route as may go together."""
    route = unsettled[0].route
    return [*takewhile(lambda spent: spent.route == route, islice(unsettled, _TOLD_AT_ONCE))]


def _settlement(together: Sequence[Spent]) -> tuple[Sequence[str], list[Any]]:
    """Return keys and arguments that settle these."""
    keys: dict[str, int] = {}
    arguments: list[Any] = ["settle"]
    for spent in together:
        arguments += (spent.ticket, len(spent.amounts))
        for key, amount, rate, reserved in spent.amounts:
            arguments += (keys.setdefault(key, len(keys) + 1), amount, repr(rate), reserved)
    return tuple(keys), arguments


@cache
def _script() -> tuple[str, str]:
    text = Path(__file__).with_name("limits.lua").read_text()
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _check(take: Take, taken: Taken) -> None:
    """Raise ValueError for an answer that says one thing of the request and another of its limits."""
    reached = any(over and not asked.shadow for asked, over in zip(take.limits, taken.over, strict=True))
    if reached == taken.admitted:
        raise ValueError("Redis answered what cannot be")


def _heard(answer: Any, keys: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Read pickers and levels out of the answer to settlements. Raises ValueError or TypeError for anything else."""
    if not isinstance(answer, list) or len(answer) != 2 + len(keys):
        raise ValueError(f"Redis answered {str(answer)[:100]}")
    return max(int(answer[1]), 1), {key: float(level) for key, level in zip(keys, answer[2:], strict=True)}


def _taken(answer: Any, limits: int) -> Taken:
    """Read the script's answer. Raises ValueError or TypeError for anything else."""
    if not isinstance(answer, list) or len(answer) != 2 + 2 * limits:
        raise ValueError(f"Redis answered {str(answer)[:100]}")
    used = tuple(float(level) for level in answer[3::2])
    if not all(map(math.isfinite, used)):
        raise ValueError(f"Redis answered {str(answer)[:100]}")
    return Taken(
        admitted=int(answer[0]) == 1,
        pickers=max(int(answer[1]), 1),
        over=tuple(int(over) == 1 for over in answer[2::2]),
        used=used,
    )
