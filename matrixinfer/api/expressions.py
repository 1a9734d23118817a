"""Regular expressions in routes, by RE2 itself: what Envoy and Go match with, in time linear in the text.

The picker and, when it is away, Envoy read the same expression, so both must understand the same thing; and they run on
what clients send, so none may take exponential time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import re2

# Size of the compiled program. Envoy refuses larger ones by its runtime key `re2.max_program_size.error_level`, which
# our bootstrap sets to this; Envoy's own default of 100 is a fair bound for hand-written filters, not for routes.
MAX_PROGRAM: Final = 1000


class ExpressionError(ValueError):
    """The text is no expression of RE2, or compiles to a program that is too large."""


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


@lru_cache(maxsize=4096)
def compile_expression(text: str) -> Any:
    """Return the compiled expression (an `re2` pattern). Raises ExpressionError with RE2's own words."""
    try:
        pattern = re2.compile(text, _options())
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0]
        raise ExpressionError(said.decode() if isinstance(said, bytes) else str(said)) from None
    if pattern.programsize > MAX_PROGRAM:
        raise ExpressionError(f"program size {pattern.programsize} is over {MAX_PROGRAM}: simplify the expression")
    return pattern


def occurs(text: str, value: str) -> bool:
    """Tell whether the expression `text` matches anywhere in `value`."""
    try:
        return compile_expression(text).search(value) is not None
    except UnicodeEncodeError:  # lone surrogates are in no text that Envoy could have sent
        return False
