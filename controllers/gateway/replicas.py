"""What the Envoys of all replicas took: each replica serves its own, and the one that writes statuses has to know of the others'.

A replica that Envoys ask keeps a record, a Lease of the name `matrixinfer-envoys-POD` with an annotation, and writes it when its Envoys
have taken or refused something, come or gone; nothing is renewed. It counts while its Pod is there and ready, and goes with the Pod. A
Lease, because nobody but the leader may write anything else. Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from controllers import ir
from matrixinfer.api import kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Protocol

    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.protocol import Manifest

    class World(Protocol):
        """What is read of the cluster."""

        def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
            """Return the object if it stands."""
            ...

        def select(self, kind: Kind, labels: Mapping[str, str], namespace: str | None = None) -> list[Manifest]:
            """Return the objects whose labels include these."""
            ...


MANAGER: Final = "matrixinfer-replica"
LABELS: Final = {"gateway.matrixinfer.ai/record": "envoys"}
DELIVERY: Final = "gateway.matrixinfer.ai/delivery"
_PREFIX: Final = "matrixinfer-envoys-"
_DIGITS: Final = 8  # of a version: few, since secrets are part of what it is the hash of
_LONGEST: Final = 500  # characters of what an Envoy said
_MOST: Final = 20  # refusals


@dataclass(frozen=True, slots=True)
class Replica:
    """The Pod that a replica runs in."""

    namespace: str
    pod: str

    @property
    def record(self) -> str:
        """Name of its record."""
        return f"{_PREFIX}{self.pod}"


def recorded(pod: Manifest, world: World) -> bool:
    """Tell whether a pod is of a replica that keeps a record."""
    meta = pod["metadata"]
    return world.get(kinds.LEASE, f"{_PREFIX}{meta['name']}", meta.get("namespace", "")) is not None


def record(replica: Replica, delivery: ir.Delivery, world: World) -> Manifest | None:
    """Give the record to write; None if it stands so, or says nothing: it waits until all Envoys have answered."""
    pod = world.get(kinds.POD, replica.pod, replica.namespace)
    stands = world.get(kinds.LEASE, replica.record, replica.namespace)
    decided = delivery.settled or delivery.refusals or not delivery.envoys
    if pod is None or delivery.config is None or not decided or (stands is None and not delivery.envoys):
        return None
    summary = orjson.dumps(_summary(delivery), default=_plain).decode()
    if stands is not None and _said(stands) == summary and _owned(stands, pod):
        return None
    reference = {"apiVersion": "v1", "kind": "Pod", "name": replica.pod, "uid": pod["metadata"]["uid"]}
    return {
        "apiVersion": kinds.LEASE.api_version,
        "kind": kinds.LEASE.kind,
        "metadata": {
            "name": replica.record,
            "namespace": replica.namespace,
            "labels": LABELS,
            "annotations": {DELIVERY: summary},
            "ownerReferences": [reference],
        },
        "spec": {"holderIdentity": replica.pod},
    }


def together(replica: Replica, own: ir.Delivery, world: World) -> ir.Delivery:
    """Give what became of our last IR at the Envoys of all replicas. One that is at another IR has not answered yet."""
    if own.config is None:
        return own
    version, found = _version(own.config), own
    for lease in world.select(kinds.LEASE, LABELS, replica.namespace):
        pod = lease["metadata"]["name"].removeprefix(_PREFIX)
        if pod == replica.pod or not _serves(world.get(kinds.POD, pod, replica.namespace)):
            continue
        said = _read(lease)
        if said is None or not said["envoys"]:
            continue
        same = said["version"] == version
        found = replace(
            found,
            envoys=found.envoys + said["envoys"],
            settled=same and said["settled"] and (found.settled or not found.envoys),
            refusals=tuple(dict.fromkeys((*found.refusals, *(_refusals(said) if same else ())))),
        )
    return found


def _summary(delivery: ir.Delivery) -> dict[str, Any]:
    assert delivery.config is not None  # noqa: S101 - `record` has looked
    return {
        "version": _version(delivery.config),
        "envoys": delivery.envoys,
        "settled": delivery.settled,
        "refusals": [replace(one, message=one.message[:_LONGEST]) for one in delivery.refusals[:_MOST]],
    }


def _version(config: ir.IR) -> str:
    """Name an IR. Endpoints come and go without being news."""
    steady = replace(config, backends=tuple(replace(one, endpoints=()) for one in config.backends))
    return hashlib.sha256(orjson.dumps(steady, default=_plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_DIGITS]


def _plain(value: object) -> object:
    """Write what JSON has not, the same in every process."""
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _said(lease: Manifest) -> str:
    return str(lease["metadata"].get("annotations", {}).get(DELIVERY, ""))


def _owned(lease: Manifest, pod: Manifest) -> bool:
    return any(one.get("uid") == pod["metadata"]["uid"] for one in lease["metadata"].get("ownerReferences", ()))


def _serves(pod: Manifest | None) -> bool:
    """Tell whether the replica in this pod is there."""
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = (pod.get("status") or {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _read(lease: Manifest) -> dict[str, Any] | None:
    """Read a record; None if it is none, of a version of this program that writes another."""
    try:
        said = orjson.loads(_said(lease))
        return {
            "version": str(said["version"]),
            "envoys": int(said["envoys"]),
            "settled": bool(said["settled"]),
            "refusals": list(said["refusals"]),
        }
    except (ValueError, KeyError, TypeError):
        return None


def _refusals(said: Mapping[str, Any]) -> Iterable[ir.Refusal]:
    for one in said["refusals"]:
        yield ir.Refusal(
            str(one["message"]),
            _names(one["backends"]),
            None if one["models"] is None else frozenset(map(str, one["models"])),
            _names(one["providers"]) or frozenset(),
        )


def _names(listed: list[list[str]] | None) -> frozenset[tuple[str, str]] | None:
    return None if listed is None else frozenset((namespace, name) for namespace, name in listed)
