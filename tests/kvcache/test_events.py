import base64
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.kvcache import events
from extproc.kvcache.events import Cleared, Removed
from tests.kvcache.builders import Engine, an_index, held, prompt

encode = msgspec.msgpack.encode
STORED = {
    "type": "BlockStored",
    "block_hashes": [1, 2],
    "parent_block_hash": None,
    "token_ids": list(range(8)),
    "block_size": 4,
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=20,
)
FIELDS = st.sampled_from((*events._STORED, "type", "kind"))


def one(event):
    (found,) = events.read(encode([1.0, [event], 0])).events
    return found


@given(st.binary())
def test_bytes_of_any_kind_are_read_or_refused(payload):
    events.read(payload)


@given(ANYTHING)
def test_values_of_any_kind_are_read_or_counted(value):
    assert events.read(encode([1.0, [value]])).bad in (0, 1)
    events.read(encode(value))


@given(st.dictionaries(FIELDS, ANYTHING))
def test_an_event_with_any_field_wrong_is_read_or_counted_and_never_breaks_the_index(wrong):
    index = an_index()
    engine = Engine(index)
    for event in ({**STORED, **wrong}, {"type": "BlockRemoved", "block_hashes": [1], **wrong}):
        batch = events.read(encode([1.0, [event], 0]))
        assert batch.bad + len(batch.events) == 1
        engine.member.replica.apply(batch)
    held(index, prompt(range(8)), 0)


def test_fields_that_later_versions_add_are_not_looked_at():
    assert one({**STORED, "ownership": "x", "new": {"deep": 1}}) == one(STORED)
    array = ["BlockStored", [1, 2], None, list(range(8)), 4, None, "GPU", None, None, 0, "full_attention", None, "more"]
    assert one(array)._replace(kind="") == one(STORED)
    assert events.read(encode([1.0, [STORED], 3, "more"])).rank == 3


def test_early_versions_with_fewer_fields_are_read():
    assert one(["BlockStored", [1, 2], None, list(range(8)), 4, None]) == one(STORED)
    assert one(["BlockRemoved", [7]]) == Removed([7], 0, None)
    assert one(["AllBlocksCleared"]) == Cleared()


def test_hashes_may_be_digests_and_negative_numbers():
    digest = bytes(range(32))
    assert one(["BlockRemoved", [digest]]).hashes == [int.from_bytes(digest[-8:], "big")]
    assert one(["BlockRemoved", [-1]]).hashes == [(1 << 64) - 1]


@pytest.mark.parametrize(
    ("medium", "tier"), [(None, 0), ("GPU", 0), ("CPU", 1), ("CPU_PINNED", 1), ("STORAGE", 2), ("DISK", 2)]
)
def test_every_medium_has_a_tier(medium, tier):
    assert one({**STORED, "medium": medium}).tier == tier


@pytest.mark.parametrize(
    ("adapter", "keys", "salt", "known"),
    [
        ("", None, "", 2),
        ("", [None, None], "", 2),
        ("", [["tenant"], None], "tenant", 2),
        ("a", [["a"], ["a"]], "", 2),
        ("a", ["a", "a"], "", 2),
        ("a", [["a", "tenant"], ["a"]], "tenant", 2),
        ("", [None, [["image", 3]]], "", 1),
        ("", [[["image", 0], "tenant"], None], "", 0),
        ("", [None, ["digest"]], "", 1),
    ],
)
def test_extra_keys_tell_salts_from_what_tokens_do_not_tell(adapter, keys, salt, known):
    found = one({**STORED, "lora_name": adapter or None, "extra_keys": keys})

    assert (found.salt, found.known) == (salt, known)


def test_an_adapter_without_a_name_tells_nothing():
    assert one({**STORED, "lora_id": 3}).known == 0


RECORDED = Path(__file__).parents[1] / "simulator" / "recordings" / "kv-events.json"


def test_what_a_real_vllm_published_is_understood():
    index = an_index(block_tokens=16)
    member = index.open(0, model="tiny", replays=False)
    batches = [events.read(base64.b64decode(each["payload_b64"])) for each in json.loads(RECORDED.read_text())]
    for number, batch in enumerate(batches):
        member.perform(member.stream.take(number, batch))

    for model, salt, parts in (("tiny", "", (0, 1)), ("lora-a", "", (3, 4)), ("tiny", "tenant-1", (5, 6))):
        tokens = [token for part in parts for token in batches[part].events[0].tokens]
        found = held(index, prompt(tokens, 16, model, salt), 0, tokens=len(tokens))
        assert found.matched.tolist() == [20]
        assert found.cached_tokens.tolist() == [288]
    assert held(index, prompt(tokens, 16, "tiny", "tenant-2"), 0).matched.tolist() == [0]
    assert index.index.counts.stored == 31
    assert index.replica_counts.orphans == 0
