"""ModelInfer: groups of pods that serve a model, how they are rolled, recovered, scheduled and counted."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from matrixinfer.api.meta import INT32, INT64, Condition, Items, ObjectMeta, Owned, Rule, Status
from matrixinfer.api.names import dns_1035_label
from matrixinfer.api.workload.amounts import Amount, is_zero, resolve_up
from matrixinfer.api.workload.names import pod_name
from matrixinfer.api.workload.placement import (  # noqa: TC001 - pydantic reads the annotations
    GangPolicy,
    GangSchedule,
    NetworkTopology,
    NetworkTopologyPolicy,
    Plugin,
    TopologySpread,
)
from matrixinfer.api.workload.roles import Role  # noqa: TC001 - pydantic reads the annotation

_MOST_REPLICAS: Final = 1_000_000
_DEFAULT_HISTORY: Final = 10  # as StatefulSets keep
_NAMES: Final = (
    "the names of its pods (NAME-GROUP-ROLE-INDEX-POD) must be DNS labels of at most 63 characters that begin with a "
    "letter: shorten metadata.name or the names of the roles, and write no '.' in them"
)


def _gang_fits(template: Template) -> bool:
    replicas = {role.name: role.replicas for role in template.roles}
    asked = template.min_role_replicas or {}
    return all(name in replicas and least <= replicas[name] for name, least in asked.items())


class Template(Owned):
    """One group."""

    RULES: ClassVar = (
        Rule(
            "two roles have the same name",
            ("roles",),
            lambda template: len({role.name for role in template.roles}) == len(template.roles),
            cel="self.roles.all(role, self.roles.exists_one(other, other.name == role.name))",
            blames="roles",
        ),
        Rule(
            "set gangPolicy, or gangSchedule in the older form, not both",
            ("gang_policy", "gang_schedule"),
            lambda template: template.gang_policy is None or template.gang_schedule is None,
            cel="!(has(self.gangPolicy) && has(self.gangSchedule))",
        ),
        Rule(
            "set networkTopology, or gangSchedule.networkTopology in the older form, not both",
            ("network_topology", "gang_schedule"),
            lambda template: (
                template.network_topology is None
                or template.gang_schedule is None
                or template.gang_schedule.network_topology is None
            ),
            cel="!(has(self.networkTopology) && has(self.gangSchedule) && has(self.gangSchedule.networkTopology))",
        ),
        Rule(
            "minRoleReplicas names a role that is not there, or more than its replicas",
            ("roles", "gang_policy", "gang_schedule"),
            _gang_fits,
            cel="!has(self.gangPolicy) || !has(self.gangPolicy.minRoleReplicas) || "
            "self.gangPolicy.minRoleReplicas.all(name, self.roles.exists(role, role.name == name && "
            "self.gangPolicy.minRoleReplicas[name] <= role.replicas))",
            blames="gangPolicy",
        ),
    )
    restart_grace_period_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=86400,
            json_schema_extra=INT64,
            description="How long a failed pod may take to become ready again before `recoveryPolicy` acts.",
        ),
    ] = 0
    gang_policy: Annotated[
        GangPolicy | None, Field(description="What is scheduled together; left out, all pods of a group.")
    ] = None
    gang_schedule: Annotated[
        GangSchedule | None, Field(description="Older form of gangPolicy and networkTopology.")
    ] = None
    network_topology: Annotated[NetworkTopologyPolicy | None, Field(description="Nearness of pods.")] = None
    roles: Annotated[Items[Role], Field(min_length=1, max_length=4, description="The roles of a group.")]

    @property
    def min_role_replicas(self) -> dict[str, int] | None:
        """Instances that are scheduled together, by role; None if no gang is asked for."""
        asked = self.gang_policy or self.gang_schedule
        return None if asked is None else asked.min_role_replicas

    @property
    def group_topology(self) -> NetworkTopology | None:
        """Nearness of a group's pods, from either form."""
        if self.network_topology is not None:
            return self.network_topology.group_policy
        return self.gang_schedule.network_topology if self.gang_schedule else None


