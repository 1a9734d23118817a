"""Limits and charges, as tests want them."""

from extproc.traffic.limits.buckets import Charge
from extproc.traffic.limits.rules import Kind, Limit

UNIT_S = {"second": 1, "minute": 60}


def a_limit(amount=100, *, kind=Kind.INPUT, unit="second", name="", scope="route", shadow=False):
    return Limit(
        key=f"{{ns/demo}}/{scope}/{kind.value}/{name}",
        kind=kind,
        amount=amount,
        unit=unit,
        rate=amount / UNIT_S[unit],
        whose="route ns/demo",
        scope=scope,
        shadow=shadow,
    )


def a_charge(amount, limit=None):
    return Charge(limit or a_limit(), amount)
