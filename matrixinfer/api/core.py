"""The parts of Kubernetes' own resources that we read: Pod and Service.

Views, not copies: fields that nobody here reads are passed over, so a manifest is never written back from a view.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import Field

from matrixinfer.api import meta
from matrixinfer.api.meta import Foreign, IntOrString, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
Port = Annotated[int, Field(ge=1, le=65535)]


class FieldRef(Foreign):
    """A field of the Pod itself: `metadata.name`, `status.podIP`, `metadata.labels['key']`."""

    field_path: str


class KeyRef(Foreign):
    """One key of a Secret or ConfigMap in the Pod's namespace."""

    name: str = ""
    key: str
    optional: bool = False


class EnvSource(Foreign):
    """Where the value of an environment variable comes from."""

    field_ref: FieldRef | None = None
    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None


class EnvVar(Foreign):
    """One environment variable; `$(NAME)` in `value` stands for an earlier one."""

    RULES: ClassVar = (
        Rule(
            "set value or valueFrom, not both",
            ("value", "value_from"),
            lambda env: not (env.value and env.value_from),
        ),
    )
    name: Annotated[str, Field(min_length=1)]
    value: str = ""
    value_from: EnvSource | None = None


class ContainerPort(Foreign):
    """A port that the container listens on."""

    container_port: Port
    name: str = ""
    protocol: str = "TCP"


class HttpHeader(Foreign):
    """A header of a probe's request."""

    name: str
    value: str = ""


class HttpGet(Foreign):
    """A probe by HTTP: 200 to 399 is success."""

    port: IntOrString
    path: str = "/"
    host: str = ""  # "": the Pod's address
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HttpHeader, ...] = ()


class Exec(Foreign):
    """A probe by command: exit status 0 is success."""

    command: tuple[str, ...] = ()


class TcpSocket(Foreign):
    """A probe by connecting."""

    port: IntOrString
    host: str = ""


class Probe(Foreign):
    """How a container is asked whether it is alive, ready or started."""

    RULES: ClassVar = (
        Rule(
            "set exactly one of httpGet, exec and tcpSocket",
            ("http_get", "exec", "tcp_socket"),
            lambda probe: sum(way is not None for way in (probe.http_get, probe.exec, probe.tcp_socket)) == 1,
        ),
    )
    http_get: HttpGet | None = None
    exec: Exec | None = None
    tcp_socket: TcpSocket | None = None
    initial_delay_seconds: Annotated[int, Field(ge=0)] = 0
    period_seconds: Annotated[int, Field(ge=1)] = 10
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    success_threshold: Annotated[int, Field(ge=1)] = 1
    failure_threshold: Annotated[int, Field(ge=1)] = 3


class VolumeMount(Foreign):
    """Where a container sees a volume."""

    name: str
    mount_path: str
    read_only: bool = False


class Container(Foreign):
    """One container of a Pod."""

    RULES: ClassVar = (
        Rule(
            "must be a DNS label: at most 63 lower case letters, digits and '-', with a letter or digit at both ends",
            ("name",),
            lambda container: bool(_DNS_LABEL.fullmatch(container.name)),
            blames="name",
        ),
    )
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    restart_policy: str = ""  # "Always" on an init container makes it a sidecar

    def port(self, reference: int | str) -> int | None:
        """Port number that a probe's `port` means: itself, or that of the port with this name."""
        if isinstance(reference, int):
            return reference
        return next((port.container_port for port in self.ports if port.name == reference), None)


class EmptyDir(Foreign):
    """A directory that lives as long as the Pod."""

    medium: str = ""


class Volume(Foreign):
    """A volume of a Pod; only `emptyDir` is read."""

    name: str
    empty_dir: EmptyDir | None = None


class PodSpec(Foreign):
    """What a Pod runs."""

    RULES: ClassVar = (
        Rule(
            "must hold at least one container", ("containers",), lambda spec: bool(spec.containers), blames="containers"
        ),
        Rule(
            "two containers have the same name",
            ("containers", "init_containers"),
            lambda spec: _unique(container.name for container in (*spec.containers, *spec.init_containers)),
            blames="containers",
        ),
    )
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: Annotated[int, Field(ge=0)] = 30
    node_name: str = ""


class PodCondition(Foreign):
    """One aspect of a Pod's state."""

    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""


class ContainerStatus(Foreign):
    """How one container fares."""

    name: str
    ready: bool = False
    started: bool = False
    restart_count: int = 0


class PodStatus(Foreign):
    """How a Pod fares."""

    phase: str = "Pending"
    pod_ip: Annotated[str, Field(alias="podIP")] = ""
    conditions: tuple[PodCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    reason: str = ""
    message: str = ""


class Pod(meta.Object):
    """A Pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        """True if the condition Ready is True: probes passed, the Pod may get requests."""
        return any(condition.type == "Ready" and condition.status == "True" for condition in self.status.conditions)

    @property
    def terminating(self) -> bool:
        """True if the Pod has been told to stop: no new requests."""
        return bool(self.metadata.deletion_timestamp)


class ServicePort(Foreign):
    """One port of a Service."""

    port: Port
    name: str = ""
    target_port: IntOrString = 0  # 0: the same as `port`
    protocol: str = "TCP"


class ServiceSpec(Foreign):
    """Which Pods a Service stands for, and on which ports."""

    selector: dict[str, str] = Field(default_factory=dict)
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: Annotated[str, Field(alias="clusterIP")] = ""  # "None": headless
    type: str = "ClusterIP"


class Service(meta.Object):
    """A Service."""

    spec: ServiceSpec = ServiceSpec()


def _unique(names: Iterable[str]) -> bool:
    listed = list(names)
    return len(set(listed)) == len(listed)
