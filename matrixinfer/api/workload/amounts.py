"""A number of things, or a share of them: `2`, `25%`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_PERCENT: Final = re.compile(r"(0|[1-9][0-9]?|100)%")
_MOST: Final = 2**31 - 1
_HUNDRED: Final = 100


def _amount(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("amount", "must be a whole number, 0 or more, or a percentage such as 25%")
    if isinstance(value, str) and not _PERCENT.fullmatch(value):
        raise PydanticCustomError("amount", "is not a percentage from 0% to 100%; write a number without quotes")
    if isinstance(value, int) and not 0 <= value <= _MOST:
        raise PydanticCustomError("amount", "must be 0 or more")
    return value


Amount = Annotated[
    int | str,
    BeforeValidator(_amount),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "x-kubernetes-validations": [
                {
                    "rule": "type(self) == int ? self >= 0 : self.matches('^(0|[1-9][0-9]?|100)%$')",
                    "message": "must be a number, 0 or more, or a percentage from 0% to 100%",
                }
            ],
        }
    ),
]


def resolve_down(amount: int | str, whole: int) -> int:
    """Give the number, a share rounded down."""
    return amount if isinstance(amount, int) else whole * int(amount[:-1]) // _HUNDRED


def resolve_up(amount: int | str, whole: int) -> int:
    """Give the number, a share rounded up."""
    return amount if isinstance(amount, int) else -(-whole * int(amount[:-1]) // _HUNDRED)


def is_zero(amount: int | str | None) -> bool:
    """Tell whether it is nothing, of however many."""
    return amount in (0, "0%")
