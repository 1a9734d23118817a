"""What an engine is taken to have done for a request that broke off, by what its endpoint usually takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.scheduling import latency
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.scheduling.latency import Sample
from extproc.traffic import unfinished
from extproc.traffic.ledger import Done, End, Sent, Settlement
from extproc.types import Outcome

A = "10.0.0.1:80"
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
GONE, DIED, WHOLE = End.CLIENT_GONE, End.FAILED, End.COMPLETE


def a_table(*, ttft_s=0.5, tpot_s=0.01):
    table = EndpointTable()
    table.upsert(Endpoint(A, "ns/a", "vLLM"))
    if ttft_s or tpot_s:
        latency.record(table, 0, Sample(ttft_s, 100.0, tpot_s, 1), 0.0)
    return table


def ended(end=GONE, *, request=None, **facts):
    """A request of 100 tokens, passed on after 1 s, that broke off 2 s later."""
    asked = {"path": CHAT, "stream": False, "prompt_tokens": 100, "blocks": 10, "matched": 0} | (request or {})
    sent = Sent("t", "", "m", "m", "ns/s", "ns/r", endpoints=(A,), at=0.0, **asked)
    told = {"status": 0, "endpoint": A, "sent_s": 1.0, "duration_s": 3.0, "first_token_s": None}
    told |= {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": None} | facts
    outcome = Outcome("t", "", "", flags=(), details="", attempts=1, started_at=0.0, **told)
    return Settlement(sent, end, outcome, A, ())


def done(settlement, **times):
    return unfinished.done(a_table(**times), settlement)


def test_a_plain_answer_has_a_token_for_each_tokens_time_after_the_first():
    assert done(ended(duration_s=3.005)) == Done(100, 151, 0)  # 2.005 s, of them 0.5 to the first


def test_before_the_first_token_is_due_only_the_prompt_is_done():
    assert done(ended(duration_s=1.4)) == Done(100, 0, 0)


def test_each_of_several_choices_has_as_many():
    assert done(ended(request={"choices": 3}, duration_s=3.005)) == Done(100, 453, 0)


@pytest.mark.parametrize("end", [GONE, DIED])
@pytest.mark.parametrize("told", [{}, {"prompt_tokens": 40, "completion_tokens": 150}], ids=["silent", "told"])
def test_a_stream_of_several_choices_has_made_all_of_them_whatever_its_chunks_tell_of_one(end, told):
    begun = {"status": 200, "first_token_s": 1.5, "duration_s": 3.005}

    assert done(ended(end, request={"choices": 3, "stream": True}, **begun, **told)) == Done(100, 453, 0)


def test_what_a_stream_of_several_choices_told_at_its_end_is_the_least():
    told = {"status": 200, "first_token_s": 1.5, "prompt_tokens": 120, "completion_tokens": 500}

    assert done(ended(request={"choices": 3, "stream": True}, **told)) == Done(120, 500, 0)


def test_no_choice_has_more_than_the_client_allows():
    assert done(ended(request={"choices": 3, "max_tokens": 20})) == Done(100, 60, 0)


def test_what_is_known_to_be_cached_shortens_the_wait_for_the_first_token():
    table = a_table()
    latency.record(table, 0, Sample(5.5, 5100.0, None, 1), 0.0)  # 1 ms a token, about
    part = {"prompt_tokens": 5000, "blocks": 10}

    cold, warm = (unfinished.done(table, ended(request=part | {"matched": matched})) for matched in (0, 9))

    assert (cold, warm) == (Done(5000, 0, 0), Done(5000, pytest.approx(110, abs=3), 4500))


def test_an_answer_that_had_come_was_made_by_then():
    assert done(ended(first_token_s=2.005)) == Done(100, 51, 0)


def test_where_only_the_time_between_tokens_is_known_the_first_takes_as_long():
    assert done(ended(duration_s=2.005), ttft_s=None) == Done(100, 100, 0)


@pytest.mark.parametrize(
    ("settlement", "times"),
    [
        (ended(), {"ttft_s": None, "tpot_s": None}),
        (ended(), {"tpot_s": None}),
        (ended(endpoint="10.0.0.9:80"), {}),
        (ended(sent_s=None), {}),
        (ended(WHOLE, status=200), {}),
        (ended(DIED, status=503), {}),
        (ended(status=400), {}),
        (ended(request={"stream": True}, status=200), {}),
        (ended(request={"stream": True}, status=200, first_token_s=1.6, completion_tokens=9), {}),
        (ended(DIED, request={"stream": True, "path": MESSAGES}, status=200, first_token_s=1.6, prompt_tokens=9), {}),
    ],
    ids=[
        "nothing was learned",
        "the time between tokens was not",
        "the endpoint is another's",
        "it was never passed on",
        "it is whole",
        "the engine failed",
        "the engine refused it",
        "nothing of the stream was passed on",
        "the stream told as it went",
        "the engine died and had told something",
    ],
)
def test_nothing_is_inferred_where(settlement, times):
    assert done(settlement, **times) is None


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_streams_that_tell_their_usage_at_the_end_are_like_plain_answers_whose_first_token_was_seen(path):
    begun = {"status": 200, "first_token_s": 1.2, "duration_s": 3.005}
    told = {"prompt_tokens": 90, "completion_tokens": 0} if path == MESSAGES else {}

    assert done(ended(request={"stream": True, "path": path}, **begun, **told)).completion_tokens == 181  # 1.805 s


@pytest.mark.parametrize("told", [{}, {"prompt_tokens": 0, "completion_tokens": 0}], ids=["silent", "translated"])
def test_a_stream_that_tells_nothing_is_inferred_also_where_its_engine_died(told):
    begun = {"status": 200, "first_token_s": 1.5, "duration_s": 3.005}

    assert done(ended(DIED, request={"stream": True}, **begun, **told)) == Done(100, 151, 0)


seconds = st.floats(0, 1e7)


@given(
    elapsed=seconds, more=seconds, ttft_s=seconds, tpot_s=st.floats(1e-12, 1e3), most=st.none() | st.integers(0, 10**6)
)
def test_tokens_never_are_negative_nor_beyond_the_bound_nor_fewer_with_time(elapsed, more, ttft_s, tpot_s, most):
    earlier = unfinished.tokens(elapsed, ttft_s=ttft_s, tpot_s=tpot_s, most=most)
    later = unfinished.tokens(elapsed + more, ttft_s=ttft_s, tpot_s=tpot_s, most=most)

    assert 0 <= earlier <= later
    assert most is None or later <= most


@given(count=st.integers(1, 10_000), part=st.floats(0.01, 0.99), tpot_s=st.floats(0.001, 1.0), ttft_s=st.floats(0, 10))
def test_within_the_time_of_a_token_the_tokens_before_it_are_there(count, part, tpot_s, ttft_s):
    elapsed_s = ttft_s + (count - 1 + part) * tpot_s

    assert unfinished.tokens(elapsed_s, ttft_s=ttft_s, tpot_s=tpot_s, most=None) == count
