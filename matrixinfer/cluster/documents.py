"""Manifests in YAML or JSON text, with the line of every field. Pure.

Text is cut at its document markers first, so that a document with broken syntax does not hide those around it. Values are
what Kubernetes' own reader makes of them: JSON types, timestamps stay text, keys are strings.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
import yaml
from yaml.constructor import SafeConstructor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matrixinfer.cluster.protocol import Manifest

Loc = tuple[str | int, ...]

_MARKER: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_ONLY_DIRECTIVES: Final = re.compile(r"(?:\s|[%#].*(?:\n|\Z))*")  # one way to read each character: no backtracking
_TAG: Final = "tag:yaml.org,2002:"
_SEXAGESIMAL: Final = re.compile(r"[-+]?[0-9_]+(:[0-9_.]+)+")
_MOST_NODES: Final = 200_000  # aliases can make a short text as large as one likes
_MOST_DEPTH: Final = 100
_LEAST_INTEGER: Final = -(2**63)
_MOST_INTEGER: Final = 2**63 - 1
_DEEP_ENOUGH_TO_HARM: Final = 10_000  # characters; libyaml's composer recurses without a bound of its own


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to change in a file."""

    file: str
    line: int  # from 1
    field: str  # path such as spec.rules[0].weight; "" for the whole document
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: {self.severity}: "
        return place + (f"{self.field}: {self.message}" if self.field else self.message)


@dataclass(frozen=True, slots=True)
class Document:
    """One object as a file says it."""

    file: str
    manifest: Manifest
    lines: Mapping[Loc, int] = field(compare=False)
    at: Loc = ()  # where the object stands in its document, if that is a list

    def line(self, loc: Loc = ()) -> int:
        """Return the line of the field, or of the nearest thing around it."""
        where = self.at + loc
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


