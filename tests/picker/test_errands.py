"""Stories that wait: errands run beside the loop, and the story goes on with what came of them."""

import asyncio
import threading

import pytest

from extproc.adapters.errands import Errands, Telling
from extproc.errors import Busy, NoEndpoints, Rejection
from extproc.types import Aside, Reply


def a_story(*works, closed=None):
    """Do `works` one after the other, then reply with what they returned; a refusal to run one is `busy`."""
    results = []
    try:
        for work in works:
            try:
                results.append((yield Aside(work)))
            except Busy:
                results.append("busy")
    finally:
        if closed is not None:
            closed.set()
    return Reply(200, repr(results).encode())


@pytest.fixture
def errands():
    errands = Errands(most_waiting=2)
    yield errands
    errands.close()


async def tell(story, errands):
    heard = []
    done = asyncio.get_running_loop().create_future()
    Telling(story, next(story), errands, heard.append).then(done.set_result)
    answer = await done
    assert heard == [answer]
    return answer


async def begun(errands, number):
    while errands.waiting < number:  # noqa: ASYNC110 - nothing else tells of it
        await asyncio.sleep(0)


async def test_what_errands_return_comes_back_into_the_story(errands):
    loop_thread = threading.get_ident()
    answer = await tell(a_story(lambda: 1, lambda: threading.get_ident() != loop_thread), errands)

    assert answer.body == b"[1, True]"
    assert errands.waiting == 0


async def test_a_refusal_inside_a_story_is_its_answer(errands):
    def story():
        yield Aside(lambda: None)
        raise NoEndpoints("gone meanwhile")

    answer = await tell(story(), errands)

    assert isinstance(answer, NoEndpoints)


async def test_an_error_of_the_work_is_the_story_s(errands):
    answer = await tell(a_story(lambda: 1 / 0), errands)

    assert isinstance(answer, Rejection)
    assert answer.status == 500


async def test_errands_beyond_the_bound_are_not_run(errands):
    gate = threading.Event()
    waiting = [asyncio.ensure_future(tell(a_story(gate.wait), errands)) for _ in range(2)]
    await begun(errands, 2)
    answer = await tell(a_story(lambda: 1), errands)
    gate.set()
    await asyncio.gather(*waiting)

    assert answer.body == b"['busy']"
    assert errands.refused == 1


async def test_a_client_that_leaves_closes_the_story_where_it_waits(errands):
    gate, closed = threading.Event(), asyncio.Event()
    story = a_story(gate.wait, closed=closed)
    heard = []
    telling = Telling(story, next(story), errands, heard.append)
    telling.then(heard.append)
    await begun(errands, 1)
    telling.withdraw()
    await asyncio.wait_for(closed.wait(), 5)
    gate.set()

    assert heard == []
    assert errands.waiting == 0


async def test_a_client_that_leaves_before_the_story_goes_on_is_not_told_it(errands):
    closed = asyncio.Event()
    story = a_story(lambda: 1, closed=closed)
    heard = []
    telling = Telling(story, next(story), errands, heard.append)
    telling.withdraw()
    telling.then(heard.append)
    for _ in range(10):
        await asyncio.sleep(0)

    assert closed.is_set()
    assert heard == []


async def test_a_story_that_was_withdrawn_stays_so_though_its_errand_loses_the_cancellation():
    class Deaf(Errands):
        async def run(self, errand):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return errand.work()

    errands, closed, heard = Deaf(), asyncio.Event(), []
    story = a_story(lambda: 1, closed=closed)
    telling = Telling(story, next(story), errands, heard.append)
    telling.then(heard.append)
    await asyncio.sleep(0)
    telling.withdraw()

    assert closed.is_set()
    await asyncio.wait([telling._task])
    assert heard == []
    errands.close()
