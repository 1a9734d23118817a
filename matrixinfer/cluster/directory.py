"""A directory of manifests as the content of a cluster: read once by `read`, followed by `Directory`.

The files are the truth: what they say is applied with force by the manager `directory`, what they no longer name is deleted.
A document with a mistake is left out and said; the object that it described before stays as it was.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import watchfiles

from matrixinfer.api import validation
from matrixinfer.cluster.documents import Document, Finding, parse
from matrixinfer.cluster.ownership import canonical
from matrixinfer.cluster.protocol import ClusterError, Conflict, Key, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matrixinfer.cluster.protocol import Cluster, Kind

log = logging.getLogger(__name__)

MANAGER: Final = "directory"
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_DEBOUNCE_MS: Final = 100
_SETTLE_MS: Final = 500  # editors may delete a file and write it again: deletions wait for a second look


@dataclass(frozen=True, slots=True)
class Entry:
    """One object that may go to the cluster."""

    kind: Kind
    key: Key
    document: Document


@dataclass(slots=True)
class Reading:
    """What a directory says."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    bad: set[Key] = field(default_factory=set)  # objects that a document with mistakes describes
    whole: bool = True  # False: there was no directory to read
    unclear: set[str] = field(default_factory=set)  # files with documents that do not even say which object they are

    @property
    def ok(self) -> bool:
        """True if no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


def read(directory: Path) -> Reading:
    """Read every manifest under the directory, checked one by one and together; all mistakes become findings."""
    reading = Reading()
    if not directory.is_dir():
        reading.whole = False
        reading.findings.append(Finding(str(directory), 1, "", "is not a directory: name one that holds manifests"))
        return reading
    documents: list[Document] = []
    for path in _files(directory):
        name = str(path.relative_to(directory))
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            continue  # gone since it was listed
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            _unclear(reading, Finding(name, line, "", "is not UTF-8: save the file in that encoding"))
            continue
        except OSError as error:
            _unclear(reading, Finding(name, 1, "", f"cannot be read: {error.strerror or error}"))
            continue
        found, findings = parse(text, name)
        documents += found
        for finding in findings:
            _unclear(reading, finding)
    _check(reading, documents)
    reading.findings.sort(key=lambda finding: (finding.file, finding.line))
    return reading


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.suffix in _SUFFIXES and not hidden and path.is_file():
            yield path


def _unclear(reading: Reading, finding: Finding) -> None:
    reading.findings.append(finding)
    reading.unclear.add(finding.file)


def _check(reading: Reading, documents: Sequence[Document]) -> None:
    first: dict[Key, Document] = {}
    distinct: list[Document] = []
    for document in documents:
        entry = _entry(document)
        if entry is None or entry.key not in first:
            distinct.append(document)
            _admit(reading, document, entry)
            if entry is not None:
                first[entry.key] = document
            continue
        other = first[entry.key]
        message = f"{entry.key} is also in {other.file}:{other.line()}, which is used: remove one of them or rename it"
        reading.findings.append(Finding(document.file, document.line(("metadata", "name")), "metadata.name", message))
    for found in validation.validate_set([document.manifest for document in distinct]):
        document, problem = distinct[found.index], found.problem
        line = document.line(problem.loc)
        reading.findings.append(Finding(document.file, line, problem.path, problem.message, problem.severity))


def _admit(reading: Reading, document: Document, entry: Entry | None) -> None:
    """Let the object into the cluster if it is sound by itself; what is missing around it, controllers say."""
    sound = all(problem.severity != "error" for problem in validation.validate(document.manifest))
    if entry is None:
        if not sound:
            reading.unclear.add(document.file)
        elif validation.kind_of(document.manifest) is not None:
            message = "is required: an object in a file needs a name of its own, generateName will not do"
            _unclear(reading, Finding(document.file, document.line(("metadata",)), "metadata.name", message))
    elif sound:
        reading.entries[entry.key] = entry
    else:
        reading.bad.add(entry.key)


def _entry(document: Document) -> Entry | None:
    """Tell which object the document describes, as far as that can be told; it gets its namespace."""
    manifest = document.manifest
    kind = validation.kind_of(manifest) if isinstance(manifest, dict) else None
    meta = manifest.get("metadata") if isinstance(manifest, dict) else None
    if kind is None or not isinstance(meta, dict):
        return None
    name, namespace = meta.get("name") or "", meta.get("namespace") or ""
    if not isinstance(name, str) or not isinstance(namespace, str) or not name:
        return None
    if kind.namespaced and not namespace:
        namespace = validation.DEFAULT_NAMESPACE
        manifest = manifest | {"metadata": meta | {"namespace": namespace}}
    placed = Document(document.file, manifest, document.lines, document.at)
    return Entry(kind, Key(kind.kind, namespace if kind.namespaced else "", name), placed)


class Directory:
    """Keeps a cluster as a directory says. `report` gets all findings whenever they have changed."""

    def __init__(self, path: Path, cluster: Cluster, *, report: Callable[[Sequence[Finding]], None]) -> None:
        self._path = path
        self._cluster = cluster
        self._report = report
        self._applied: dict[Key, Entry] = {}
        self._missing: set[Key] = set()  # absent when last looked
        self._pending = False
        self._findings: tuple[Finding, ...] | None = None

    async def load(self) -> tuple[Finding, ...]:
        """Bring the cluster to what the files say now; return what is wrong with them."""
        reading = await asyncio.to_thread(read, self._path)
        self._pending = False
        for entry in reading.entries.values():
            finding = await self._apply(entry)
            if finding is not None:
                reading.findings.append(finding)
        if reading.whole:
            await self._delete_missing(reading)
        findings = tuple(reading.findings)
        if findings != self._findings:
            self._findings = findings
            self._report(findings)
        return findings

    async def follow(self) -> None:
        """Load, then load again whenever a file changes, until cancelled. The directory itself may be replaced."""
        while True:
            await self.load()
            self._pending = True  # what changes before the watch stands is found by a second look
            watched = _identity(self._path)
            try:
                async for changes in watchfiles.awatch(
                    self._path,
                    watch_filter=None,
                    debounce=_DEBOUNCE_MS,
                    step=_DEBOUNCE_MS // 2,
                    rust_timeout=_SETTLE_MS,
                    yield_on_timeout=True,
                ):
                    if changes or self._pending:
                        await self.load()
                    if _identity(self._path) != watched:
                        break
            except FileNotFoundError:
                await asyncio.sleep(_SETTLE_MS / 1000)

    async def _apply(self, entry: Entry) -> Finding | None:
        before = self._applied.get(entry.key)
        if before and canonical(before.document.manifest) == canonical(entry.document.manifest):
            self._applied[entry.key] = entry
            return None
        document = entry.document
        try:
            stands = await self._cluster.apply(entry.kind, document.manifest, manager=MANAGER, force=True)
        except ClusterError as error:
            self._pending = self._pending or isinstance(error, Unavailable | Conflict)
            return Finding(document.file, document.line(), "", str(error))
        if "deletionTimestamp" in stands["metadata"]:
            self._pending = True  # the object of this name is on its way out: apply again when it is gone
        else:
            self._applied[entry.key] = entry
        return None

    async def _delete_missing(self, reading: Reading) -> None:
        missing = {
            key
            for key, entry in self._applied.items()
            if key not in reading.entries and key not in reading.bad and entry.document.file not in reading.unclear
        }
        for key in missing & self._missing:
            entry = self._applied.pop(key)
            try:
                await self._cluster.delete(entry.kind, key.name, key.namespace)
            except NotFound:
                log.info("%s was deleted already", key)
            except ClusterError as error:
                log.warning("%s cannot be deleted: %s; trying again", key, error)
                self._applied[key] = entry
        self._missing = missing - self._missing
        self._pending = self._pending or bool(self._missing)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
