"""Which command an image stands for, where a container has none of its own.

There are no images on one machine: a container's `command` is run as it is. For images whose entry point is known and
can be had here without the image, this table says it.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SIMULATOR: Final = "matrixinfer/simulator"

# Repository without registry and tag -> the entry point that the image declares.
ENTRY_POINTS: Final[Mapping[str, tuple[str, ...]]] = {
    SIMULATOR: ("python", "-m", "engine.simulator"),
    "vllm/vllm-openai": ("vllm", "serve"),
    "vllm/vllm-openai-cpu": ("vllm", "serve"),
    "lmsysorg/sglang": ("python", "-m", "sglang.launch_server"),
}


class NoCommand(Exception):
    """The image's entry point is not known or not installed here; the message says what to set."""


def entry_point(image: str, path: str | None = None) -> tuple[str, ...]:
    """Entry point of the image; `path` is where programs are looked for. Raises NoCommand."""
    command = ENTRY_POINTS.get(repository(image))
    if command is None:
        known = ", ".join(ENTRY_POINTS)
        raise NoCommand(
            f"images are not pulled on one machine, and {image or 'no image'!r} is not one whose command is known "
            f"({known}): set the container's `command`"
        )
    if shutil.which(command[0], path=path) is None:
        raise NoCommand(
            f"image {image!r} stands for `{' '.join(command)}`, but {command[0]} is not installed: install it, or set the container's `command`"
        )
    return command


def repository(image: str) -> str:
    """Repository of an image reference, without registry host, tag and digest."""
    name = image.partition("@")[0]
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        name = rest
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
