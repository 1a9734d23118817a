"""The certificates' loop over a memory cluster: one Secret, one configuration, and nothing written that stands."""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64decode, b64encode
from datetime import UTC, datetime

import pytest
from cryptography import x509

from controllers.webhooks import certificates
from controllers.webhooks.certificates import Terms
from controllers.webhooks.reconcile import KEY, Place, Reconciler, controller
from matrixinfer.api import kinds
from matrixinfer.cluster.loop import Loop
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.plan import Apply, Publish
from tests.cluster.conformance import eventually

PLACE = Place("system")
CONFIGURATION = kinds.VALIDATING_WEBHOOK_CONFIGURATION
NOW = 1_800_000_000.0
DAY = 86_400.0


def a_configuration(**annotations):
    service = {"name": "matrixinfer-webhooks", "namespace": "system"}
    return {
        "apiVersion": CONFIGURATION.api_version,
        "kind": CONFIGURATION.kind,
        "metadata": {
            "name": PLACE.name,
            "uid": "u",
            "resourceVersion": "1",
            "annotations": {f"cert-manager.io/{name.replace('_', '-')}": value for name, value in annotations.items()},
        },
        "webhooks": [
            {"name": "one.example.com", "clientConfig": {"service": service}},
            {"name": "two.example.com", "clientConfig": {"url": "https://127.0.0.1:9443/validate"}},
        ],
    }


class World:
    """What stands, as a store gives it."""

    def __init__(self, *manifests):
        self.manifests = {one["kind"]: one for one in manifests}

    def get(self, kind, name, namespace=""):
        return self.manifests.get(kind.kind)

    def take(self, plan):
        for action in plan.actions:
            if isinstance(action, Apply) and action.kind == kinds.SECRET:
                meta = action.manifest["metadata"] | {"uid": "s", "resourceVersion": "1"}
                self.manifests["Secret"] = action.manifest | {"metadata": meta}
            elif isinstance(action, Apply):
                for stands, given in zip(
                    self.manifests[CONFIGURATION.kind]["webhooks"], action.manifest["webhooks"], strict=True
                ):
                    stands["clientConfig"] |= given["clientConfig"]
        return plan

    def bundles(self):
        return [one["clientConfig"].get("caBundle") for one in self.manifests[CONFIGURATION.kind]["webhooks"]]


def reconcile(world, now=NOW):
    return world.take(Reconciler(PLACE, Terms()).reconcile(KEY, world, now))


def kinds_of(plan):
    return [action.kind.kind if isinstance(action, Apply) else "Publish" for action in plan.actions]


def test_first_the_secret_then_the_configuration_then_rest():
    world = World(a_configuration())

    assert [kinds_of(reconcile(world)) for _ in range(3)] == [["Secret"], ["Publish", CONFIGURATION.kind], ["Publish"]]
    ca = world.manifests["Secret"]["data"]["ca.crt"]
    assert world.bundles() == [ca, ca]


def test_the_certificate_is_for_whatever_the_configuration_calls():
    world = World(a_configuration())
    reconcile(world)
    pem = b64decode(world.manifests["Secret"]["data"]["tls.crt"])

    assert certificates.fits(x509.load_pem_x509_certificate(pem), ["matrixinfer-webhooks.system.svc", "127.0.0.1"])


def test_without_a_configuration_there_is_a_certificate_already():
    world = World()
    reconcile(world)

    assert kinds_of(reconcile(world)) == ["Publish"]


def test_a_bundle_that_somebody_took_away_comes_back():
    world = World(a_configuration())
    reconcile(world)
    reconcile(world)
    world.manifests[CONFIGURATION.kind]["webhooks"][1]["clientConfig"]["caBundle"] = ""

    assert kinds_of(reconcile(world)) == ["Publish", CONFIGURATION.kind]


def test_garbage_in_the_secret_is_replaced_and_its_type_stays():
    secret = {"kind": "Secret", "type": "Opaque", "metadata": {"name": PLACE.name, "uid": "s", "resourceVersion": "7"}}
    world = World(secret | {"data": {"ca.crt": "!", "tls.key": b64encode(b"x").decode()}})
    [applied] = reconcile(world).actions

    assert applied.manifest["type"] == "Opaque"
    assert applied.manifest["metadata"]["resourceVersion"] == "7"
    assert kinds_of(reconcile(world)) == ["Publish"]


def test_a_certificate_is_renewed_under_the_same_authority():
    world = World(a_configuration())
    reconcile(world)
    reconcile(world)
    before = world.manifests["Secret"]["data"]

    assert kinds_of(reconcile(world, NOW + 61 * DAY)) == ["Publish", "Secret"]
    after = world.manifests["Secret"]["data"]
    assert after["ca.crt"] == before["ca.crt"]
    assert after["tls.crt"] != before["tls.crt"]


def test_a_new_authority_reaches_every_bundle_before_it_signs():
    world = World(a_configuration())
    reconcile(world)
    reconcile(world)
    now = NOW + 700 * DAY
    reconcile(world, now)
    shown = world.manifests["Secret"]["data"]["tls.crt"]
    now = NOW + 731 * DAY
    reconcile(world, now)

    assert world.manifests["Secret"]["data"]["tls.crt"] == shown
    assert kinds_of(reconcile(world, now + DAY)) == ["Publish", CONFIGURATION.kind]
    assert world.manifests["Secret"]["data"]["tls.crt"] == shown
    assert kinds_of(reconcile(world, now + DAY)) == ["Publish", "Secret"]
    assert kinds_of(reconcile(world, now + DAY)) == ["Publish"]


@pytest.mark.parametrize(
    "world",
    [
        World(a_configuration(inject_ca_from="system/matrixinfer-webhooks")),
        World(
            a_configuration(),
            {
                "kind": "Secret",
                "metadata": {"name": PLACE.name, "annotations": {"cert-manager.io/certificate-name": "x"}},
            },
        ),
    ],
)
def test_what_cert_manager_looks_after_is_not_written(world):
    assert reconcile(world).actions == ()


def test_what_cert_manager_has_written_is_shown():
    made = certificates.renewed(None, ["x"], datetime.fromtimestamp(NOW, UTC), Terms())
    data = {"tls.crt": made.serving.certificate_pem, "tls.key": made.serving.key_pem}
    secret = {
        "kind": "Secret",
        "metadata": {"name": PLACE.name, "annotations": {"cert-manager.io/certificate-name": "x"}},
        "data": {name: b64encode(text).decode() for name, text in data.items()},
    }
    [action] = reconcile(World(a_configuration(), secret)).actions

    assert isinstance(action, Publish)
    assert action.value.certificate == made.serving.certificate_pem
    assert "PRIVATE" not in repr(action)


@contextlib.asynccontextmanager
async def running(cluster, **options):
    loop = Loop(cluster, controller(PLACE), **options)
    loop.touch(KEY)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_only_who_leads_writes_and_all_show_the_same():
    cluster = MemoryCluster()
    shown: dict[str, list] = {"leader": [], "follower": []}
    async with (
        running(cluster, publish=shown["follower"].append, may_write=lambda: False),
        running(cluster, publish=shown["leader"].append),
    ):

        async def both():
            return shown["leader"][-1:] == shown["follower"][-1:] != []

        await eventually(both)
    secrets = (await cluster.list(kinds.SECRET)).items

    assert [one["metadata"]["name"] for one in secrets] == [PLACE.name]
