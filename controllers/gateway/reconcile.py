"""The gateway's reconcile: one key for all, since Envoy is told everything at once. Pure.

What Envoy answered to the last IR comes in as a value; whoever learns of a new answer touches KEY.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from controllers.gateway import replicas, status
from controllers.gateway.translate import Translation, Views, translate
from matrixinfer.api import kinds
from matrixinfer.cluster.plan import Apply, ApplyStatus, Plan, Publish, Together
from matrixinfer.cluster.protocol import Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Protocol

    from controllers import ir
    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.plan import Action
    from matrixinfer.cluster.protocol import Manifest

    class World(Protocol):
        """What is read of the cluster."""

        def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
            """Return the object if it stands."""
            ...

        def all(self, kind: Kind, namespace: str | None = None) -> list[Manifest]:
            """Return the objects of a kind."""
            ...

        def select(self, kind: Kind, labels: Mapping[str, str], namespace: str | None = None) -> list[Manifest]:
            """Return the objects whose labels include these."""
            ...


NAME: Final = "matrixinfer-gateway"  # the manager of the statuses
KEY: Final = Key("Gateway", "", "gateway")
KINDS: Final = (
    kinds.MODEL_SERVER,
    kinds.MODEL_ROUTE,
    kinds.ACCESS_POLICY,
    kinds.EXTERNAL_MODEL_PROVIDER,
    kinds.SECRET,
    kinds.POD,
)


def touches(_manifest: Manifest, _world: object) -> Iterable[Key]:
    """Say what a change of any watched object concerns: the one key."""
    return (KEY,)


def of_pod(manifest: Manifest, world: World) -> Iterable[Key]:
    """Say that a pod concerns the gateway if a ModelServer selects it: others come and go by the thousand."""
    meta = manifest["metadata"]
    labels = meta.get("labels") or {}
    servers = world.all(kinds.MODEL_SERVER, meta.get("namespace", ""))
    return (KEY,) if any(_selector(server).items() <= labels.items() for server in servers) else ()


def _selector(server: Manifest) -> Mapping[str, str]:
    """Give the labels that pods of a ModelServer have at the least; none, if its spec does not say."""
    try:
        labels = server["spec"]["workloadSelector"]["matchLabels"]
        return {name: value for name, value in labels.items() if isinstance(value, str)}
    except (KeyError, TypeError, AttributeError):
        return {}


WATCHES: Final[Mapping[Kind, Callable[[Manifest, Any], Iterable[Key]]]] = {
    **dict.fromkeys(KINDS, touches),
    kinds.POD: of_pod,
}


def of_replica(manifest: Manifest, _world: object) -> Iterable[Key]:
    """Say that a replica's record concerns the gateway; the leader's lease, which is renewed all the time, does not."""
    return (KEY,) if replicas.LABELS.items() <= (manifest["metadata"].get("labels") or {}).items() else ()


def of_pod_or_replica(manifest: Manifest, world: World) -> Iterable[Key]:
    """Say the same of a pod, and of one that a replica runs in."""
    return of_pod(manifest, world) or ((KEY,) if replicas.recorded(manifest, world) else ())


REPLICA_WATCHES: Final = {**WATCHES, kinds.LEASE: of_replica, kinds.POD: of_pod_or_replica}  # of one among several


def secrets(world: World) -> Iterable[tuple[str, str]]:
    """Name the Secrets that policies and providers name: no others are read."""
    for kind in (kinds.ACCESS_POLICY, kinds.EXTERNAL_MODEL_PROVIDER):
        for manifest in world.all(kind):
            for name in _named(manifest.get("spec")):
                yield manifest["metadata"].get("namespace", ""), name


def _named(part: object, *, secret: bool = False) -> Iterator[str]:
    """Give the names in whatever is called a reference to Secrets, wherever it is."""
    if isinstance(part, list):
        for one in part:
            yield from _named(one, secret=secret)
    elif isinstance(part, dict):
        if secret and isinstance(part.get("name"), str):
            yield part["name"]
        for member, one in part.items():
            yield from _named(one, secret=member.lower().endswith(("secretref", "secretrefs")))


CHOSEN: Final = {kinds.SECRET: secrets}


class Reconciler:
    """`reconcile` of the gateway controller; owns the memory of parsed objects, and no other state."""

    def __init__(
        self, gateway: ir.Gateway, delivery: Callable[[], ir.Delivery], replica: replicas.Replica | None = None
    ) -> None:
        """`delivery` tells what became of the last IR; `replica` is who this is among several."""
        self._gateway = gateway
        self._delivery = delivery
        self._replica = replica
        self._views = Views()

    def reconcile(self, _key: Key, world: World, now: float) -> Plan:
        """Publish what Envoy has to do, and write the statuses that have changed."""
        made = translate(
            self._gateway,
            servers=world.all(kinds.MODEL_SERVER),
            routes=world.all(kinds.MODEL_ROUTE),
            pods=_selected(world),
            policies=world.all(kinds.ACCESS_POLICY),
            providers=world.all(kinds.EXTERNAL_MODEL_PROVIDER),
            secrets=world.all(kinds.SECRET),
            views=self._views,
        )
        delivery = self._delivery()
        actions: list[Action] = [Publish(made.config)]
        if self._replica is not None:
            if (record := replicas.record(self._replica, delivery, world)) is not None:
                actions.append(Apply(kinds.LEASE, record, manager=replicas.MANAGER, own=True))
            delivery = replicas.together(self._replica, delivery, world)
        if statuses := tuple(_statuses(made, world, delivery, now)):
            actions.append(Together(statuses))  # one that is refused holds up no other
        return Plan(tuple(actions))


def _selected(world: World) -> Iterable[Manifest]:
    """Give the pods that any ModelServer may select, each once."""
    found = {}
    for server in world.all(kinds.MODEL_SERVER):
        for pod in world.select(kinds.POD, _selector(server), server["metadata"].get("namespace", "")):
            found[pod["metadata"].get("namespace", ""), pod["metadata"]["name"]] = pod
    return [found[name] for name in sorted(found)]


def _statuses(made: Translation, world: World, delivery: ir.Delivery, now: float) -> Iterator[ApplyStatus]:
    time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    judges = (
        (kinds.MODEL_SERVER, status.of_server),
        (kinds.MODEL_ROUTE, status.of_route),
        (kinds.ACCESS_POLICY, status.of_policy),
        (kinds.EXTERNAL_MODEL_PROVIDER, status.of_provider),
    )
    for kind, judge in judges:
        for manifest in world.all(kind):
            meta = manifest["metadata"]
            fields, findings = judge((meta.get("namespace", ""), meta["name"]), made, delivery)
            new = status.written(manifest, fields, findings, time)
            if new is not None:
                who = {"name": meta["name"], "namespace": meta.get("namespace", "")}
                yield ApplyStatus(
                    kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": who, "status": new}
                )
