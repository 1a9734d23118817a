"""Revisions: what pods are made of, by a hash of it, kept as ControllerRevisions to protect groups and to go back to. Pure.

A revision's data is a merge patch for the ModelInfer that brings its pods back. How many instances a role has is no part
of the hash; the counts that a revision was last wanted with stand beside the data in an annotation.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from controllers.modelinfer.shapes import RoleShape, Shape
from matrixinfer.api import kinds, workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matrixinfer.cluster.protocol import Manifest

COUNTS_ANNOTATION: Final = "modelinfer.matrixinfer.ai/role-replicas"
_LETTERS: Final = (
    "bcdfghjklmnpqrstvwxz2456789"  # as in Kubernetes' own names: no vowels, nothing that looks like another
)
_LENGTH: Final = 10
_NOT_CONTENT: Final = (
    "replicas",
    "maxUnavailable",
    "maxSurge",
    "partition",
)  # of a role: pods are the same whatever they say


@dataclass(frozen=True, slots=True)
class Revision:
    """What the pods of a revision are made of."""

    shape: Shape
    spec: Mapping[str, Any]  # schedulerName, plugins, topologySpreadConstraints, template.roles
    number: int = 0  # the higher the newer; 0: not stored yet
    stored: Manifest | None = None

    @property
    def name(self) -> str:
        """The hash."""
        return self.shape.revision

    def role(self, name: str) -> Mapping[str, Any]:
        """Give the role as the spec has it."""
        found: Mapping[str, Any] = next(role for role in self.spec["template"]["roles"] if role["name"] == name)
        return found


def of_spec(spec: Mapping[str, Any]) -> Revision:
    """Give the revision that a ModelInfer's spec asks for."""
    content = {
        "schedulerName": spec.get("schedulerName"),
        "plugins": list(spec.get("plugins", ())),
        "topologySpreadConstraints": list(spec.get("topologySpreadConstraints", ())),
        "template": {"roles": list(spec["template"]["roles"])},
    }
    return Revision(_shape(content), content)


def stored(manifest: Manifest) -> Revision | None:
    """Read a ControllerRevision of a ModelInfer; None if it holds something else."""
    try:
        content = {"schedulerName": None} | manifest["data"]["spec"]
        shape = _shape(content)
        counts = json.loads(manifest["metadata"].get("annotations", {}).get(COUNTS_ANNOTATION, "{}"))
        roles = tuple(_counted(role, counts) for role in shape.roles)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    # Its label says its hash: a newer version of this program may compute another.
    revision = manifest["metadata"].get("labels", {}).get(workload.REVISION_LABEL, shape.revision)
    return Revision(Shape(revision, roles), content, manifest.get("revision", 0), manifest)


def manifest(owner: Manifest, revision: Revision, *, number: int, counts: Mapping[str, int]) -> Manifest:
    """Build the ControllerRevision."""
    meta = owner["metadata"]
    return {
        "apiVersion": kinds.CONTROLLER_REVISION.api_version,
        "kind": kinds.CONTROLLER_REVISION.kind,
        "metadata": {
            "name": f"{meta['name']}-{revision.name}",
            "namespace": meta.get("namespace", ""),
            "labels": {workload.NAME_LABEL: meta["name"], workload.REVISION_LABEL: revision.name},
            "annotations": {COUNTS_ANNOTATION: json.dumps(dict(sorted(counts.items())))},
        },
        "revision": number,
        "data": {"spec": revision.spec},
    }


def unneeded(known: Mapping[str, Revision], used: Iterable[str], limit: int) -> list[Revision]:
    """Give the stored revisions that history has no room for, oldest first."""
    spare = sorted(known.keys() - set(used), key=lambda name: (known[name].number, name))
    return [known[name] for name in spare[: max(len(spare) - limit, 0)]]


def _shape(content: Mapping[str, Any]) -> Shape:
    roles = content["template"]["roles"]
    shapes = tuple(
        RoleShape(role["name"], role.get("replicas", 1), 1 + role["workerReplicas"], _role_hash(role, content))
        for role in roles
    )
    return Shape(_hash([[shape.name, shape.hash] for shape in shapes]), shapes)


def _counted(role: RoleShape, counts: Mapping[str, int]) -> RoleShape:
    return RoleShape(role.name, int(counts.get(role.name, role.replicas)), role.pods, role.hash)


def _role_hash(role: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    own = {key: value for key, value in role.items() if key not in _NOT_CONTENT}
    around = {
        "schedulerName": content["schedulerName"],
        "plugins": [plugin for plugin in content["plugins"] if _concerns(plugin, role["name"])],
        "topologySpreadConstraints": content["topologySpreadConstraints"],
    }
    return _hash([own, {key: value for key, value in around.items() if value}])


def _concerns(plugin: Mapping[str, Any], role: str) -> bool:
    roles: Sequence[str] = plugin.get("scope", {}).get("roles", ())
    return not roles or role in roles


def _hash(value: Any) -> str:
    """Hash a JSON value. What is left out, and what is null or empty, are the same."""
    text = json.dumps(_without_empty(value), sort_keys=True, separators=(",", ":"))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest())
    letters = []
    for _ in range(_LENGTH):
        number, rest = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "".join(letters)


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        parts = {key: _without_empty(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part not in (None, {}, [])}
    if isinstance(value, list):
        return [_without_empty(part) for part in value]
    return value
