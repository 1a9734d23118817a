"""Clients that leave answers whose engine does not tell as it goes: what is charged is near what the engines made, under load.

No engine says what an aborted request made. The picker infers it from the time that the engine had; here the engines' own
accounts (`--account`) say how well. Figures: `pytest --log-cli-level=info`.
"""

import asyncio
import logging
import random
from collections import Counter

import orjson
import pytest

from bench import load
from tests.e2e.stack import CHAT, COMPLETIONS, a_pod, a_route, a_server, running

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(240)]

LOG = logging.getLogger(__name__)
LEFT = 160
LIMIT = "  rateLimit: {unit: month, inputTokensPerUnit: 100000000, outputTokensPerUnit: 100000000}\n"
ENGINES = ("demo-0", "demo-1")
WORDS = ("river", "stone", "cloud", "grass", "night")


class Clients:
    """Some stay for their answers, so that the engines are busy and their times known; some leave at a random moment."""

    def __init__(self, gateway, *, streams, left_streams=False):
        self._gateway = gateway
        self._streams = streams  # share of those who stay
        self._left_streams = left_streams  # of several choices; else plain answers are left
        self._pool = load.Pool(gateway.url, keep_body=True)
        self._draw = random.Random(5)
        self._left = 0
        self.stayed = 0

    async def run(self):
        await asyncio.gather(*(self._stays() for _ in range(12)))  # so that times are known
        await asyncio.gather(*(self._leave() for _ in range(10)), *(self._stay() for _ in range(6)))
        self._pool.close()

    async def _stay(self):
        while self._left < LEFT:
            await self._stays()

    async def _stays(self):
        body = self._body(most=60, stream=self._draw.random() < self._streams)
        sample = await self._pool.exchange(0, self._request(body, "stays"))
        assert sample.status == 200
        self.stayed += 1

    async def _leave(self):
        while self._left < LEFT:
            number = self._left = self._left + 1
            body = self._body(most=8192, stream=self._left_streams, several=self._left_streams)
            client = await load.connect(self._gateway.url, keep_body=True)
            answer = client.send(0, self._request(body, f"left-{number}"))
            await asyncio.wait([answer], timeout=0.05 + 2.5 * self._draw.random())
            client.close()
            sample = await answer
            assert sample.status <= 0

    def _body(self, *, most, stream, several=False):
        draw = self._draw
        said = " ".join(draw.choices(WORDS, k=draw.randint(1, 200)))
        more = " ".join(draw.choices(WORDS, k=draw.randint(1, 50)))
        prompts = ({"prompt": said}, {"messages": [{"role": "user", "content": said}]}, {"prompt": [said, more]})
        prompt = draw.choice(prompts)
        bound = draw.randint(most // 2, most)
        n = draw.choice((2, 3) if several else (1, 1, 1, 2))
        return {"model": "demo", "stream": stream, "max_tokens": bound, "n": n} | prompt

    def _request(self, body, name):
        path = COMPLETIONS if "prompt" in body else CHAT
        return load.post("gateway", path, orjson.dumps(body), (("x-request-id", name),))


def lines(file):
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("streams", "left_streams"),
    [(0.5, False), (0.0, False), (0.5, True)],
    ids=["plain ones beside streams", "plain ones beside such only", "streams of several choices"],
)
async def test_clients_that_leave_are_charged_what_the_engines_made(tmp_path, streams, left_streams):
    documents = [a_pod(name, "--account", str(tmp_path / f"{name}.jsonl")) for name in ENGINES]
    documents += [a_server(), a_route() + LIMIT]
    log = tmp_path / "decisions.jsonl"
    async with running(tmp_path / "manifests", *documents, decision_log=log) as world:
        clients = Clients(world, streams=streams, left_streams=left_streams)
        await clients.run()
        metrics = await world.settled()
    made = {}
    for name in ENGINES:
        made |= {entry["client_request_id"]: entry for entry in lines(tmp_path / f"{name}.jsonl")}
    entries = lines(log)
    decisions = {one["decision"]["ticket"]: one["decision"] for one in entries if "decision" in one}
    ends = [(decisions[one["end"]["ticket"]], one["end"]) for one in entries if "end" in one]
    left = [(decision, end) for decision, end in ends if decision["request_id"].startswith("left-")]

    # Before the engine had a request its client has left here and there: the engine knows nothing of it, and it is free.
    known = [(made[one["request_id"]], end["charged"]) for one, end in left if one["request_id"] in made]
    free = [end["charged"] for one, end in left if one["request_id"] not in made]
    theirs = sum(entry["generated_tokens"] for entry, _ in known)
    ours = sum(charged["output_tokens"] for _, charged in known)
    off = sorted(charged["output_tokens"] - entry["generated_tokens"] for entry, charged in known)
    LOG.info("%d decided of %d", len(left), LEFT)
    LOG.info("%d left: charged %d, made %d (%+.1f %%)", len(known), ours, theirs, 100 * (ours / theirs - 1))
    LOG.info("single ones off by %s; free: %s; %d stayed", off[:: len(off) // 16], free, clients.stayed)
    assert len({one["request_id"] for one, _ in left}) == len(left)
    assert len(known) >= 100
    unheard = sum(charged["by"] == "passed-on" for _, charged in known) if left_streams else 0  # before the first token
    assert Counter(charged["by"] for _, charged in known)["estimate"] == len(known) - unheard
    assert unheard < len(known) / 4
    assert all(charged["output_tokens"] == 0 for charged in free)
    assert all(end["charged"]["input_tokens"] in (one["prompt_tokens"], 0) for one, end in left)
    assert ours == pytest.approx(theirs, rel=0.15)
    assert metrics["matrixinfer_limits_settled_total{by=estimate}"] >= len(known) - unheard
    assert metrics["matrixinfer_limits_settled_total{by=usage}"] == clients.stayed
