"""Regular expressions of the RE2 dialect: the syntax that Envoy and Go accept, searched in linear time.

A route's expressions are read by Envoy when the picker is away, so both must understand the same thing; and they run on
what clients send, so no expression may take exponential time, as Python's own `re` can. `compile_pattern` refuses what
RE2 refuses (lookaround, backreferences, atomic groups) and says so. Matching answers one question: does it occur?
On ASCII the answers are Envoy's; beyond it Envoy compares bytes, where `.` and classes here take whole characters.
"""

from __future__ import annotations

from matrixinfer.api.re2.automaton import Pattern, compile_pattern
from matrixinfer.api.re2.tree import PatternError

__all__ = ["Pattern", "PatternError", "compile_pattern"]