class RollingUpdate(Owned):
    """How many groups a rollout may touch at once."""

    RULES: ClassVar = (
        Rule(
            "maxUnavailable and maxSurge must not both be 0: nothing could ever be replaced",
            ("max_unavailable", "max_surge"),
            lambda rolling: not (is_zero(rolling.max_unavailable) and is_zero(rolling.max_surge)),
            blames="maxUnavailable",
        ),
    )
    max_unavailable: Annotated[
        Amount,
        Field(
            description="Groups that may be missing: a number, or a share of the replicas, rounded down but at least 1 "
            "while maxSurge is 0."
        ),
    ] = 1
    max_surge: Annotated[
        Amount, Field(description="Groups beyond `replicas`: a number, or a share of the replicas, rounded up.")
    ] = 0
    partition: Annotated[
        Amount | None,
        Field(
            description="Groups that stay at their revision, the lowest ordinals first: a number, or a share of the "
            "replicas, rounded up."
        ),
    ] = None


class RolloutStrategy(Owned):
    """How pods come to a new revision."""

    RULES: ClassVar = (
        Rule(
            "RoleRollingUpdate takes maxUnavailable here (groups that are worked on at once); maxSurge and partition are "
            "fields of each role",
            ("type", "rolling_update_configuration"),
            lambda strategy: (
                strategy.type == "InferGroupRollingUpdate"
                or strategy.rolling_update_configuration is None
                or (
                    is_zero(strategy.rolling_update_configuration.max_surge)
                    and strategy.rolling_update_configuration.partition is None
                )
            ),
            cel="self.type != 'RoleRollingUpdate' || !has(self.rollingUpdateConfiguration) || "
            "!has(self.rollingUpdateConfiguration.partition)",
            blames="rollingUpdateConfiguration",
        ),
    )
    type: Annotated[
        Literal["InferGroupRollingUpdate", "RoleRollingUpdate"],
        Field(description="Whole groups are replaced, or only instances of the roles that changed."),
    ] = "InferGroupRollingUpdate"
    rolling_update_configuration: Annotated[
        RollingUpdate | None, Field(description="How many groups at once; left out, one.")
    ] = None


class ModelInferSpec(Owned):
    """Replicated groups of roles of pods."""

    RULES: ClassVar = (
        Rule(
            "InferGroupRecreate cannot go with RoleRollingUpdate, which replaces parts of a group: use RoleRecreate or None",
            ("recovery_policy", "rollout_strategy"),
            lambda spec: (
                spec.recovery_policy != "InferGroupRecreate" or spec.rollout_strategy.type != "RoleRollingUpdate"
            ),
            cel="!(has(self.rolloutStrategy) && self.recoveryPolicy == 'InferGroupRecreate' && "
            "self.rolloutStrategy.type == 'RoleRollingUpdate')",
            blames="recoveryPolicy",
        ),
        Rule(
            "partition of a role goes with rolloutStrategy.type RoleRollingUpdate only; for groups set "
            "rolloutStrategy.rollingUpdateConfiguration.partition",
            ("template", "rollout_strategy"),
            lambda spec: (
                spec.rollout_strategy.type == "RoleRollingUpdate"
                or all(role.partition is None for role in spec.template.roles)
            ),
            cel="(has(self.rolloutStrategy) && self.rolloutStrategy.type == 'RoleRollingUpdate') || "
            "self.template.roles.all(role, !has(role.partition))",
            blames="template",
        ),
        Rule(
            "a plugin's scope names a role that is not there",
            ("template", "plugins"),
            lambda spec: (
                {name for plugin in spec.plugins for name in plugin.scope.roles}
                <= {role.name for role in spec.template.roles}
            ),
            blames="plugins",
        ),
    )
    replicas: Annotated[int, Field(ge=0, le=_MOST_REPLICAS, json_schema_extra=INT32, description="Groups.")] = 1
    scheduler_name: Annotated[
        str | None,
        Field(
            max_length=253,
            description="Scheduler of the pods. Left out: `volcano` where Volcano is installed, otherwise the cluster's own.",
        ),
    ] = None
    plugins: Annotated[Items[Plugin], Field(max_length=16, description="What is done to pods before creation.")] = ()
    topology_spread_constraints: Annotated[
        Items[TopologySpread], Field(max_length=8, description="How pods are spread over domains.")
    ] = ()
    template: Annotated[Template, Field(description="One group.")]
    rollout_strategy: Annotated[RolloutStrategy, Field(description="How pods come to a new revision.")] = (
        RolloutStrategy()
    )
    recovery_policy: Annotated[
        Literal["InferGroupRecreate", "RoleRecreate", "None"],
        Field(
            description="What is made anew when a pod fails or goes: its whole group, its role's instance, or only what "
            "is missing."
        ),
    ] = "RoleRecreate"
    revision_history_limit: Annotated[
        int,
        Field(
            ge=0, le=1000, json_schema_extra=INT32, description="Revisions kept besides those in use, to go back to."
        ),
    ] = _DEFAULT_HISTORY


