"""Writes what is generated from the types: `python -m matrixinfer.api.generate [DIR]`.

`files` gives every generated file by its path in the tree; a test keeps them equal to what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import yaml

from matrixinfer.api import crds, kinds, reference

_HEADER: Final = "# Generated from matrixinfer/api by `make generate`; changes belong there.\n"


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out each time: an alias is no help to a reader, and not every reader follows it."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the base class's signature
        return True


def files() -> dict[str, str]:
    """Give the text of each generated file by its path from the root of the tree."""
    texts = {
        f"crds/{crd.kind.group}_{crd.kind.plural}.yaml": _HEADER
        + yaml.dump(crds.manifest(crd), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        for crd in crds.CRDS
    }
    pages = {
        f"docs/reference/{group.partition('.')[0]}.md": reference.page(
            group, [crd for crd in crds.CRDS if crd.kind.group == group]
        )
        for group in (kinds.NETWORKING_GROUP, kinds.WORKLOAD_GROUP)
    }
    return texts | pages


def main() -> None:
    """Write the files below the directory of the first argument, or the current one."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, text in files().items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
