from hypothesis import given
from hypothesis import strategies as st

from engine.simulator import text, tokenizer


def test_equal_seeds_say_equal_things():
    assert [text.Voice(3, None)(i) for i in range(50)] == [text.Voice(3, None)(i) for i in range(50)]
    assert [text.Voice(3, None)(i) for i in range(50)] != [text.Voice(4, None)(i) for i in range(50)]


def test_an_answer_of_given_length_ends_with_the_end_mark():
    voice = text.Voice(3, 2)

    assert tokenizer.END not in (voice(0), voice(1))
    assert voice(2) == tokenizer.END


@given(st.integers(0, 2**64 - 1), st.integers(1, 500))
def test_natural_lengths_stay_around_the_mean(seed: int, mean: int):
    assert max(1, mean // 2) <= text.natural_length(seed, mean) <= mean // 2 + mean + 1


@given(
    st.lists(st.text("ab c", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab c", min_size=1, max_size=3), max_size=30),
)
def test_streamed_text_is_the_text_before_the_first_stop_string(stops: list[str], pieces: list[str]):
    watch = text.StopStrings(tuple(stops))
    shown = ""
    said = ""
    stopped = False
    for piece in pieces:
        for token in tokenizer.Tokenizer().encode(piece):
            said += tokenizer.token_text(token)
            stopped = watch.add(token)
            if stopped:
                break
            shown += watch.delta(last=False)
        if stopped:
            break
    shown += watch.delta(last=True)

    assert shown == watch.text
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in said for stop in stops)
    assert said.startswith(shown)
    if stopped:
        assert said[len(shown) :].startswith(watch.found)
