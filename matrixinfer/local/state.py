"""Where a stack keeps its sockets and logs: a private folder that goes with it, logs apart where the user wants them kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "matrixinfer-"
LOCK = "lock"
LONGEST_SOCKET = 100  # a Unix socket's path has 108 bytes at most


class StateInUse(Exception):
    """The folder belongs to a stack that runs; the message says what to change."""


class State:
    """The folders of one stack. Locks are the kernel's, so they end with the process."""

    def __init__(self, kept: Path | None) -> None:
        """Make the folders; `kept` is the user's own. Raises StateInUse, OSError."""
        self._locks: list[int] = []
        self.folder = _temporary_folder()
        try:
            self._lock(self.folder)
            if kept is not None:
                kept.mkdir(parents=True, exist_ok=True)
                self._lock(kept)
            self.logs = (kept or self.folder) / "logs"
            self.logs.mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove what is not the user's own."""
        shutil.rmtree(self.folder, ignore_errors=True)
        while self._locks:
            os.close(self._locks.pop())

    def _lock(self, folder: Path) -> None:
        if not _try_lock(folder, self._locks):
            raise StateInUse(f"{folder} is the state folder of a stack that runs: choose another with --state-dir DIR")


def sweep(parent: Path | None = None) -> None:
    """Remove the folders of stacks that were killed."""
    for folder in (parent or _parent()).glob(PREFIX + "*"):
        locks: list[int] = []
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and (folder / LOCK).exists() and _try_lock(folder, locks):
                shutil.rmtree(folder, ignore_errors=True)
        for lock in locks:
            os.close(lock)


def _try_lock(folder: Path, locks: list[int]) -> bool:
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    locks.append(lock)
    return True


def _parent() -> Path:
    """Folder for temporary files, or a shorter one where socket paths would grow too long."""
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) + len(PREFIX) + len("12345678/99/picker.sock") < LONGEST_SOCKET else Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder in it


def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parent()))
