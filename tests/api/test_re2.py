"""Expressions mean what Envoy and Go take them to mean. The expected answers were checked against Go's regexp."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.api.re2 import PatternError, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("", "", True),
        ("b", "abc", True),
        ("^b", "abc", False),
        ("c$", "abc", True),
        ("c$", "abc\n", False),
        ("(?m)c$", "abc\n", True),
        ("(?m)^b", "a\nb", True),
        ("a.c", "a\nc", False),
        ("(?s)a.c", "a\nc", True),
        ("(?i)premium", "PreMium", True),
        ("(?i:a)b", "AB", False),
        ("a(?i)b(?-i)c", "aBc", True),
        ("(?i)s", "\u017f", True),
        (r"(?i)\W", "\u212a", False),
        ("[^a-c]", "abc", False),
        ("[]a]", "]", True),
        ("[a-]", "-", True),
        ("[[:^digit:]x]", "1x", True),
        (r"^\d{2,3}$", "1234", False),
        (r"^\d{2,}$", "1234", True),
        ("a{,2}", "a{,2}", True),
        (r"\bchat\b", "/v1/chat/x", True),
        (r"\Bhat", "chat", True),
        (r"\A/v1\z", "/v1", True),
        (r"\d", "٣", False),
        (r"\w", "é", False),
        (r"\pL", "é", True),
        (r"\P{Lu}", "A", False),
        (r"\x{e9}\x41\101", "éAA", True),
        (r"\Qa.b\E+", "a.bb", True),
        ("^((a{2}){10}){3}$", "a" * 60, True),
        ("(?P<name>a)|(?<other>b)", "b", True),
        ("^(a+)+$", "a" * 5000 + "b", False),
        ("(x+x+)+y", "x" * 5000, False),
    ],
)
def test_an_expression_is_found(pattern, text, found):
    assert compile_pattern(pattern).search(text) is found


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("a(?=b)", "lookahead"),
        ("a(?!b)", "lookahead"),
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"),
        (r"(a)\1", "backreference"),
        ("(?P<x>a)(?P=x)", "backreference"),
        ("(?>a)", "atomic"),
        ("(?#note)", "comment"),
        ("a++", "repeats a repetition"),
        ("a**", "repeats a repetition"),
        ("*a", "nothing to repeat"),
        ("{2}", "nothing to repeat"),
        ("(a", r"'\(' without its '\)'"),
        ("a)", r"'\)' without its '\('"),
        ("[a", r"'\[' without its '\]'"),
        ("[z-a]", "backwards"),
        ("a{1001}", "up to 1000"),
        ("a{3,2}", "from low to high"),
        ("((a{10}){20}){10}", "multiply to more than 1000"),
        ("a{1000}b{1000}c{1000}", "too large"),
        ("(" * 200, "deeper"),
        ("\\", "lone backslash"),
        (r"\Z", "escape"),
        (r"\y", "escape"),
        (r"\p{Greek}", "Unicode class"),
        (r"\x{1F600}", "beyond"),
        (r"\Qa", "without its"),
        ("(?P<a b>x)", "proper name"),
        ("(?<a>x)(?<a>y)", "two groups"),
        ("(?x)a", "unknown kind of group"),
        ("x" * 5000, "longer than"),
    ],
)
def test_what_re2_does_not_have_is_refused_and_named(pattern, told):
    with pytest.raises(PatternError, match=told):
        compile_pattern(pattern)


PIECES = [
    "a",
    "b",
    "ab",
    ".",
    "[ab]",
    "[^a]",
    r"\w",
    r"\d",
    "(a|b)",
    "(?:ab)",
    "x",
    "^",
    "$",
    r"\b",
    "a?",
    "b*",
    "(ab)+",
    "[a-x]{1,2}",
]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text("abx1 -", max_size=12))
@settings(max_examples=400, deadline=None)
def test_where_both_dialects_agree_so_do_the_answers(pattern, text):
    expected = re.search(pattern, text, re.ASCII) is not None

    assert compile_pattern(pattern).search(text) is expected


@given(st.text(st.sampled_from("ab()[]{}|*+?^$\\.:-,12Qi<>=!dwpPE"), max_size=12), st.text("ab12", max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_text_is_an_expression_or_refused(pattern, text):
    with contextlib.suppress(PatternError):
        assert compile_pattern(pattern).search(text) in {True, False}


def test_what_a_hostile_text_makes_a_pattern_remember_is_bounded():
    pattern = compile_pattern("(a|b)*a(a|b){60}c")
    state = 1
    chars = []
    for _ in range(8000):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        chars.append("ab"[state >> 16 & 1])

    assert pattern.search("".join(chars)) is False
    assert pattern.search("a" * 61 + "c") is True
    assert pattern._remembered < 250_000
