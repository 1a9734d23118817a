"""Engines' metrics pages."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.adapters import pages
from extproc.adapters.pages import Load
from extproc.scheduling.endpoints import Lora

VLLM, SGLANG = pages.NAMES["vLLM"], pages.NAMES["SGLang"]
RECORDED = Path(__file__).parents[1] / "simulator" / "recordings"


def test_a_page_of_vllm():
    page = b"""# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
"""

    assert pages.load(page, VLLM) == Load(waiting=2.0, running=3.0, kv_usage=0.25)


def test_ranks_add_up_and_the_fullest_cache_counts():
    page = b"""vllm:num_requests_running{engine="0",model_name="a}b"} 3
vllm:num_requests_running{engine="1",model_name="a}b"} 4
vllm:num_requests_waiting{engine="0",model_name="a}b"} 1
vllm:num_requests_waiting{engine="1",model_name="a}b"} 0
vllm:kv_cache_usage_perc{engine="0",model_name="a}b"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a}b"} 0.75"""

    assert pages.load(page, VLLM) == Load(waiting=1.0, running=7.0, kv_usage=0.75)


def test_ranks_that_repeat_each_other_count_once():
    page = b"""sglang:num_running_reqs{dp_rank="0",model_name="m",pp_rank="0",tp_rank="0"} 3
sglang:num_running_reqs{dp_rank="0",model_name="m",pp_rank="0",tp_rank="1"} 3
sglang:num_running_reqs{dp_rank="1",model_name="m",pp_rank="0",tp_rank="0"} 2
sglang:num_queue_reqs{model_name="m"} 5
sglang:token_usage{model_name="m"} 0.5
"""

    assert pages.load(page, SGLANG) == Load(waiting=5.0, running=5.0, kv_usage=0.5)


def test_the_older_name_of_the_kv_usage_is_known():
    page = b"vllm:num_requests_waiting 1\nvllm:gpu_cache_usage_perc 0.5\n"

    assert pages.load(page, VLLM) == Load(waiting=1.0, running=0.0, kv_usage=0.5)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"vllm:num_requests_waiting",
        b'vllm:num_requests_waiting{a="b" 1',
        b"vllm:num_requests_waiting NaN",
        b"vllm:num_requests_waiting -1",
        b"vllm:num_requests_waiting_total 1",
        b"# vllm:num_requests_waiting 1",
    ],
)
def test_a_page_that_says_nothing_gives_nothing(page):
    assert pages.load(page, VLLM) is None


STARTS = [
    b"",
    b"vllm:num_requests_running{",
    b"vllm:num_requests_running ",
    b"vllm:num_requests_running 1\nvllm:lora_requests_info{",
]


@given(st.binary(max_size=200), st.sampled_from(STARTS))
def test_any_bytes_are_survived(page, start):
    found = pages.load(start + page, VLLM)

    assert found is None or found.running >= 0


def test_a_recorded_page_is_read():
    recorded = next(RECORDED.rglob("metrics.txt"), None)
    if recorded is None:
        pytest.skip("the recordings are not here")

    assert pages.load(recorded.read_bytes(), VLLM) == Load(
        0.0, 0.0, 0.0, kv_tokens=2_097_152.0, lora=Lora(frozenset(), frozenset(), 2)
    )


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ('block_size="16",num_gpu_blocks="1000"', 16_000),
        ('block_size="16",kv_cache_size_tokens="15000",num_gpu_blocks="1000"', 15_000),
        ('block_size="16",num_gpu_blocks="None"', 0),
        ('effective_block_size="16",num_gpu_blocks="1000"', 0),
        ("", 0),
    ],
)
def test_the_size_of_the_kv_cache_stands_in_labels(labels, tokens):
    page = f"vllm:num_requests_running 1\nvllm:cache_config_info{{{labels}}} 1.0\n".encode()

    assert pages.load(page, VLLM).kv_tokens == tokens


def test_the_kv_caches_of_ranks_add_up():
    page = b"""sglang:num_running_reqs{dp_rank="0"} 3
sglang:max_total_num_tokens{dp_rank="0",tp_rank="0"} 1000
sglang:max_total_num_tokens{dp_rank="0",tp_rank="1"} 1000
sglang:max_total_num_tokens{dp_rank="1",tp_rank="0"} 500
"""

    assert pages.load(page, SGLANG).kv_tokens == 1500


LORA = "vllm:lora_requests_info"


def adapters(*lines):
    page = "\n".join(["vllm:num_requests_running 1", *lines])
    return pages.load(page.encode(), VLLM).lora


def test_adapters_are_those_of_the_newest_series():
    found = adapters(
        f'{LORA}{{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""}} 1.7952325248874614e+09',
        f'{LORA}{{max_lora="2",running_lora_adapters="b,a",waiting_lora_adapters="c"}} 1.7952325258874614e+09',
        f'{LORA}{{max_lora="2",running_lora_adapters="old",waiting_lora_adapters=""}} 1.7952325248823237e+09',
    )

    assert found == Lora(frozenset({"a", "b"}), frozenset({"c"}), 2)


def test_labels_of_adapters_come_in_any_order_and_may_be_escaped():
    found = adapters(rf'{LORA}{{waiting_lora_adapters="a\"b",running_lora_adapters="x\\y",max_lora="4"}} 1')

    assert found == Lora(frozenset({r"x\y"}), frozenset({'a"b'}), 4)


@pytest.mark.parametrize("labels", ["", "{}", '{max_lora="x"}', '{max_lora=""}', f'{{max_lora="{"9" * 5000}"}}'])
def test_adapters_are_not_known_where_the_page_does_not_say_how_many_fit(labels):
    assert adapters(f"{LORA}{labels} 1") is None


def test_an_engine_without_adapters_says_nothing_of_them():
    assert adapters() is None
