"""In which order the targets of a rule are tried: by chance, or by a value of the request that is to stay where it was.

By chance, each request is drawn by itself, by the weights. By a value, the targets are ranked by weighted rendezvous
hashing: every target gets the score -w / ln(h) of its weight w and the hash h in (0, 1) of target and value, and the
highest is first. Values then spread in proportion to the weights, a value never moves while its target may serve it, and
a changed weight moves no more of them than it has to: those that one target gains are lost by the others, and none is
exchanged between these. Rendezvous hashing: D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates",
1998; its weights by the logarithmic method of C. Schindelhauer, G. Schomaker, "Weighted distributed hash tables", 2005.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matrixinfer.api import networking

_BELOW_ONE: Final = math.nextafter(1.0, 0.0)
_HASHES: Final = 2.0**64


def in_turn(
    targets: Sequence[networking.TargetModel], draw: float, *, value: str = "", salt: str = ""
) -> Iterator[networking.TargetModel]:
    """Yield the targets in the order in which they are tried: those that overflow come last, one of weight 0 never.

    `draw` in [0, 1) chooses among weights, unless there is a `value`; `salt` makes the places of a value independent of
    those that it has elsewhere.
    """
    if len(targets) == 1:
        return iter(targets)
    spares = [target for target in targets if target.overflow]
    shares = [target for target in targets if not target.overflow] if spares else targets
    if value:
        first, last = ranked(shares, value, salt), ranked(spares, value, salt)
    else:
        first, last = drawn(shares, draw), drawn(spares, draw)
    return itertools.chain(first, last) if spares else first


def drawn(targets: Sequence[networking.TargetModel], draw: float) -> Iterator[networking.TargetModel]:
    """Yield the target that `draw` chooses by weight, then the others by weight in turn; never one of weight 0."""
    if len(targets) == 1:
        yield targets[0]
        return
    left = [target for target in targets if target.weight > 0]
    while left:
        point = draw * sum(target.weight for target in left)
        chosen = len(left) - 1
        for position, target in enumerate(left):
            if point < target.weight:
                chosen = position
                break
            point -= target.weight
        target = left.pop(chosen)
        draw = min(point / target.weight, _BELOW_ONE)  # what is left of the chance decides who is next
        yield target


def ranked(targets: Sequence[networking.TargetModel], value: str, salt: str) -> Iterator[networking.TargetModel]:
    """Yield the targets as weighted rendezvous hashing ranks them for `value`; never one of weight 0."""
    scores = [(_score(target, value, salt), position) for position, target in enumerate(targets) if target.weight > 0]
    return (targets[position] for _, position in sorted(scores, reverse=True))


def _score(target: networking.TargetModel, value: str, salt: str) -> float:
    kind = "server" if target.model_server_name is not None else "provider"
    name = target.model_server_name or target.external_model_provider_name
    text = f"{salt}\0{kind}\0{name}\0{value}".encode("utf-8", "surrogatepass")
    return -target.weight / math.log((xxh3_64_intdigest(text) + 0.5) / _HASHES)


def value_of(sticky: networking.StickyBy | None, headers: Mapping[str, str], *, tenant: str = "", key: str = "") -> str:
    """Return what of a request decides its target, "" if nothing does; names in `headers` are lower case."""
    if sticky is None:
        return ""
    if sticky.header is not None:
        return headers.get(sticky.header.lower(), "")
    if sticky.cookie is not None:
        return _cookie(headers.get("cookie", ""), sticky.cookie)
    return tenant if sticky.caller == "Tenant" else key


def _cookie(header: str, name: str) -> str:
    for pair in header.replace(",", ";").split(";"):  # the same header twice is joined with a comma
        found, _, value = pair.partition("=")
        if found.strip() == name:
            return value.strip().strip('"')
    return ""
