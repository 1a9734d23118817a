"""Configurations by name: files, or the built-in default. A mistake is told with its file and line."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from extproc import plugins
from extproc.adapters import custom
from extproc.errors import ConfigError
from extproc.scheduling import config
from matrixinfer.cli.simulate import places
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT: Final = "default"
_EMPTY: Final = {"apiVersion": config.API_VERSIONS[0], "kind": config.KIND}


@dataclass(frozen=True, slots=True)
class Chosen:
    """One configuration to try."""

    name: str
    settings: config.Config
    exact: bool  # prefixes as engines' events tell them


def read(chosen: Sequence[tuple[str, bool]]) -> list[Chosen]:
    """Read configurations; each has a name of its own. Raises BadInput."""
    stems = Counter(Path(name).stem for name in {name for name, _exact in chosen})
    found = []
    for name, exact in dict.fromkeys(chosen):
        shown = Path(name).stem if stems[Path(name).stem] == 1 else name
        found.append(Chosen(f"{shown}, exact" if exact else shown, settings(name), exact))
    return found


def settings(name: str) -> config.Config:
    """Read one configuration. Raises BadInput."""
    if name == DEFAULT:
        return config.load(_EMPTY, plugins.BUILTIN)
    file = Path(name)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(file, f"cannot be read: {error}") from error
    catalogue = dataclasses.replace(plugins.BUILTIN, types=plugins.BUILTIN.types + custom.found())
    try:
        return config.load(config.parse(text), catalogue)
    except ConfigError as error:
        raise _located(file, text, error) from error


def _located(file: Path, text: str, error: ConfigError) -> BadInput:
    """Give each of the problems its line."""
    if error.path.startswith("line "):
        return BadInput(f"{file}:{error.path.split(',')[0].removeprefix('line ')}", error.message)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        root = None
    lines = [f"{file}:{places.line(root, one)}: {one}" for one in str(error).splitlines()]
    head, _, rest = "\n".join(lines).partition(": ")
    return BadInput(head, rest)
