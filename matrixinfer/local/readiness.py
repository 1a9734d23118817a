"""Whether a request would be served now, and if not, why not: in words that say where to look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from matrixinfer.api import core, dataplane, kinds
from matrixinfer.local import envoy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixinfer.cluster.protocol import Cluster, Manifest
    from matrixinfer.local.node import Node
    from matrixinfer.local.pods import PodRunner
    from matrixinfer.local.services import Service

LAST_LINES = 5


async def gateway_problem(
    cluster: Cluster, *, url: str, picker_url: str, http: aiohttp.ClientSession, envoy_admin: aiohttp.ClientSession
) -> str:
    """Ask Envoy for an endpoint that a route leads to and at `url`, and the picker whether it serves; "" if all is well.

    The picker is asked by itself: without it, Envoy fails open and serves, too, but places by load alone.
    """
    try:
        healthy = await envoy.healthy_hosts(envoy_admin)
    except (aiohttp.ClientError, TimeoutError):
        return "Envoy does not answer yet"
    targets = [target for item in (await cluster.list(kinds.MODEL_ROUTE)).items for target in _targets(item)]
    if not any(healthy.get(target) for target in targets):
        return "no route leads to an endpoint that is ready"
    try:
        async with http.get(f"{url}{dataplane.HEALTH_PATHS[0]}"):
            pass
    except (aiohttp.ClientError, TimeoutError):
        return "Envoy does not listen yet"
    try:
        async with http.get(f"{picker_url}/healthz") as answer:
            return "" if answer.status == 200 else "the picker does not serve yet"  # noqa: PLR2004 - OK
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"the picker does not answer yet ({error or type(error).__name__})"


def _targets(route: Manifest) -> list[str]:
    """Envoy's names of the clusters that a ModelRoute leads to."""
    namespace = route["metadata"].get("namespace", "")
    return [
        dataplane.provider_name(namespace, target["externalModelProviderName"])
        if target.get("externalModelProviderName")
        else dataplane.cluster_name(namespace, target.get("modelServerName", ""))
        for rule in route["spec"].get("rules") or ()
        for target in rule.get("targetModels") or ()
    ]


async def explain(cluster: Cluster, node: Node, services: Sequence[Service], findings: Sequence[str]) -> str:
    """Say what of the stack keeps it from serving, with the last lines of the logs concerned."""
    lines = [*findings]
    listings = {
        kind.kind: (await cluster.list(kind)).items for kind in (kinds.POD, kinds.MODEL_SERVER, kinds.MODEL_ROUTE)
    }
    lines += [f"there is no {kind}" for kind, items in listings.items() if not items]
    for item in listings["Pod"]:
        lines += _pod(core.Pod.model_validate(item), node)
    for kind in ("ModelServer", "ModelRoute"):
        for item in listings[kind]:
            lines += _conditions(item)
    for service in services:
        if service.pid is None or service.restarts:
            lines.append(f"{service.name}: {service.failure or 'does not run'}")
            lines += _indented(service.log_tail(LAST_LINES))
    return "\n".join(lines)


def _pod(pod: core.Pod, node: Node) -> list[str]:
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    if pod.ready:
        return []
    message = next((item.message for item in pod.status.conditions if item.type == "Ready"), "") or pod.status.message
    lines = [f"pod {name} is not ready ({pod.status.phase}): {message or 'nothing is known of it yet'}"]
    runner: PodRunner | None = node.runners.get(name)
    for container in (*runner.init, *runner.containers) if runner else ():
        if not container.status.ready:
            lines += _indented(container.log_tail(LAST_LINES))
    return lines


def _conditions(manifest: dict[str, object]) -> list[str]:
    status = manifest.get("status")
    metadata = manifest["metadata"]
    conditions = status.get("conditions") or () if isinstance(status, dict) else ()
    name = f"{metadata.get('namespace', '')}/{metadata['name']}" if isinstance(metadata, dict) else ""
    return [
        f"{manifest['kind']} {name}: {item.get('message') or item.get('reason')}"
        for item in conditions
        if item.get("status") == "False"
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]
