"""IR to a snapshot: every resource encoded, each with the hash of its content, by which versions are made.

Encoding is slow (betterproto2 is pure Python), so what did not change is not encoded again: a `Builder` remembers the
encodings of its last build.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from controllers.xds import clusters, listeners, routes
from controllers.xds.typed import packed
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from betterproto2 import Message

    from controllers import ir

PREFIX: Final = "type.googleapis.com/envoy.config."
CDS: Final = PREFIX + "cluster.v3.Cluster"
EDS: Final = PREFIX + "endpoint.v3.ClusterLoadAssignment"
LDS: Final = PREFIX + "listener.v3.Listener"
RDS: Final = PREFIX + "route.v3.RouteConfiguration"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, encoded as `google.protobuf.Any`."""

    digest: str
    encoded: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything an Envoy may ask for: by type, then by name."""

    resources: Mapping[str, Mapping[str, Resource]]


def version(resources: Mapping[str, Resource]) -> str:
    """Name a set of resources by its content."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(resources):
        digest.update(f"{name}\0{resources[name].digest}\0".encode())
    return digest.hexdigest()


class Builder:
    """Builds snapshots. Keeps the encodings of the last one."""

    def __init__(self) -> None:
        self._last: dict[Hashable, Resource] = {}

    def build(self, config: ir.IR) -> Snapshot:
        """Encode `config`; only what differs from the last build costs."""
        gateway = config.gateway
        bare = tuple(replace(backend, endpoints=()) for backend in config.backends)
        names = [dataplane.cluster_name(backend.namespace, backend.name) for backend in bare]
        encoder = _Encoder(self._last)
        resources = {
            CDS: {
                clusters.PICKER: encoder.encode(clusters.picker_cluster, gateway.picker),
                **{name: encoder.encode(clusters.cluster, one) for name, one in zip(names, bare, strict=True)},
            },
            EDS: {
                name: encoder.encode(clusters.assignment, one) for name, one in zip(names, config.backends, strict=True)
            },
            LDS: {one.name: encoder.encode(listeners.listener, one, gateway) for one in gateway.listeners},
            RDS: {routes.ROUTES: encoder.encode(routes.routes, replace(config, backends=bare))},
        }
        self._last = encoder.used
        return Snapshot(resources)


class _Encoder:
    """Calls a builder unless the same call was made in the build before."""

    def __init__(self, known: dict[Hashable, Resource]) -> None:
        self._known = known
        self.used: dict[Hashable, Resource] = {}

    def encode(self, make: Callable[..., Message], *values: Hashable) -> Resource:
        key = (make, values)
        found = self._known.get(key) or _resource(make(*values))
        self.used[key] = found
        return found


def _resource(message: Message) -> Resource:
    encoded = bytes(packed(message))
    return Resource(hashlib.blake2b(encoded, digest_size=8).hexdigest(), encoded)
