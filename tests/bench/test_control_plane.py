"""What the benchmark of the control plane believes to stand: it waits by that."""

from __future__ import annotations

import asyncio

from bench.control_plane import Watched


def a_pod(name):
    return {"metadata": {"name": name}, "spec": {}}


def the_end_of_what_there_is():
    return "BOOKMARK", {"metadata": {"annotations": {"k8s.io/initial-events-end": "true"}}}


class Client:
    """Its watches say this, one after the other; then a watch says nothing more."""

    def __init__(self, *watches):
        self.watches = list(watches)

    async def watch(self, _path):
        for event in self.watches.pop(0):
            yield event
            await asyncio.sleep(0)
        if not self.watches:
            await asyncio.Event().wait()


async def seen_while_following(*watches):
    watched, seen = Watched(), []
    client = Client(*watches)
    following = asyncio.create_task(watched.follow(client, "", watched.pods))
    try:
        async with asyncio.timeout(20):
            while client.watches or sorted(watched.pods) != ["b", "c"]:
                if (now := sorted(watched.pods)) not in seen[-1:]:
                    seen.append(now)
                await asyncio.sleep(0)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return seen


async def test_a_watch_that_begins_anew_does_not_make_it_seem_that_everything_is_gone():
    first = [("ADDED", a_pod("a")), ("ADDED", a_pod("b")), the_end_of_what_there_is()]
    second = [("ADDED", a_pod("b")), ("ADDED", a_pod("c")), the_end_of_what_there_is()]

    assert await seen_while_following(first, second) == [[], ["a", "b"]]


async def test_a_watch_that_is_refused_begins_anew():
    first = [("ADDED", a_pod("a")), the_end_of_what_there_is(), ("ERROR", {"metadata": {}, "code": 410})]
    second = [("ADDED", a_pod("c")), the_end_of_what_there_is(), ("ADDED", a_pod("b"))]

    assert await seen_while_following(first, second) == [[], ["a"], ["c"]]
