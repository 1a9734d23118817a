"""One LeaderWorkerSet's reconcile: its ModelInfer stands as the set says, and the set's status as the ModelInfer's. Pure.

Whoever runs LeaderWorkerSet's own controller leaves this one off: two would make pods for the same object.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from controllers.leaderworkersets import translate
from matrixinfer.api import kinds
from matrixinfer.cluster.loop import Controller, itself, owner
from matrixinfer.cluster.manifest import differs
from matrixinfer.cluster.plan import Apply, ApplyStatus, Emit, Plan

if TYPE_CHECKING:
    from typing import Protocol

    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.plan import Action
    from matrixinfer.cluster.protocol import Key, Manifest

    class World(Protocol):
        """What is read of the cluster."""

        def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
            """Return the object if it stands."""
            ...


NAME: Final = "matrixinfer-leaderworkersets"
_KIND: Final = kinds.LEADER_WORKER_SET
_LOOK_AGAIN_S: Final = 15.0  # at a name that belongs to another ModelInfer: nobody tells when it is free


def controller() -> Controller:
    """Give the controller."""
    watches = {_KIND: itself(_KIND), kinds.MODEL_INFER: owner(_KIND)}
    return Controller(NAME, reconcile, watches, refused)


def reconcile(key: Key, world: World, now: float) -> Plan:
    """Give what makes the ModelInfer as the set says."""
    lws = world.get(_KIND, key.name, key.namespace)
    if lws is None or "deletionTimestamp" in lws["metadata"]:
        return Plan()
    stands = world.get(kinds.MODEL_INFER, key.name, key.namespace)
    if stands is not None and not _is_ours(lws, stands):
        said = f"ModelInfer {key.name} is not of this LeaderWorkerSet and has its name: rename one of them"
        return Plan((*_status(lws, None, ("NameTaken", said), now),), _LOOK_AGAIN_S)
    wanted = translate.model_infer(lws)
    actions: list[Action] = []
    if stands is None or differs(wanted, stands):
        actions.append(Apply(kinds.MODEL_INFER, wanted))
        unheeded = translate.unheeded(lws)
        if unheeded:
            actions.append(Emit(lws, "NotHeeded", f"Without effect here: {'; '.join(unheeded)}", "Warning"))
    return Plan((*actions, *_status(lws, stands, None, now)))


def refused(key: Key, world: World, error: Exception, now: float) -> Plan:
    """Give the status that says what the API server has refused."""
    lws = world.get(_KIND, key.name, key.namespace)
    if lws is None:
        return Plan()
    said = f"The API server refuses the ModelInfer that would run it: {error}"
    return Plan((*_status(lws, world.get(kinds.MODEL_INFER, key.name, key.namespace), ("Refused", said), now),))


def _status(lws: Manifest, infer: Manifest | None, trouble: tuple[str, str] | None, now: float) -> list[ApplyStatus]:
    """Write the status if it is another; a trouble is said in the place of Available."""
    new = translate.status(infer)
    before = lws.get("status") or {}
    if trouble is not None:
        new["conditions"] = [
            *(one for one in new["conditions"] if one["type"] != "Available"),
            _unavailable(before, trouble, now),
        ]
    if all(before.get(name) == value for name, value in new.items()):
        return []
    meta = {"name": lws["metadata"]["name"], "namespace": lws["metadata"].get("namespace", "")}
    return [ApplyStatus(_KIND, {"apiVersion": _KIND.api_version, "kind": _KIND.kind, "metadata": meta, "status": new})]


def _unavailable(before: Manifest, trouble: tuple[str, str], now: float) -> dict[str, Any]:
    reason, message = trouble
    conditions: list[Manifest] = before.get("conditions") or []
    last = next((one for one in conditions if one["type"] == "Available"), {})
    since = last.get("lastTransitionTime") if last.get("status") == "False" else None
    time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "Available",
        "status": "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": since or time,
    }


def _is_ours(lws: Manifest, infer: Manifest) -> bool:
    references = infer["metadata"].get("ownerReferences", ())
    return any(one.get("uid") == lws["metadata"]["uid"] for one in references)
