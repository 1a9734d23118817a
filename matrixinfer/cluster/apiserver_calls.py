"""How calls of an API server look on the wire, and what its answers become. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from matrixinfer.cluster import statuses
from matrixinfer.cluster.protocol import EventType, Invalid, WatchEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixinfer.cluster.protocol import Kind, Manifest

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
MERGE: Final = "application/merge-patch+json"
PATCH: Final = "application/json-patch+json"
METHODS: Final = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "apply": "PATCH",
    "delete": "DELETE",
}
_LONGEST_RETRY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request: a verb on the objects of a kind, or on one of them, or on a part (subresource) of that."""

    verb: str
    kind: Kind
    namespace: str | None  # None: all, or the kind has none
    name: str = ""
    part: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content: str = JSON

    @property
    def method(self) -> str:
        """The HTTP method."""
        return METHODS[self.verb]

    @property
    def writes(self) -> bool:
        """Whether it is meant to change something."""
        return self.method != "GET"

    @property
    def path(self) -> str:
        """The path below the namespace."""
        return "/".join(quote(part, safe="") for part in (self.kind.plural, self.name, self.part) if part)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the object, if the call was carried out."""

    code: int
    manifest: Manifest | None
    body: bytes = b""
    retry_after_s: float = 1.0

    def object(self) -> Manifest:
        """Return the object. Raises what the refusal means."""
        if self.manifest is None:
            raise statuses.refusal(self.code, self.body)
        return self.manifest


def good(code: int) -> bool:
    """Tell whether an answer with this HTTP status says that the call was carried out."""
    return 200 <= code < 300  # noqa: PLR2004 - as HTTP has it


def retry_after_s(header: str | None) -> float:
    """Return how long the server asks to wait."""
    try:
        return min(max(float(header or 1), 0.0), _LONGEST_RETRY_S)
    except ValueError:
        return 1.0


def namespace_of(kind: Kind, namespace: str) -> str | None:
    """Return the namespace that a call names."""
    return (namespace or "default") if kind.namespaced else None


def of_name(name: str) -> dict[str, str]:
    """Return what asks for the object of a name only, which an account may that may read no other."""
    return {"fieldSelector": f"metadata.name={name}"} if name else {}


def named(kind: Kind, manifest: Manifest) -> Manifest:
    """Return the manifest as the server wants it, with its type and its name in place. Raises Invalid."""
    meta = manifest.get("metadata")
    if not isinstance(meta, dict):
        raise Invalid("metadata: Required value: an object has a name")
    return manifest | {"apiVersion": kind.api_version, "kind": kind.kind}


def status_patch(manifest: Manifest) -> list[Manifest]:
    """Return the JSON patch that replaces status alone, for the object and the version that the manifest is of.

    A PUT would do, were it not that for some kinds it takes labels and annotations as well.
    """
    meta = manifest["metadata"]
    steps: list[Manifest] = [{"op": "test", "path": "/metadata/uid", "value": meta["uid"]}] if meta.get("uid") else []
    if meta.get("resourceVersion"):  # put into the object, it is the server's precondition
        steps.append({"op": "replace", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]})
    return [*steps, {"op": "add", "path": "/status", "value": manifest.get("status", {})}]


def event(line: bytes) -> WatchEvent:
    """Return the event that a line of a watch is. Raises what an ERROR event means."""
    found = orjson.loads(line)
    if found["type"] == "ERROR":
        raise statuses.error_of(found["object"])
    return WatchEvent(EventType(found["type"]), lean(found["object"]))


def bookmark(kind: Kind, version: str) -> WatchEvent:
    """Return the event that says that all is known up to a version."""
    meta = {"resourceVersion": version}
    return WatchEvent(EventType.BOOKMARK, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta})


def lean(manifest: Manifest) -> Manifest:
    """Leave managedFields out: half of many an object, of which those who only read need nothing."""
    manifest["metadata"].pop("managedFields", None)
    return manifest
