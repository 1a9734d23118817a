"""Access log entries as Envoy writes them, whole and in every stage of missing."""

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from hypothesis import given
from hypothesis import strategies as st

from extproc.protocol import access_log
from extproc.types import Outcome

EMPTY = Outcome(
    ticket="",
    request_id="",
    model="",
    endpoint="",
    status=0,
    flags=(),
    details="",
    attempts=0,
    started_at=0.0,
    duration_s=0.0,
    first_token_s=None,
    prompt_tokens=None,
    completion_tokens=None,
    cached_tokens=None,
    placed=False,
)


def an_entry(**namespaces):
    message = als_pb2.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    for name, fields in namespaces.items():
        entry.common_properties.metadata.filter_metadata[name.replace("_", ".")].update(fields)
    return message, entry


def the_outcome(message):
    (outcome,) = access_log.decode(message.SerializeToString())
    return outcome


def test_a_whole_entry_becomes_a_whole_outcome():
    message, entry = an_entry(
        matrixinfer={"ticket": "t-1"},
        matrixinfer_usage={"prompt_tokens": 200, "completion_tokens": 30, "cached_tokens": 128, "model": "demo"},
        matrixinfer_timing={"first_token_ms": 1_700_000_000_750},
        matrixinfer_served={"host": "10.0.0.1:8000"},
    )
    common = entry.common_properties
    common.start_time.FromMilliseconds(1_700_000_000_500)
    common.duration.FromMilliseconds(2_250)
    common.time_to_last_upstream_tx_byte.FromMilliseconds(125)
    common.upstream_request_attempt_count = 2
    common.response_flags.upstream_connection_failure = True
    entry.request.request_id = "r-1"
    entry.request.request_body_bytes = 900
    entry.response.response_code.value = 200
    entry.response.response_code_details = "via_upstream"
    entry.response.response_body_bytes = 4000

    outcome = the_outcome(message)

    assert outcome.first_token_s == pytest.approx(0.25)
    assert outcome == Outcome(
        ticket="t-1",
        request_id="r-1",
        model="demo",
        endpoint="10.0.0.1:8000",
        status=200,
        flags=("UF",),
        details="via_upstream",
        attempts=2,
        started_at=1_700_000_000.5,
        duration_s=2.25,
        first_token_s=outcome.first_token_s,
        prompt_tokens=200,
        completion_tokens=30,
        cached_tokens=128,
        request_bytes=900,
        response_bytes=4000,
        sent_s=0.125,
    )


def test_a_request_whose_decision_did_not_arrive_has_the_name_that_was_offered():
    offered, _ = an_entry(matrixinfer={"offered": "t-1"})
    decided, _ = an_entry(matrixinfer={"offered": "t-1", "ticket": "t-1"})

    assert [(one.ticket, one.placed) for one in map(the_outcome, (offered, decided))] == [("t-1", False), ("t-1", True)]


def test_an_empty_entry_is_an_empty_outcome():
    message, _ = an_entry()

    assert the_outcome(message) == EMPTY


@pytest.mark.parametrize(("address", "endpoint"), [("10.0.0.9", "10.0.0.9:8000"), ("::1", "[::1]:8000"), ("", "")])
def test_without_the_balancers_word_the_upstream_address_is_the_endpoint(address, endpoint):
    message, entry = an_entry()
    entry.common_properties.upstream_remote_address.socket_address.address = address
    entry.common_properties.upstream_remote_address.socket_address.port_value = 8000

    assert the_outcome(message).endpoint == endpoint


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (7, 7),
        ("7", 7),
        (7.9, 7),
        (-1, None),
        ("x", None),
        ("", None),
        (None, None),
        ("nan", None),
        ("1e300", None),
        ([7], None),
    ],
)
def test_token_counts_are_whole_numbers_or_unknown(value, tokens):
    message, _ = an_entry(matrixinfer_usage={"prompt_tokens": value})

    assert the_outcome(message).prompt_tokens == tokens


def test_a_first_token_before_the_start_took_no_time_and_one_without_a_start_is_unknown():
    message, entry = an_entry(matrixinfer_timing={"first_token_ms": 1000})
    without_start = the_outcome(message).first_token_s
    entry.common_properties.start_time.seconds = 5

    assert without_start is None
    assert the_outcome(message).first_token_s == 0.0


def test_an_envoy_without_duration_is_measured_by_its_last_byte():
    message, entry = an_entry()
    entry.common_properties.time_to_last_downstream_tx_byte.FromMilliseconds(1500)

    assert the_outcome(message).duration_s == 1.5


def test_an_entry_of_a_request_that_goes_on_is_no_outcome():
    message, entry = an_entry()
    entry.common_properties.intermediate_log_entry = True

    assert access_log.decode(message.SerializeToString()) == []


def test_every_response_flag_has_its_short_word():
    names = accesslog_pb2.ResponseFlags.DESCRIPTOR.fields_by_name

    assert set(access_log.FLAGS) == set(names)
    assert len(set(access_log.FLAGS.values())) == len(names)


def test_flags_come_in_the_protocols_order():
    message, entry = an_entry()
    flags = entry.common_properties.response_flags
    flags.downstream_connection_termination = flags.upstream_retry_limit_exceeded = flags.no_healthy_upstream = True

    assert the_outcome(message).flags == ("UH", "DC", "URX")


def test_entries_keep_their_order_and_tcp_logs_are_none():
    message = als_pb2.StreamAccessLogsMessage()
    for ticket in "abc":
        entry = message.http_logs.log_entry.add()
        entry.common_properties.metadata.filter_metadata["matrixinfer"].update({"ticket": ticket})
    tcp = als_pb2.StreamAccessLogsMessage()
    tcp.tcp_logs.log_entry.add()

    assert [outcome.ticket for outcome in access_log.decode(message.SerializeToString())] == ["a", "b", "c"]
    assert access_log.decode(tcp.SerializeToString()) == []


@given(st.binary(max_size=300))
def test_garbage_gives_nothing_or_outcomes(data):
    assert all(isinstance(outcome, Outcome) for outcome in access_log.decode(data))


@given(st.data())
def test_a_damaged_message_never_raises(data):
    message, entry = an_entry(matrixinfer={"ticket": "t"}, matrixinfer_usage={"prompt_tokens": 1, "model": "m"})
    entry.common_properties.start_time.seconds = 1
    entry.response.response_code.value = 200
    damaged = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    assert isinstance(access_log.decode(bytes(damaged)), list)
