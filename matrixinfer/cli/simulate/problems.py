"""What is wrong with what a user gave: one exception, whose message begins with the place."""

from __future__ import annotations


class BadInput(Exception):
    """A trace, a cluster or a configuration that cannot be used. `where` is a file, with its line where there is one."""

    def __init__(self, where: object, what: str) -> None:
        super().__init__(f"{where}: {what}")
