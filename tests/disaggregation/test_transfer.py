"""The bodies of both legs, connector by connector."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import transfer

LEG = transfer.Leg(host="10.0.0.7", key="xfer-1", room=1 << 62, bootstrap_port=8998)
SAMPLED = {"temperature": 0.25, "seed": 12345678901234567890123, "user": "ä\u2028"}
NIXL_ASKS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
NIXL_SAYS = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2]], "remote_port": 5600}


def legs(connector, *, vllm=True, **body):
    return transfer.Legs(connector, json.dumps({"model": "m", "prompt": "hello", **body}).encode(), vllm=vllm)


def prefill(connector, leg=LEG, *, vllm=True, **body):
    return json.loads(legs(connector, vllm=vllm, **body).prefill(leg))


def decode(connector, leg=LEG, answer=b"{}", **body):
    return json.loads(legs(connector, **body).decode(leg, answer))


@pytest.mark.parametrize("connector", ["http", "lmcache", "nixl", "mooncake", "sglang"])
def test_a_prefill_leg_makes_one_token_and_no_stream(connector):
    sent = prefill(connector, stream=True, stream_options={"include_usage": True}, max_tokens=100, min_tokens=5)

    assert (sent["stream"], sent["max_tokens"], sent["min_tokens"]) == (False, 1, 1)
    assert "stream_options" not in sent
    assert "max_completion_tokens" not in sent


def test_the_newer_limit_is_set_where_the_client_used_it():
    sent = prefill("nixl", max_completion_tokens=50)

    assert (sent["max_tokens"], sent["max_completion_tokens"]) == (1, 1)


def test_min_tokens_goes_to_vllm_only():
    assert "min_tokens" not in prefill("sglang", vllm=False)


@pytest.mark.parametrize("connector", ["http", "lmcache"])
def test_engines_that_share_a_store_get_the_body_alone(connector):
    assert "kv_transfer_params" not in prefill(connector)
    assert decode(connector, max_tokens=7) == {"model": "m", "prompt": "hello", "max_tokens": 7}


def test_nixl_asks_for_blocks_and_hands_on_the_answers_word_for_word():
    answer = json.dumps({"id": "x", "kv_transfer_params": NIXL_SAYS}).encode()

    assert prefill("nixl")["kv_transfer_params"] == NIXL_ASKS
    assert decode("nixl", answer=answer)["kv_transfer_params"] == NIXL_SAYS


@pytest.mark.parametrize(
    ("answer", "why"), [(b"{}", "no-transfer"), (b'{"kv_transfer_params":null}', "no-transfer"), (b"<", "bad-answer")]
)
def test_an_answer_without_blocks_is_no_transfer(answer, why):
    with pytest.raises(transfer.NotTransferable, match=why):
        decode("nixl", answer=answer)


def test_mooncake_names_the_transfer_and_the_bootstrap_server():
    leg = transfer.Leg("fd00::1", "xfer-2", engine=transfer.Engine("e1", rank=1))
    body = legs("mooncake")

    assert json.loads(body.prefill(leg))["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "transfer_id": "xfer-2",
    }
    assert json.loads(body.decode(leg, b""))["kv_transfer_params"] == {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": "xfer-2",
        "remote_bootstrap_addr": "http://[fd00::1]:8998",
        "remote_engine_id": "e1",
    }
    assert body.headers(leg) == {"x-data-parallel-rank": "1"}


def test_of_several_ranks_the_key_chooses_one():
    answer = json.dumps({str(rank): {"engine_id": f"e{rank}", "worker_addr": {}} for rank in range(3)}).encode()

    assert [transfer.engine(answer, key).id for key in range(4)] == ["e0", "e1", "e2", "e0"]
    assert transfer.engine(b'{"0":{"engine_id":"only"}}', 5) == transfer.Engine("only")


@pytest.mark.parametrize(("answer", "why"), [(b"{}", "no-engine"), (b"[]", "bad-bootstrap"), (b"", "bad-bootstrap")])
def test_a_bootstrap_server_that_knows_no_engine_is_told(answer, why):
    with pytest.raises(transfer.NotTransferable, match=why):
        transfer.engine(answer, 0)


def test_sglang_gets_the_same_room_in_both_legs():
    both = prefill("sglang", vllm=False), decode("sglang")

    for sent in both:
        assert (sent["bootstrap_host"], sent["bootstrap_port"], sent["bootstrap_room"]) == ("10.0.0.7", 8998, 1 << 62)
    assert both[1]["rid"] == "xfer-1"


def test_the_decode_leg_keeps_the_clients_values_to_the_byte():
    body = (
        b'{"model":"m","prompt":"a","max_tokens": 10 ,"seed":12345678901234567890123,"temperature":1.0,"stream":true}'
    )
    sent = transfer.Legs("nixl", body).decode(LEG, b'{"kv_transfer_params":{"a": [1,  2]}}')

    for part in (b'"seed":12345678901234567890123', b'"temperature":1.0', b'"stream":true', b'{"a": [1,  2]}'):
        assert part in sent


@pytest.mark.parametrize("field", ["kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"])
@pytest.mark.parametrize("connector", ["http", "nixl", "mooncake", "sglang"])
def test_what_a_client_says_of_transfers_reaches_no_engine(field, connector):
    body = legs(connector, **{field: "evil"})

    assert b"evil" not in body.prefill(LEG)
    assert b"evil" not in body.alone()
    assert b"evil" not in (transfer.stripped(json.dumps({"model": "m", field: "evil"}).encode()) or b"evil")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"n": 2}, "several-answers"),
        ({"best_of": 3}, "several-answers"),
        ({"use_beam_search": True}, "several-answers"),
        ({"prompt": ["a", "b"]}, "several-prompts"),
        ({"prompt": [[1, 2], [3]]}, "several-prompts"),
        ({"prompt_embeds": "AAAA"}, "no-tokens"),
        ({"echo": True}, "prompt-logprobs"),
        ({"prompt_logprobs": 1}, "prompt-logprobs"),
    ],
)
def test_what_one_transfer_cannot_serve_is_not_split(body, why):
    with pytest.raises(transfer.NotTransferable, match=why):
        legs("nixl", **body)


@pytest.mark.parametrize(
    "body", [{"n": 1}, {"n": None}, {"prompt": [1, 2, 3]}, {"echo": False}, {"prompt_logprobs": None}]
)
def test_one_prompt_and_one_answer_are_split(body):
    assert legs("nixl", **body).prefill(LEG)


@pytest.mark.parametrize(
    ("engine", "kind", "name"),
    [
        ("vLLM", None, "http"),
        ("SGLang", None, "sglang"),
        ("SGLang", "nixl", "nixl"),
        ("vLLM", "lmcache", "lmcache"),
        ("vLLM", "mooncake", "mooncake"),
        ("vLLM", "http", "http"),
    ],
)
def test_a_model_server_says_which_connector(engine, kind, name):
    assert transfer.connector(engine, kind) == name


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text().filter(
    lambda key: key not in {"n", "best_of", "use_beam_search", "prompt", "prompt_embeds", "echo", "prompt_logprobs"}
)


@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_all_that_is_not_a_connectors_own_comes_through(body):
    own = {"kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"}
    made = transfer.Legs("http", json.dumps(body).encode())

    assert json.loads(made.alone()) == {key: value for key, value in body.items() if key not in own}
