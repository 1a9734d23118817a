"""Who keeps the webhooks' certificates: one key, one Secret, one configuration.

Every replica shows what stands in the Secret; the one that writes makes it, renews it, and gives the configuration the
authority to trust. Where cert-manager does that, which its annotations say, nothing is written. Chance comes in with the keys
that `certificates` draws; apart from them the same world gives the same plan.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from controllers.webhooks import certificates
from controllers.webhooks.certificates import Chest, Pair, Terms, Unreadable
from matrixinfer.api import kinds
from matrixinfer.cluster.loop import Controller
from matrixinfer.cluster.plan import Apply, Plan, Publish
from matrixinfer.cluster.protocol import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Protocol

    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.plan import Action
    from matrixinfer.cluster.protocol import Manifest

    class World(Protocol):
        """What is read of the cluster."""

        def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
            """Return the object if it stands."""
            ...


NAME: Final = "matrixinfer-webhooks"  # the manager of the fields
KEY: Final = Key("Webhooks", "", "webhooks")

_CONFIGURATION: Final = kinds.VALIDATING_WEBHOOK_CONFIGURATION
_INJECTS: Final = ("cert-manager.io/inject-ca-from", "cert-manager.io/inject-ca-from-secret")
_ISSUES: Final = "cert-manager.io/certificate-name"
_LOOKS_AGAIN_S: Final = 12 * 3600.0  # at the latest, should clocks jump


@dataclass(frozen=True, slots=True)
class Place:
    """One name for Secret, Service and configuration, and the namespace of the first two."""

    namespace: str
    name: str = "matrixinfer-webhooks"


@dataclass(frozen=True, slots=True)
class Shown:
    """What servers show to API servers, in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


class Reconciler:
    """`reconcile` of the certificates; keeps nothing between rounds."""

    def __init__(self, place: Place, terms: Terms) -> None:
        self._place = place
        self._terms = terms

    def reconcile(self, _key: Key, world: World, now: float) -> Plan:
        """Show what stands, and bring it up to date."""
        secret = world.get(kinds.SECRET, self._place.name, self._place.namespace)
        configuration = world.get(_CONFIGURATION, self._place.name)
        data = _decoded(secret)
        actions: list[Action] = []
        if "tls.crt" in data and "tls.key" in data:
            actions.append(Publish(Shown(data["tls.crt"], data["tls.key"])))
        if _delegated(secret, configuration):
            return Plan(tuple(actions))
        moment = datetime.fromtimestamp(now, UTC)
        standing = _chest(data)
        told = standing is not None and all(
            standing.authority.certificate_pem in _bundle(webhook) for webhook in _webhooks(configuration)
        )
        kept = certificates.renewed(standing, self._names(configuration), moment, self._terms, told=told)
        if kept is not standing:
            actions.append(Apply(kinds.SECRET, self._secret(kept, secret)))
        elif configuration is not None:
            actions += _injected(configuration, kept.bundle)
        due_s = (certificates.next_due(kept, moment, self._terms) - moment).total_seconds()
        return Plan(tuple(actions), requeue_after_s=min(max(due_s, 1.0), _LOOKS_AGAIN_S))

    def _names(self, configuration: Manifest | None) -> list[str]:
        """Say what API servers call this server: by its Service, and whatever else the configuration says."""
        called = dict.fromkeys((f"{self._place.name}.{self._place.namespace}.svc",))
        for webhook in _webhooks(configuration):
            client = webhook.get("clientConfig") or {}
            service = client.get("service") or {}
            host = f"{service.get('name')}.{service.get('namespace')}.svc" if service else _host(client.get("url"))
            if host and host.isascii():
                called[host] = None
        return list(called)

    def _secret(self, chest: Chest, stands: Manifest | None) -> Manifest:
        meta: Manifest = {"name": self._place.name, "namespace": self._place.namespace}
        kind = "kubernetes.io/tls"
        if stands is not None:  # and is still what was seen: the preconditions
            meta |= {name: stands["metadata"][name] for name in ("uid", "resourceVersion")}
            kind = stands.get("type", "Opaque")  # cannot be changed
        texts = {
            "ca.crt": chest.bundle,
            "ca.key": chest.authority.key_pem,
            "tls.crt": chest.serving.certificate_pem,
            "tls.key": chest.serving.key_pem,
        }
        return {
            "apiVersion": kinds.SECRET.api_version,
            "kind": kinds.SECRET.kind,
            "metadata": meta,
            "type": kind,
            "data": {name: b64encode(text).decode() for name, text in texts.items()},
        }


def controller(place: Place, terms: Terms | None = None) -> Controller:
    """Give the controller that keeps the certificates of the webhooks at this place."""
    touched: Mapping[Kind, tuple[str, str]] = {
        kinds.SECRET: (place.namespace, place.name),
        _CONFIGURATION: ("", place.name),
    }

    def touches(kind: Kind) -> Any:
        def told(manifest: Manifest, _: object) -> Iterable[Key]:
            meta = manifest["metadata"]
            return (KEY,) if (meta.get("namespace", ""), meta["name"]) == touched[kind] else ()

        return told

    return Controller(
        NAME,
        Reconciler(place, terms or Terms()).reconcile,
        {kind: touches(kind) for kind in touched},
        namespaces={kinds.SECRET: place.namespace},
    )


def _injected(configuration: Manifest, bundle: bytes) -> Iterator[Apply]:
    webhooks = _webhooks(configuration)
    if all(_bundle(webhook) == bundle for webhook in webhooks):
        return
    text = b64encode(bundle).decode()
    meta = configuration["metadata"]
    yield Apply(
        _CONFIGURATION,
        {
            "apiVersion": _CONFIGURATION.api_version,
            "kind": _CONFIGURATION.kind,
            "metadata": {"name": meta["name"], "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
            "webhooks": [{"name": webhook["name"], "clientConfig": {"caBundle": text}} for webhook in webhooks],
        },
    )


def _delegated(secret: Manifest | None, configuration: Manifest | None) -> bool:
    """Tell whether cert-manager looks after it."""
    injects = _annotations(configuration)
    return any(name in injects for name in _INJECTS) or _ISSUES in _annotations(secret)


def _annotations(manifest: Manifest | None) -> Mapping[str, str]:
    return ((manifest or {}).get("metadata") or {}).get("annotations") or {}


def _webhooks(configuration: Manifest | None) -> list[Manifest]:
    return (configuration or {}).get("webhooks") or []


def _bundle(webhook: Manifest) -> bytes:
    return _bytes((webhook.get("clientConfig") or {}).get("caBundle"))


def _host(url: str | None) -> str:
    try:
        return urlsplit(url or "").hostname or ""
    except ValueError:
        return ""


def _decoded(secret: Manifest | None) -> dict[str, bytes]:
    return {name: _bytes(text) for name, text in ((secret or {}).get("data") or {}).items()}


def _bytes(text: str | None) -> bytes:
    try:
        return b64decode(text or "")
    except (binascii.Error, ValueError):
        return b""


def _chest(data: Mapping[str, bytes]) -> Chest | None:
    """Read what stands; None if there is nothing to go on with."""
    try:
        trusted = certificates.read_all(data.get("ca.crt", b""))
        authority = Pair.read(data.get("ca.crt", b""), data.get("ca.key", b""))
        return Chest(authority, trusted, Pair.read(data.get("tls.crt", b""), data.get("tls.key", b"")))
    except Unreadable:
        return None
