import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.kvcache.masks import EMPTY, Masks
from extproc.kvcache.table import Full, Table

SECRET = 0x9F3C_51A7_0B2D_66E1
KEYS = st.integers(0, 400) | st.integers(0, (1 << 64) - 1)


def put(table, key, value):
    place, _new = table.insert(table.mixed(key))
    table.columns[0][place] = value


def get(table, key):
    place = table.find(table.mixed(key))
    return None if place < 0 else table.columns[0][place]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=200), st.integers(0, 5))
def test_a_table_holds_what_a_dict_would(moves, more):
    table, model = Table((np.uint32,), capacity=4_000, secret=SECRET), {}
    for number in range(more * 600):
        put(table, number * 7, number)
        model[number * 7] = number
    for number, (stays, key) in enumerate(moves):
        if stays:
            put(table, key, number)
            model[key] = number
        elif key in model:
            table.remove(table.find(table.mixed(key)))
            del model[key]

    assert table.count == len(model)
    assert {key: get(table, key) for key in model} == model
    wanted = [*model, *(key for _stays, key in moves), 12345]
    places = table.find_many(table.mixed_many(np.array(wanted, dtype=np.uint64)))
    assert [None if place < 0 else table.columns[0][place] for place in places.tolist()] == [
        model.get(key) for key in wanted
    ]


def test_thousands_are_found_after_many_splits_and_removals():
    table = Table((np.uint32,), capacity=60_000, secret=SECRET)
    for key in range(50_000):
        put(table, key, key)
    for key in range(0, 50_000, 2):
        table.remove(table.find(table.mixed(key)))
    places = table.find_many(table.mixed_many(np.arange(50_000, dtype=np.uint64)))

    assert (places[::2] == -1).all()
    assert (table.arrays[0][places[1::2]] == np.arange(1, 50_000, 2)).all()
    assert table.count == 25_000


def test_memory_is_some_twenty_bytes_an_entry():
    table = Table((np.uint32,), capacity=200_000, secret=SECRET)
    for key in range(100_000):
        put(table, key, 0)

    assert table.memory / table.count < 35


def test_a_table_without_room_says_so_and_keeps_what_it_has():
    table = Table((np.uint32,), capacity=100, secret=SECRET)
    kept = []

    def fill():
        for key in range(10_000):
            put(table, key, key)
            kept.append(key)

    with pytest.raises(Full):
        fill()

    assert len(kept) >= 100
    assert all(get(table, key) == key for key in kept)


def test_a_set_that_nobody_uses_is_forgotten_and_its_number_given_again():
    masks = Masks()
    one = masks.keep(0b101)
    masks.release(one)

    assert len(masks) == 1
    assert masks.keep(0b11) == one
    assert masks.of[one] == 0b11


def test_slots_are_withdrawn_from_every_set_at_once():
    masks = Masks()
    numbers = [masks.keep(mask) for mask in (0b001, 0b011, 0b110)]
    masks.withdraw(0b001)

    assert [masks.of[number] for number in numbers] == [0, 0b010, 0b110]
    assert masks.keep(0b010) == numbers[1]
    for number in (*numbers, numbers[1]):
        masks.release(number)
    assert len(masks) == 1
    assert masks.of[EMPTY] == 0
