"""Where things stand: host, rack, zone and region, and how near two places are to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Place(NamedTuple):
    """A place, from the narrowest to the widest; "" is what is not known, and is near to nothing."""

    host: str = ""
    rack: str = ""
    zone: str = ""
    region: str = ""


LEVELS: Final = Place._fields  # tightest first
NOWHERE: Final = Place()
FAR: Final = len(LEVELS)


def level(one: Place, other: Place) -> int:
    """Return the tightest of `LEVELS` that the two have in common, as its index; FAR if none."""
    for at, (here, there) in enumerate(zip(one, other, strict=True)):
        if here and here == there:
            return at
    return FAR


def read(text: str) -> Place:
    """Read "host=a,rack=b,zone=c,region=d", any of them, in any order; pairs of other names are left to others."""
    pairs = (pair.partition("=") for pair in text.split(","))
    found = {name.strip(): value.strip() for name, _equals, value in pairs}
    return Place(**{name: found.get(name, "") for name in LEVELS})


def told(text: str) -> Place:
    """Read the same from someone who can be asked to write it right. Raises ValueError."""
    names = [pair.partition("=")[0].strip() for pair in text.split(",") if pair.strip()]
    if any(name not in LEVELS for name in names) or len(set(names)) < len(names) or len(names) != text.count("="):
        raise ValueError(f"a place is host=a,rack=b,zone=c,region=d, each at most once, not {text!r}")
    return read(text)


def place(labels: Mapping[str, str], names: Place, node: str) -> Place:
    """Return where a pod stands by its labels, which are called `names`; `node` is its host if no label tells it."""
    found = Place(*(labels.get(name, "") for name in names))
    return found if found.host else found._replace(host=node)
