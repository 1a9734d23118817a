"""A director with everything real behind it, on a table of a few endpoints."""

import asyncio
import itertools
import json
import random

import numpy as np

from extproc import plugins
from extproc.adapters.errands import Telling
from extproc.candidates import World
from extproc.director import Director
from extproc.kvcache.index import PrefixIndex
from extproc.scheduling import config
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.tokens.text import TextBlocks
from extproc.traffic.ledger import Ledger
from extproc.traffic.pools import Pools
from extproc.traffic.routes import RouteTable
from extproc.types import HttpRequest, Outcome
from matrixinfer.api import networking

ADDRESSES = tuple(f"127.0.0.{number}:8000" for number in range(1, 5))


class Clock:
    """Time that a test moves."""

    now = 100.0

    def __call__(self):
        return self.now


class Stage:
    """One ModelServer `ns/engines` behind one ModelRoute `ns/demo`."""

    def __init__(self, addresses=ADDRESSES, document=None, route=None, model=None, exact=None):
        self.table = EndpointTable()
        for address in addresses:
            self.table.upsert(Endpoint(address, f"ns/{address}", "vLLM"))
        self.table.scraped_at[:] = 100.0
        self.pools = Pools(self.table)
        self.pools.set({"ns/engines": addresses} if addresses else {})
        self.ledger = Ledger(self.table)
        self.index = PrefixIndex()
        self.clock = Clock()
        tickets = itertools.count()
        self.director = Director(
            World(self.table, self.pools, self.ledger, self.index, exact),
            scheduler=a_scheduler(document),
            blocks=TextBlocks(),
            clock=self.clock,
            draw=random.Random(7),
            tickets=lambda: f"t{next(tickets)}",
        )
        self.director.use_routes(RouteTable.build([route or a_route()], [a_server(model)]))

    def decide(self, http):
        """Tell a story that does not wait."""
        return told(self.director.decide(http))

    def inflight(self):
        return self.table.inflight[: len(self.table)].tolist()


class Waiting:
    """A story that the loop tells on; the stage has `errands`."""

    def __init__(self, stage, http):
        story = stage.director.decide(http)
        self.heard = asyncio.get_running_loop().create_future()
        self.telling = Telling(story, next(story), stage.errands, lambda _answer: None)
        self.telling.then(self.heard.set_result)


def told(story):
    """Return how a story ends whose errands are run at once."""
    try:
        errand = next(story)
        while True:
            errand = story.send(errand.work())
    except StopIteration as end:
        return end.value


def a_scheduler(document=None):
    return config.build(
        config.load(document or {"apiVersion": config.API_VERSIONS[0], "kind": config.KIND}, plugins.BUILTIN)
    )


def a_route(name="demo", **spec):
    return networking.ModelRoute.model_validate(
        {
            "metadata": {"namespace": "ns", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "modelName": "demo",
                "rules": [{"targetModels": [{"modelServerName": "engines"}]}],
                **spec,
            },
        }
    )


def a_server(model=None):
    spec = {
        "inferenceEngine": "vLLM",
        "workloadSelector": {"matchLabels": {"app": "demo"}},
        "workloadPort": {"port": 8000},
    }
    return networking.ModelServer.model_validate(
        {"metadata": {"namespace": "ns", "name": "engines"}, "spec": spec | ({"model": model} if model else {})}
    )


def a_chat(*turns, headers=None, subset=None, **body):
    messages = [{"role": "assistant" if number % 2 else "user", "content": turn} for number, turn in enumerate(turns)]
    return HttpRequest(
        "POST",
        "/v1/chat/completions",
        {"content-type": "application/json", "x-request-id": "r-1", **(headers or {})},
        json.dumps({"model": "demo", "messages": messages, **body}).encode(),
        subset,
    )


def an_outcome(decision, endpoint=None, status=200, flags=(), attempts=1):
    return Outcome(
        ticket=decision.ticket,
        request_id="r-1",
        model="demo",
        endpoint=decision.endpoints[0] if endpoint is None else endpoint,
        status=status,
        flags=flags,
        details="",
        attempts=attempts,
        started_at=0.0,
        duration_s=1.0,
        first_token_s=0.1,
        prompt_tokens=10,
        completion_tokens=5,
        cached_tokens=2,
    )


def words(seed, count):
    return " ".join(np.random.default_rng(seed).choice(["alpha", "beta", "gamma", "delta"], count))
