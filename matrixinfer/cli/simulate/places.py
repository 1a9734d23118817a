"""Lines in YAML files: where a key such as `plugins[2].parameters.threshold` stands."""

from __future__ import annotations

import re
from typing import Final

import yaml

_STEP: Final = re.compile(r"[^.\[\]:]+")


def line(root: yaml.Node | None, problem: str) -> int:
    """Return the line of the key that `problem` begins with; of what is around it, if it is not there."""
    node, found = root, 1
    for step in _STEP.findall(problem.split(": ", 1)[0]):
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == step), None)
            if pair is None:
                break
            found, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
            node = node.value[int(step)]
            found = node.start_mark.line + 1
        else:
            break
    return found
