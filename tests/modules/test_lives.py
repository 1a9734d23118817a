"""A stream may end at any moment and in any way: nothing is left in memory, nothing is used that is gone.

The harness destroys all filters at the end of a script and counts; sanitizers see to the rest.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.modules.streams import Script, examples

CHAINS = (
    ("response",),
    ("model",),
    ("rename",),
    ("response", "keeps", "model"),
    ("response", "model", "holds"),
    ("response", "model", "stops"),
    ("keeps", "response", "model", "rename"),
)
USAGE = b'data: {"model":"demo","choices":[{}],"usage":{"prompt_tokens":7}}\n\n'
pieces = st.sampled_from((b"", b"{", b'{"model":"demo"}', USAGE, USAGE[:-1], USAGE[30:], USAGE * 3, b"\n", b"x" * 2000))
slices = st.lists(pieces, max_size=3)
requests = st.lists(st.tuples(st.just("b"), st.just(b""), slices), max_size=3)
answers = st.lists(st.tuples(st.just("B"), st.just(b""), slices), max_size=4)
ends = st.sampled_from(("end", "trailers", ""))


@st.composite
def lives(draw):
    """Everything that may happen to a stream, in order, and how far it comes."""
    steps = [("q", b"end" if (bodiless := draw(st.booleans())) else b"", [])]
    steps += [] if bodiless else draw(requests)
    if not bodiless and (how := draw(ends)):
        steps.append(("b", b"end", draw(slices)) if how == "end" else ("t", None, []))
    answered = [("Q", b"end" if draw(st.integers(0, 5)) == 0 else b"", [])]
    if not answered[0][1]:
        answered += draw(answers)
        if how := draw(ends):
            answered.append(("B", b"end", draw(slices)) if how == "end" else ("T", None, []))
    # An answer may come before the request is whole.
    at = draw(st.integers(1, len(steps)))
    steps = steps[:at] + answered if draw(st.booleans()) else steps + answered
    return steps[: len(steps) - draw(st.integers(0, len(steps)))]


@examples(120)
@given(
    chain=st.sampled_from(CHAINS),
    steps=lives(),
    mode=st.sampled_from(("", "hide-all", "hide-running")),
    broken=st.booleans(),
    after=slices,
    complete=st.booleans(),
    provider=st.booleans(),
    renamed=st.booleans(),
    failing=st.none() | st.integers(0, 20),
)
def test_any_end_of_a_stream_leaves_nothing(
    module, *, chain, steps, mode, broken, after, complete, provider, renamed, failing
):
    script = Script(*chain)
    script.metadata("matrixinfer", usage_chunks=mode)
    if provider and "model" in chain:  # which keeps the trailers that bring the error
        script.metadata("matrixinfer", provider="outside")
    if renamed:
        script.do("h", "x-matrixinfer-rename", '1:2 "other"')
    script.do("H", ":status", "200").do("H", "content-type", "text/event-stream").failing(failing)
    for command, end, words in steps:
        script.do(command, *([] if end is None else [end]), *words)
    script.do("W")
    if broken:
        script.broken("upstream_reset")
        if not any(step[:2] in (("B", b"end"), ("T", None), ("Q", b"end")) for step in steps):
            script.do("B", "", *after).broken("again")

    outcome = module.run(script.complete() if complete else script)

    if broken and not any(command == "Q" for command, _, _ in steps):
        assert b"error" not in outcome.answer


def test_a_stream_may_be_destroyed_before_anything(module):
    for chain in CHAINS:
        assert module.run(Script(*chain)).other == []


def test_without_memory_there_is_no_filter(module):
    made = [module.run(Script().failing(number).do("C", "response")).other for number in range(3)]

    assert made == [["no filter"], ["no filter"], []]


def test_only_what_the_module_has_can_be_configured(module):
    for name in ("respons", "responses", "", "Model"):
        assert module.run(Script(name)).other == (["bad configuration"] if name else [])