class _Bad(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def parse(text: str, file: str) -> tuple[list[Document], list[Finding]]:
    """Every object in the text, and what could not be read. Lists of objects are opened."""
    documents: list[Document] = []
    findings: list[Finding] = []
    for first_line, chunk in _chunks(text):
        try:
            for value, lines in _values(chunk, first_line):
                documents += _open(Document(file, value, lines))
        except _Bad as bad:
            findings.append(Finding(file, bad.line, "", bad.message))
    return documents, findings


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    text = text.removeprefix("\ufeff")
    cuts = [0, *(match.start() for match in _MARKER.finditer(text)), len(text)]
    for start, end in itertools.pairwise(cuts):
        chunk = text[start:end]
        if not _ONLY_DIRECTIVES.fullmatch(chunk):
            yield text.count("\n", 0, start) + 1, chunk


def _values(chunk: str, first_line: int) -> Iterator[tuple[Any, dict[Loc, int]]]:
    try:
        if len(chunk) > _DEEP_ENOUGH_TO_HARM:
            _check_depth(chunk, first_line)
        nodes = list(yaml.compose_all(chunk, Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        if (value := _json(chunk)) is not None:
            yield value, {(): first_line}
            return
        raise _syntax(error, chunk, first_line) from None
    for node in nodes:
        reader = _Reader(first_line)
        value = reader.value(node, (), 0)
        if value is not None:
            yield value, reader.lines


def _check_depth(chunk: str, first_line: int) -> None:
    depth = 0
    for event in yaml.parse(chunk, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MOST_DEPTH:
            line = event.start_mark.line if event.start_mark else 0
            raise _Bad(first_line + line, "is nested too deeply")


def _json(chunk: str) -> Any:
    """JSON that the YAML parser does not take, such as escaped surrogate pairs."""
    try:
        return orjson.loads(chunk)
    except orjson.JSONDecodeError:
        return None


def _syntax(error: yaml.YAMLError, chunk: str, first_line: int) -> _Bad:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if mark is None:
        position = getattr(error, "position", 0)
        line = first_line + chunk.count("\n", 0, position if isinstance(position, int) else 0)
        return _Bad(line, f"is not YAML: {problem}")
    line = min(int(mark.line), chunk.rstrip().count("\n"))  # the end of the text is reported behind it
    context = getattr(error, "context", None)
    said = f"{problem} ({context})" if context else str(problem)
    hint = ": indent with spaces, not with tabs" if chunk.split("\n")[line].lstrip(" ").startswith("\t") else ""
    return _Bad(first_line + line, f"is not YAML: column {mark.column + 1}: {said}{hint}")


class _Reader:
    """Makes values of nodes and notes where they stand."""

    def __init__(self, first_line: int) -> None:
        self.lines: dict[Loc, int] = {}
        self._first_line = first_line
        self._construct = SafeConstructor()
        self._count = 0

    def value(self, node: yaml.Node, at: Loc, depth: int) -> Any:
        """Return the node's value. Raises _Bad."""
        line = self._line(node)
        self.lines.setdefault(at, line)
        self._count += 1
        if self._count > _MOST_NODES:
            raise _Bad(self._first_line, f"holds more than {_MOST_NODES} values: divide it, or use fewer aliases")
        if depth > _MOST_DEPTH:
            raise _Bad(line, "is nested too deeply, or an alias refers to what it stands in")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, at, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*at, number), depth + 1) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._tagged(node)

    def _tagged(self, node: yaml.Node) -> _Bad:
        tag = str(node.tag).replace(_TAG, "!!")
        return _Bad(self._line(node), f"has the tag {tag}, which manifests cannot hold: remove it")

    def _line(self, node: yaml.Node) -> int:
        return self._first_line + int(node.start_mark.line)

    def _mapping(self, node: yaml.MappingNode, at: Loc, depth: int) -> Manifest:
        found: Manifest = {}
        merged: Manifest = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = self._line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Bad(line, "has a key that is not a single word: if it is a template, write it in quotes")
            if key_node.tag == f"{_TAG}merge":
                merged = self._merge(value_node, at, depth) | merged
                continue
            key = str(key_node.value)
            if key in first:
                raise _Bad(line, f"the key {key!r} is given twice, first in line {first[key]}: keep one of them")
            first[key] = line
            self.lines[(*at, key)] = line
            found[key] = self.value(value_node, (*at, key), depth + 1)
        return merged | found

    def _merge(self, node: yaml.Node, at: Loc, depth: int) -> Manifest:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: Manifest = {}
        for source in sources:
            value = self.value(source, (*at, "<<"), depth + 1)
            if not isinstance(value, dict):
                raise _Bad(self._line(node), "the merge key '<<' needs a mapping or a list of mappings")
            merged = value | merged
        return merged

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(_TAG)
        text = str(node.value)
        if kind in ("str", "timestamp") or _SEXAGESIMAL.fullmatch(text):
            return text
        if kind == "null":
            return None
        try:
            if kind == "bool":
                return self._construct.construct_yaml_bool(node)
            if kind == "int":
                whole = self._construct.construct_yaml_int(node)
                if _LEAST_INTEGER <= whole <= _MOST_INTEGER:
                    return whole
            elif kind == "float":
                number = self._construct.construct_yaml_float(node)
                if math.isfinite(number):
                    return number
            else:
                raise self._tagged(node)
        except (ValueError, KeyError):
            pass
        shown = text if len(text) <= 40 else text[:40] + "..."  # noqa: PLR2004 - enough to find it
        raise _Bad(self._line(node), f"{shown!r} is not a value that JSON can hold: put text in quotes")


def _open(document: Document) -> Iterator[Document]:
    """Give the objects of a `List`; any other document is one object."""
    manifest = document.manifest
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if not (isinstance(kind, str) and kind.endswith("List") and isinstance(manifest.get("items"), list)):
        yield document
        return
    for number, item in enumerate(manifest["items"]):
        named = item
        if isinstance(item, dict) and kind != "List":
            named = {"apiVersion": manifest.get("apiVersion"), "kind": kind.removesuffix("List")} | item
        yield Document(document.file, named, document.lines, ("items", number))
