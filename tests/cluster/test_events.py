"""Events are made once, counted, and written now and then."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cluster.events import Recorder
from matrixinfer.cluster.plan import Emit

ABOUT = {"apiVersion": "x/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "n", "uid": "1"}}


def an_emit(message="something is odd", name="w"):
    return Emit(ABOUT | {"metadata": ABOUT["metadata"] | {"name": name}}, "Odd", message, "Warning")


def test_the_first_time_makes_the_event():
    event = Recorder("tester").record(an_emit(), 1000.5)

    assert event["metadata"]["namespace"] == "n"
    assert (event["reason"], event["note"], event["type"]) == ("Odd", "something is odd", "Warning")
    assert event["eventTime"] == "1970-01-01T00:16:40.500000Z"
    assert event["regarding"]["uid"] == "1"
    assert "series" not in event


def test_a_repetition_is_counted_and_written_once_a_minute():
    recorder = Recorder("tester")
    first = recorder.record(an_emit(), 0)
    written = [recorder.record(an_emit(), second) for second in range(1, 122)]

    series = [(second + 1, event["series"]["count"]) for second, event in enumerate(written) if event]
    assert series == [(1, 2), (61, 62), (121, 122)]
    assert {event["metadata"]["name"] for event in written if event} == {first["metadata"]["name"]}
    assert {event["eventTime"] for event in written if event} == {first["eventTime"]}


def test_another_message_is_another_event():
    recorder = Recorder("tester")

    assert "series" not in recorder.record(an_emit("one"), 0)
    assert "series" not in recorder.record(an_emit("two"), 0)


def test_what_an_earlier_process_said_is_counted_on():
    recorder = Recorder("tester")
    stands = Recorder("tester").record(an_emit(), 0) | {"series": {"count": 7}}
    stands["regarding"] = stands["regarding"] | {"resourceVersion": "3"}
    recorder.record(an_emit(), 100)

    event = recorder.resume(stands, 100)
    assert event["series"]["count"] == 8
    assert event["eventTime"] == stands["eventTime"]
    assert event["regarding"] == stands["regarding"]  # the API takes no change of it


@given(st.text("ab", min_size=1, max_size=260))
def test_names_keep_to_the_bounds_of_the_api(name):
    assert len(Recorder("tester").record(an_emit(name=name), 0)["metadata"]["name"]) <= 253