class RoleStatus(Status):
    """How one role fares, over all groups."""

    name: Annotated[str, Field(max_length=12, description="Name of the role.")]
    replicas: Annotated[int, Field(ge=0, json_schema_extra=INT32, description="Instances that exist.")] = 0
    ready_replicas: Annotated[
        int, Field(ge=0, json_schema_extra=INT32, description="Those of which every pod is ready.")
    ] = 0
    updated_replicas: Annotated[
        int, Field(ge=0, json_schema_extra=INT32, description="Those that run the newest template of the role.")
    ] = 0


_Conditions = Annotated[
    Items[Condition],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, Available, Progressing, UpdateInProgress and Degraded: whether each holds, and if something "
        "is wrong, what to change.",
    ),
]


class ModelInferStatus(Status):
    """What the controller found."""

    observed_generation: Annotated[
        int, Field(ge=0, json_schema_extra=INT64, description="Generation of the spec that this status is about.")
    ] = 0
    replicas: Annotated[int, Field(ge=0, json_schema_extra=INT32, description="Groups that exist.")] = 0
    current_replicas: Annotated[
        int, Field(ge=0, json_schema_extra=INT32, description="Groups of the current revision.")
    ] = 0
    updated_replicas: Annotated[int, Field(ge=0, json_schema_extra=INT32, description="Groups of the newest.")] = 0
    available_replicas: Annotated[
        int, Field(ge=0, json_schema_extra=INT32, description="Groups of which every pod is ready.")
    ] = 0
    current_revision: Annotated[str, Field(max_length=63, description="Revision from which groups are updated.")] = ""
    update_revision: Annotated[str, Field(max_length=63, description="Revision of the spec: the newest.")] = ""
    label_selector: Annotated[
        str, Field(max_length=1024, description="Selects one pod of each group, for autoscalers.")
    ] = ""
    roles: Annotated[Items[RoleStatus], Field(max_length=4, description="The same by role.")] = ()
    conditions: _Conditions = ()


def _names_fit(infer: ModelInfer) -> bool:
    spec, name = infer.spec, infer.metadata.name
    rolling = spec.rollout_strategy.rolling_update_configuration
    surge = resolve_up(rolling.max_surge, spec.replicas) if rolling else 0
    return not name or not any(
        dns_1035_label(
            pod_name(
                name,
                spec.replicas + surge,
                role.name,
                role.replicas + resolve_up(role.max_surge, role.replicas),
                role.worker_replicas,
            )
        )
        for role in spec.template.roles
    )


class ModelInfer(Owned):
    """ModelInfer runs a model: groups of pods that belong together, each with the same roles."""

    model_config = ConfigDict(title="ModelInfer")
    RULES: ClassVar = (
        Rule(
            _NAMES,
            ("metadata", "spec"),
            _names_fit,
            cel="self.spec.template.roles.all(role, size(self.metadata.name) + size(string(self.spec.replicas)) + "
            "size(role.name) + size(string(role.replicas)) + size(string(role.workerReplicas)) + 4 <= 63)",
        ),
    )

    api_version: Literal["workload.matrixinfer.ai/v1alpha1"] = "workload.matrixinfer.ai/v1alpha1"
    kind: Literal["ModelInfer"] = "ModelInfer"
    metadata: ObjectMeta
    spec: Annotated[ModelInferSpec, Field(description="What is wanted.")]
    status: Annotated[ModelInferStatus | None, Field(description="What is.")] = None
