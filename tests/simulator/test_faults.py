import pytest

from engine.simulator import faults


def test_a_flag_says_what_a_mapping_says():
    assert faults.from_flag("die-mid-stream:chunks=3,probability=0.5") == faults.from_mapping(
        {"mode": "die-mid-stream", "chunks": 3, "probability": 0.5}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "a failure is an object"),
        ({"mode": "explode"}, "mode 'explode' is not one of"),
        ({"mode": "503", "often": 1}, "unknown key 'often'"),
        ({"mode": "503", "count": "many"}, "whole numbers"),
        ({"mode": "503", "probability": 2}, "probability is 0 to 1"),
        ({"mode": "slow", "count": 2}, "slow is a state of the engine"),
    ],
)
def test_a_failure_that_cannot_be_says_why(given: object, message: str):
    with pytest.raises(faults.BadFault, match=message):
        faults.from_mapping(given)


def test_a_count_is_used_up():
    active = faults.Faults()
    active.add(faults.Fault("503", count=2))

    assert [active.take("503") is not None for _ in range(4)] == [True, True, False, False]
    assert active.active == []


def test_chance_decides_where_a_probability_is_set():
    draws = iter([0.1, 0.9, 0.49])
    active = faults.Faults(lambda: next(draws))
    active.add(faults.Fault("reset", probability=0.5))

    assert [active.take("reset") is not None for _ in range(3)] == [True, False, True]


def test_other_modes_are_left_alone():
    active = faults.Faults()
    active.add(faults.Fault("hang", count=1))

    assert active.take("503", "500") is None
    assert active.in_force("hang") is not None
