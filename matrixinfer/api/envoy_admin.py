"""What Envoy's admin interface answers, as far as it is read: by the local stack, and by the picker where requests are held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping

# Its interface has a Unix socket of its own, so the host in these is nobody's.
READY: Final = "http://envoy/ready"
CLUSTERS: Final = "http://envoy/clusters?format=json"


def healthy(clusters: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Endpoints that get requests, by cluster, in the answer to `CLUSTERS`."""
    return {
        cluster["name"]: frozenset(
            dataplane.endpoint(where.get("address", ""), where.get("port_value", 0))
            for host in cluster.get("host_statuses", ())
            if _is_healthy(host.get("health_status", {})) and (where := host.get("address", {}).get("socket_address"))
        )
        for cluster in clusters.get("cluster_statuses", ())
    }


def _is_healthy(said: Mapping[str, Any]) -> bool:
    """`said`: how Envoy was told that an endpoint is, and flags that say what it has found wrong with it."""
    return said.get("eds_health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN") and not any(
        found for name, found in said.items() if name != "eds_health_status"
    )
