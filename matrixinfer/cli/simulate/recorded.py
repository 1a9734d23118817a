"""A decision log as a trace: what was asked of one picker, to be asked of another.

Blocks are the log's, about 256 tokens each. An answer is as long as its end says; where the log does not have the end, as
long as the mean of the others. A request comes when it came to the gateway, before it waited for its turn; what was refused
then is not in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixinfer.cli.replaying.log import DecisionLine, EndLine, entries
from matrixinfer.cli.simulate import trace
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from pathlib import Path


def read(file: Path) -> trace.Trace:
    """Read a decision log. Raises BadInput."""
    decisions: list[DecisionLine] = []
    ends: dict[str, EndLine] = {}
    for _where, entry in entries(file):
        if isinstance(entry, DecisionLine):
            decisions.append(entry)
        elif isinstance(entry, EndLine):
            ends[entry.ticket] = entry
    if not decisions:
        raise BadInput(file, "has no decision")
    decisions.sort(key=lambda one: one.came_at)
    known = [end.completion_tokens for end in ends.values() if end.completion_tokens is not None]
    usual = max(round(sum(known) / len(known)), 1) if known else 1
    sizes = {one.chain_tokens for one in decisions}
    asks = (_ask(one, ends.get(one.ticket), usual, max(sizes)) for one in decisions)
    return trace.build(file.name, asks, block_tokens=max(sizes))


def _ask(line: DecisionLine, end: EndLine | None, usual: int, size: int) -> trace.Ask:
    """Make a request; its chain is thinned out to blocks of `size` tokens, where the log has smaller ones."""
    prompt = line.prompt_tokens
    if end is not None and end.prompt_tokens:
        prompt = end.prompt_tokens
    step = max(1, size // line.chain_tokens)
    blocks = line.hashes[step - 1 :: step][: prompt // size]
    output = end.completion_tokens if end is not None and end.completion_tokens is not None else usual
    adapter = line.engine_model if line.engine_model != line.model else ""
    return trace.Ask(
        line.came_at,
        max(prompt, 1),
        output,
        blocks,
        tenant=line.tenant,
        model=adapter,
        key=line.key,
        objective=line.objective,
    )
