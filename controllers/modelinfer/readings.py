"""Specs and revisions as they were read, kept while they are the same: to read them takes longer than to see that. Pure.

A ModelInfer is looked at for each change of its pods and of its status, and its spec is the same every time but one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from controllers.modelinfer import revisions
from matrixinfer.api import workload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controllers.modelinfer.revisions import Revision
    from matrixinfer.cluster.protocol import Manifest

_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """A ModelInfer as it was when its spec was read: of its metadata only names hold later, and nothing of its status."""

    spec: Manifest
    infer: workload.ModelInfer
    update: Revision


class Readings:
    """Those of one controller, by uid."""

    def __init__(self) -> None:
        self._infers: dict[str, Reading] = {}
        self._revisions: dict[str, Revision] = {}

    def infer(self, manifest: Manifest) -> Reading:
        """Read a ModelInfer. Raises ValidationError."""
        uid, spec = manifest["metadata"]["uid"], manifest["spec"]
        known = self._infers.get(uid)
        if known is None or known.spec != spec:
            known = Reading(spec, workload.ModelInfer.model_validate(manifest), revisions.of_spec(spec))
            _keep(self._infers, uid, known)
        return known

    def revisions(self, manifests: Iterable[Manifest]) -> dict[str, Revision]:
        """Read the ControllerRevisions of a ModelInfer, by name; those that hold something else are passed over."""
        found = {}
        for manifest in manifests:
            uid = manifest["metadata"]["uid"]
            one = self._revisions.get(uid)
            if one is None or one.stored is not manifest:  # manifests are never changed, only replaced
                one = revisions.stored(manifest)
                if one is None:
                    continue
                _keep(self._revisions, uid, one)
            found[one.name] = one
        return found


def _keep(readings: dict[str, Any], uid: str, one: object) -> None:
    readings.pop(uid, None)
    readings[uid] = one
    if len(readings) > _KEPT:
        del readings[next(iter(readings))]
