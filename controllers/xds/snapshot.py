"""IR to a snapshot: every resource encoded, each with the hash of its content, by which versions are made.

Encoding is slow (betterproto2 is pure Python), so what did not change is not encoded again: a `Builder` remembers the
encodings of its last build.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from google.protobuf import any_pb2

from controllers.xds import access, clusters, filters, listeners, providers, relay, routes
from controllers.xds.typed import packed
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from betterproto2 import Message

    from controllers import ir

PREFIX: Final = "type.googleapis.com/envoy.config."
CDS: Final = PREFIX + "cluster.v3.Cluster"
SDS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS: Final = PREFIX + "core.v3.TypedExtensionConfig"
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
        self._last: dict[Hashable, Resource | bytes] = {}
        self._last_routes: tuple[object, Resource] = (None, Resource("", b""))

    def build(self, config: ir.IR) -> Snapshot:
        """Encode `config`; only what differs from the last build costs."""
        gateway = config.gateway
        if not relay.wanted(config):
            config = replace(config, handlings=tuple(replace(one, relayed=False) for one in config.handlings))
        bare = tuple(replace(backend, endpoints=()) for backend in config.backends)
        names = [dataplane.cluster_name(backend.namespace, backend.name) for backend in bare]
        encoder = _Encoder(self._last)
        issuers = config.access.issuers if config.access is not None else ()
        groups, relayed = _groups(config), _relayed(config)
        fetched = {access.jwks_cluster(one.jwks.url): one.jwks.url for one in issuers if one.jwks.url}
        resources = {
            CDS: {
                clusters.PICKER: encoder.encode(clusters.picker_cluster, gateway.picker),
                **{
                    name: encoder.encode(clusters.keys_cluster, name, url, gateway.authorities)
                    for name, url in fetched.items()
                },
                **{name: encoder.encode(clusters.cluster, one) for name, one in zip(names, bare, strict=True)},
                **{name: encoder.encode(_group, name, gateway.module) for name in groups},
                **{name: encoder.encode(_relayed_group, name, gateway.module) for name in relayed},
                **_outward(config, encoder),
            },
            SDS: {
                dataplane.provider_name(one.namespace, one.name): encoder.encode(providers.secret, one)
                for one in config.providers
                if one.credential is not None
            },
            EDS: {
                **{
                    name: encoder.encode(clusters.assignment, one)
                    for name, one in zip(names, config.backends, strict=True)
                },
                **{name: encoder.encode(clusters.group_assignment, name, members) for name, members in groups.items()},
                **{name: encoder.encode(_relayed_assignment, name, members) for name, members in relayed.items()},
            },
            ECDS: {name: encoder.encode(access.discovered, name, config.access) for name in (access.KEYS, access.JWT)},
            LDS: {
                **{one.name: encoder.encode(listeners.listener, one, gateway) for one in gateway.listeners},
                **({dataplane.RELAY_LISTENER: encoder.encode(relay.listener, gateway)} if relayed else {}),
            },
            RDS: {
                routes.ROUTES: self._routes(replace(config, backends=bare), encoder),
                **({routes.RELAYED: _relay_routes(config, encoder)} if relayed else {}),
            },
        }
        self._last = encoder.used
        return Snapshot(resources)

    def _routes(self, config: ir.IR, encoder: _Encoder) -> Resource:
        """Put the route table together from the encodings of its parts."""
        limits = config.gateway.limits
        backends = {(one.namespace, one.name): one for one in config.backends}
        handled: defaultdict[tuple[str, str], list[routes.Handled]] = defaultdict(list)
        for one in config.handlings:
            further = len([name for name in one.together if (one.namespace, name) in backends])
            for name in one.targets:
                handled[one.namespace, name].append((one, further - 1 if name in one.together and further > 1 else 0))
        targets = {
            dataplane.target_name(*name): encoder.part(routes.picked, one, tuple(handled[name]), limits)
            for name, one in backends.items()
        }
        targets |= _to_providers(config, encoder)
        models = {}
        if config.gateway.picker.fail_open:
            for model in config.models:
                named = {(share.namespace, share.name) for rule in model.rules for share in rule.shares}
                known = tuple(backends[name] for name in sorted(named & backends.keys()))
                models[model.name] = encoder.part(routes.unpicked, model, known, limits)
        names = tuple(model.name for model in config.models)
        frame = encoder.part(
            routes.frame,
            config.gateway,
            names,
            dataplane.LIMITS if config.limited else (),
            config.access,
            bool(config.providers) and providers.translator(config.gateway.picker) is not None,
        )
        if (frame, targets, models) != self._last_routes[0]:
            packed_routes = any_pb2.Any(type_url=RDS, value=routes.filled(frame, targets, models))
            self._last_routes = ((frame, targets, models), _resource(packed_routes.SerializeToString()))
        return self._last_routes[1]


def _outward(config: ir.IR, encoder: _Encoder) -> dict[str, Resource]:
    """Encode the clusters of providers, and that of the translator before them, if there is one."""
    address = providers.translator(config.gateway.picker)
    if not config.providers or address is None:
        return {}
    return {
        providers.TRANSLATOR: encoder.encode(providers.translator_cluster, address),
        **{
            dataplane.provider_name(one.namespace, one.name): encoder.encode(
                providers.cluster, providers.bare(one), config.gateway.authorities
            )
            for one in config.providers
        },
    }


def _groups(config: ir.IR) -> dict[str, tuple[ir.Backend, ...]]:
    """Give the clusters that handlings need beside those of the backends: their names, and who is in them."""
    backends = {(one.namespace, one.name): one for one in config.backends}
    found: dict[str, tuple[ir.Backend, ...]] = {}
    for one in config.handlings:
        if one.together:
            members = [backends[one.namespace, name] for name in one.together if (one.namespace, name) in backends]
            found[dataplane.together_name(one.namespace, one.together)] = tuple(members)
        for mirror in one.mirrors:
            backend = backends.get((one.namespace, mirror.name))
            found[dataplane.mirror_name(one.namespace, mirror.name)] = (backend,) if backend is not None else ()
    return dict(sorted(found.items()))


def _relayed(config: ir.IR) -> dict[str, tuple[ir.Backend, ...]]:
    """Give the clusters of which the relay is the last endpoint, and which backends are in them."""
    backends = {(one.namespace, one.name): one for one in config.backends}
    found: dict[str, tuple[ir.Backend, ...]] = {}
    for one in config.handlings:
        if not one.relayed:
            continue
        known = [name for name in one.together if (one.namespace, name) in backends]
        for target in one.targets:
            names = one.together if target in known and len(known) > 1 else (target,)
            members = [backends[one.namespace, name] for name in names if (one.namespace, name) in backends]
            found[dataplane.relayed_name(one.namespace, names)] = tuple(members)
    return dict(sorted(found.items()))


def _to_providers(config: ir.IR, encoder: _Encoder) -> dict[str, bytes]:
    """Encode what is done with requests that have a provider as their target."""
    limits = config.gateway.limits
    return {
        dataplane.provider_name(one.namespace, one.name): encoder.part(routes.outward, providers.bare(one), limits)
        for one in config.providers
    }


def _relay_routes(config: ir.IR, encoder: _Encoder) -> Resource:
    frame = encoder.part(routes.relayed, config.gateway.limits)
    made = any_pb2.Any(type_url=RDS, value=routes.filled(frame, _to_providers(config, encoder), {}))
    return _resource(made.SerializeToString())


def _relayed_group(name: str, module: bool) -> Message:  # noqa: FBT001 - as the encoder calls it
    return clusters.group(name, relay.introduction(), filters.rename(module=module))


def _relayed_assignment(name: str, members: tuple[ir.Backend, ...]) -> Message:
    return clusters.group_assignment(name, members, relay.endpoint())


def _group(name: str, module: bool) -> Message:  # noqa: FBT001 - as the encoder calls it
    return clusters.group(name, filters.rename(module=module))


class _Encoder:
    """Calls a builder unless the same call was made in the build before."""

    def __init__(self, known: dict[Hashable, Resource | bytes]) -> None:
        self._known = known
        self.used: dict[Hashable, Resource | bytes] = {}

    def encode(self, make: Callable[..., Message], *values: Hashable) -> Resource:
        """Give the resource that `make` builds of `values`."""
        found = self.used[make, values] = self._known.get((make, values)) or _resource(bytes(packed(make(*values))))
        return found  # type: ignore[return-value]  # `make` says which of the two it is

    def part(self, make: Callable[..., Message], *values: Hashable) -> bytes:
        """Give the encoding of a part of a resource."""
        found = self.used[make, values] = self._known.get((make, values)) or bytes(make(*values))
        return found  # type: ignore[return-value]  # as above


def _resource(encoded: bytes) -> Resource:
    return Resource(hashlib.blake2b(encoded, digest_size=8).hexdigest(), encoded)
