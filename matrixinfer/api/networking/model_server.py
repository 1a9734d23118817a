"""ModelServer: the engines that serve one model, and how traffic reaches them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import ConfigDict, Field

from matrixinfer.api import dataplane
from matrixinfer.api.meta import INT32, INT64, Conditions, Duration, Items, ObjectMeta, Owned, Status
from matrixinfer.api.names import LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, LabelKey, LabelValue

if TYPE_CHECKING:
    from matrixinfer.api.core import Pod

_PORT_MAX: Final = 65535

Labels = dict[LabelKey, LabelValue]
_LABELS_SCHEMA: Final = {
    "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE_PATTERN},
    "x-kubernetes-validations": [
        {
            "rule": f"self.all(key, size(key) <= 317 && key.matches(r'{LABEL_KEY_PATTERN}'))",
            "message": "every key must be a label key: `name` or `example.com/name`, of letters, digits, '-', '_' and '.'",
        }
    ],
}


class PDGroup(Owned):
    """How pods that only prefill and pods that only decode are told apart, and which of them belong together."""

    group_key: Annotated[
        LabelKey,
        Field(
            min_length=1,
            max_length=317,
            json_schema_extra={"pattern": LABEL_KEY_PATTERN},
            description="Label key whose value names the group: prefill and decode pods with equal values work together.",
        ),
    ]
    prefill_labels: Annotated[
        Labels,
        Field(
            min_length=1,
            max_length=32,
            json_schema_extra=_LABELS_SCHEMA,
            description="Labels of the pods that compute prompts (prefill).",
        ),
    ]
    decode_labels: Annotated[
        Labels,
        Field(
            min_length=1,
            max_length=32,
            json_schema_extra=_LABELS_SCHEMA,
            description="Labels of the pods that generate tokens (decode).",
        ),
    ]


class WorkloadSelector(Owned):
    """Which pods of the ModelServer's own namespace serve the model."""

    match_labels: Annotated[
        Labels,
        Field(
            min_length=1,
            max_length=32,
            json_schema_extra=_LABELS_SCHEMA,
            description="Labels that a pod must carry, all of them.",
        ),
    ]
    pd_group: Annotated[
        PDGroup | None,
        Field(description="Set when prefill and decode run in different pods; left out, every pod does both."),
    ] = None


class WorkloadPort(Owned):
    """Where the engine listens in each pod: inference, metrics and model list."""

    port: Annotated[
        int,
        Field(
            ge=1,
            le=_PORT_MAX,
            json_schema_extra=INT32,
            description=f"Port number. A pod with the annotation `{dataplane.PORT_ANNOTATION}` has its own.",
        ),
    ]
    protocol: Annotated[
        Literal["http", "https"], Field(description="Protocol that the engine speaks: http, or https for TLS.")
    ] = "http"


RetryReason = Annotated[str, Field(max_length=32, pattern=r"^(connect-failure|reset|refused-stream|429|5[0-9][0-9])$")]
RETRY_ON: Final = ("connect-failure", "reset", "refused-stream", "503")  # an engine that dislikes a request is not dead


class Retry(Owned):
    """What happens when a pod fails before the first byte of its answer."""

    attempts: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            json_schema_extra=INT32,
            description="How often a failed request is tried again, each time on another pod. 0 switches retries off.",
        ),
    ]
    retry_interval: Annotated[
        Duration, Field(description="Pause before the first retry; later ones back off from it.")
    ] = Duration("100ms")
    retry_on: Annotated[
        Items[RetryReason],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "set"},
            description="What a try has to fail by, before its answer began, to be followed by another: `connect-failure`, "
            "`reset` (the connection broke, or the try took too long), `refused-stream`, or a status: 429 or one from 500 to 599.",
        ),
    ] = RETRY_ON


class TrafficPolicy(Owned):
    """Limits on the time and the number of tries of a request."""

    timeout: Annotated[
        Duration | None,
        Field(description="Longest time until the answer begins (its headers). Left out: as long as it takes."),
    ] = None
    retry: Annotated[Retry | None, Field(description="Retries; left out, the gateway's own are used.")] = None


class KVConnector(Owned):
    """How the KV cache travels from prefill to decode pods."""

    type: Annotated[
        Literal["http", "lmcache", "nixl", "mooncake"], Field(description="The connector that the engines run with.")
    ] = "http"


class ModelServerSpec(Owned):
    """Engines that serve one model, and how they are reached."""

    model: Annotated[
        str | None,
        Field(
            max_length=256,
            description="Model name that the engines know. Set, it replaces `model` in the body of each request, except "
            "on routes to LoRA adapters. Left out, the name is passed on as it came.",
        ),
    ] = None
    inference_engine: Annotated[
        Literal["vLLM", "SGLang"], Field(description="The engine: its metric names and its PD protocol follow from it.")
    ]
    workload_selector: Annotated[WorkloadSelector, Field(description="The pods that serve the model.")]
    workload_port: Annotated[WorkloadPort, Field(description="The port that the engines listen on.")]
    traffic_policy: Annotated[TrafficPolicy | None, Field(description="Timeout and retries of requests.")] = None
    kv_connector: Annotated[
        KVConnector | None, Field(description="KV cache transfer; matters with `workloadSelector.pdGroup` only.")
    ] = None


class ModelServerStatus(Status):
    """What the controllers found."""

    observed_generation: Annotated[
        int, Field(ge=0, json_schema_extra=INT64, description="Generation of the spec that this status is about.")
    ] = 0
    endpoints: Annotated[
        int,
        Field(ge=0, json_schema_extra=INT32, description="Pods that the selector matches and that have an address."),
    ] = 0
    ready_endpoints: Annotated[
        int, Field(ge=0, json_schema_extra=INT32, description="Those of them that may get requests now.")
    ] = 0
    conditions: Conditions = ()


class ModelServer(Owned):
    """ModelServer names the pods whose engines serve one model, and how traffic reaches them."""

    model_config = ConfigDict(title="ModelServer")

    api_version: Literal["networking.matrixinfer.ai/v1alpha1"] = "networking.matrixinfer.ai/v1alpha1"
    kind: Literal["ModelServer"] = "ModelServer"
    metadata: ObjectMeta
    spec: Annotated[ModelServerSpec, Field(description="What is wanted.")]
    status: Annotated[ModelServerStatus | None, Field(description="What is.")] = None

    def selects(self, pod: Pod) -> bool:
        """Tell whether the pod serves this model: same namespace, all labels of `matchLabels`."""
        labels = pod.metadata.labels
        return pod.metadata.namespace == self.metadata.namespace and all(
            labels.get(key) == value for key, value in self.spec.workload_selector.match_labels.items()
        )

    def answers(self, pod: Pod) -> bool:
        """Tell whether a pod that serves this model may answer requests: with a `pdGroup`, if it decodes."""
        group = self.spec.workload_selector.pd_group
        labels = pod.metadata.labels
        return group is None or all(labels.get(key) == value for key, value in group.decode_labels.items())

    def address(self, pod: Pod) -> str | None:
        """Give the "ip:port" of the pod's engine; None while it has no IP, or an annotation that is no port."""
        ip = pod.status.pod_ip
        text = pod.metadata.annotations.get(dataplane.PORT_ANNOTATION)
        port = self.spec.workload_port.port if text is None else port_number(text)
        if not ip or port is None:
            return None
        return dataplane.endpoint(ip, port)


def port_number(text: str) -> int | None:
    """Read the value of the port annotation; None if it is not a port."""
    return int(text) if re.fullmatch("[1-9][0-9]{0,4}", text) and int(text) <= _PORT_MAX else None
