from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from extproc.tokens import chain

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=200)


def test_a_block_is_its_ids_in_little_endian_seeded_with_the_block_before():
    root = xxh3_64_intdigest(b"salt", xxh3_64_intdigest(b"model"))
    first = xxh3_64_intdigest(b"\x01\0\0\0\x02\0\0\0", root)
    second = xxh3_64_intdigest(b"\x03\0\0\0\x04\x05\0\0", first)

    assert chain.root("model", "salt") == root
    assert chain.chain(np.array([1, 2, 3, 0x504, 9], dtype=np.uint32), root, 2) == [first, second]


@given(ids=IDS, more=IDS, block=st.integers(1, 32))
def test_a_longer_prompt_begins_with_the_chain_of_the_shorter(ids, more, block):
    short = chain.chain(chain.packed(ids), 7, block)

    assert chain.chain(chain.packed(ids + more), 7, block)[: len(short)] == short
    assert len(short) == len(ids) // block


@given(ids=IDS, cut=st.integers(0, 12), block=st.integers(1, 16))
def test_a_chain_goes_on_from_any_of_its_blocks(ids, cut, block):
    full = chain.chain(chain.packed(ids), 7, block)
    at = min(cut, len(full))

    rest = chain.chain(chain.packed(ids[at * block :]), full[at - 1] if at else 7, block)

    assert full[:at] + rest == full


@given(ids=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=64), at=st.integers(0, 63))
def test_another_id_changes_its_block_and_all_behind_it(ids, at):
    at %= len(ids)
    other = [*ids[:at], ids[at] ^ 1, *ids[at + 1 :]]

    first, second = (chain.chain(chain.packed(one), 7, 4) for one in (ids, other))

    assert first[: at // 4] == second[: at // 4]
    assert not set(first[at // 4 :]) & set(second[at // 4 :])


def test_models_adapters_and_salts_have_roots_of_their_own():
    roots = {chain.root(model, salt) for model in ("base", "adapter") for salt in ("", "a", "b")}

    assert len(roots) == 6


def test_the_bound_cuts_the_chain_short():
    ids = np.arange(100, dtype=np.uint32)

    assert chain.chain(ids, 7, 4, 3) == chain.chain(ids, 7, 4)[:3]


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [None]])
def test_what_is_no_token_id_is_refused(ids):
    with pytest.raises(ValueError, match="not token ids"):
        chain.packed(ids)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 700), st.integers(0, 1)), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 4),
)
def test_stretches_that_came_before_change_no_hash(prompts, block_tokens, most):
    stretches = chain.Stretches(most)
    for content, length, root in prompts:
        ids = np.arange(length, dtype=np.uint32) // (content + 1)

        hashes, words = stretches.chain(ids, root, block_tokens, 300)
        assert hashes == words.tolist() == chain.chain(ids, root, block_tokens, 300)
        assert len(stretches._known) <= most
