"""One line about a running stack, for places where nothing can be drawn. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixinfer.cli.view import words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matrixinfer.cli.view.snapshot import Snapshot


def summary(before: Snapshot | None, now: Snapshot) -> str:
    """Return what has changed since `before`; "" if that is nothing worth a line."""
    if before is None:
        return ""
    parts = list(_silences(before, now))
    if all(one.silent_s is not None for one in now.gateways):
        return "; ".join(parts)
    if now.served > before.served or now.total.errors > before.total.errors:
        parts.append(_traffic(now))
    if (now.ready, len(now.endpoints)) != (before.ready, len(before.endpoints)):
        parts.append(f"{now.ready} of {len(now.endpoints)} endpoints ready")
    parts += [problem for problem in now.problems if problem not in before.problems]
    return words.printable("; ".join(parts))


def _silences(before: Snapshot, now: Snapshot) -> Iterable[str]:
    """Yield which pickers fell silent, and which answer again."""
    for one, earlier in zip(now.gateways, before.gateways, strict=True):
        if (one.silent_s is None) is not (earlier.silent_s is None):
            who = "the picker" if len(now.gateways) == 1 else f"the picker of gateway {one.number}"
            yield f"{who} answers again" if one.silent_s is None else f"{who} does not answer"


def _traffic(now: Snapshot) -> str:
    total = now.total
    parts = [f"{words.number(now.served)} requests in all, {words.rate(total.requests_s)}/s"]
    if total.output_s:
        parts.append(f"{words.rate(total.output_s)} tok/s")
    if total.prompt:
        parts.append(f"{words.percent(total.cached, total.prompt)} cached")
    if total.ttft_p50_s is not None and total.ttft_p99_s is not None:
        parts.append(f"TTFT p50 {words.seconds(total.ttft_p50_s)} p99 {words.seconds(total.ttft_p99_s)}")
    if now.inflight:
        parts.append(f"{now.inflight} in flight")
    if total.errors:
        parts.append(f"{words.number(total.errors)} errors in the last minute")
    return ", ".join(parts)
