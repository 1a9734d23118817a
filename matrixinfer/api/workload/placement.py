"""How a ModelInfer's pods are prepared and placed: plugins, gangs, nearness, spread."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, WithJsonSchema

from matrixinfer.api.meta import INT32, Items, Owned, Rule

_FREE: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _config_is_sound(name: str, config: dict[str, Any]) -> bool:
    if name != "demo-pod-tweaks":
        return not config
    annotations, env = config.get("annotations", {}), config.get("env", [])
    return (
        config.keys() <= {"runtimeClassName", "annotations", "env"}
        and isinstance(config.get("runtimeClassName", ""), str)
        and isinstance(annotations, dict)
        and all(isinstance(text, str) for pair in annotations.items() for text in pair)
        and isinstance(env, list)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"] and len(entry) > 1
            for entry in env
        )
    )


class Scope(Owned):
    """Which pods a plugin is for."""

    roles: Annotated[
        Items[Annotated[str, Field(max_length=12)]],
        Field(max_length=4, description="Names of roles; none: all of them."),
    ] = ()
    target: Annotated[
        Literal["All", "Entry", "Worker"], Field(description="All pods of an instance, its entry, or its workers.")
    ] = "All"


class Plugin(Owned):
    """Something that is done to each pod before it is created, in the order of the list."""

    name: Annotated[
        Literal["demo-pod-tweaks", "lws-standard-labels"],
        Field(
            description="`demo-pod-tweaks` sets runtimeClassName, annotations and env of its config; `lws-standard-labels` "
            "adds the labels that LeaderWorkerSet gives its pods."
        ),
    ]
    type: Annotated[Literal["BuiltIn"], Field(description="Where the plugin comes from.")] = "BuiltIn"
    config: Annotated[
        dict[str, Any], WithJsonSchema(_FREE), Field(description="What the plugin is told; each has its own fields.")
    ] = Field(default_factory=dict)
    scope: Annotated[Scope, Field(description="Which pods it is for; left out, all of them.")] = Scope()
    RULES: ClassVar = (
        Rule(
            "demo-pod-tweaks takes runtimeClassName (a string), annotations (a map of strings) and env (a list of "
            "name and value); lws-standard-labels takes nothing",
            ("name", "config"),
            lambda plugin: _config_is_sound(plugin.name, plugin.config),
            blames="config",
        ),
    )


class NetworkTopology(Owned):
    """How near to each other pods are placed (Volcano's network topology)."""

    mode: Annotated[
        Literal["hard", "soft"], Field(description="Whether pods wait for such a place, or only prefer it.")
    ] = "hard"
    highest_tier_allowed: Annotated[
        int | None, Field(ge=0, le=1000, json_schema_extra=INT32, description="Highest tier that the pods may span.")
    ] = None
    highest_tier_name: Annotated[
        str | None, Field(max_length=253, description="The same tier by its name; set one of the two.")
    ] = None
    RULES: ClassVar = (
        Rule(
            "set highestTierAllowed or highestTierName, not both",
            ("highest_tier_allowed", "highest_tier_name"),
            lambda topology: topology.highest_tier_allowed is None or topology.highest_tier_name is None,
            cel="!(has(self.highestTierAllowed) && has(self.highestTierName))",
        ),
    )


class NetworkTopologyPolicy(Owned):
    """Nearness of all pods of a group, and of those of a role's instance."""

    group_policy: Annotated[NetworkTopology | None, Field(description="All pods of a group.")] = None
    role_policy: Annotated[
        NetworkTopology | None, Field(description="The pods of each role's instance (Volcano 1.14 or newer).")
    ] = None


_MinRoleReplicas = Annotated[
    dict[str, Annotated[int, Field(ge=0)]],
    Field(
        max_length=4,
        json_schema_extra={"additionalProperties": {"type": "integer", "format": "int32", "minimum": 0}},
        description="Instances of each role that must be placed together; a role that is not named needs all of them.",
    ),
]


class GangPolicy(Owned):
    """How much of a group is scheduled at once or not at all."""

    min_role_replicas: _MinRoleReplicas = Field(default_factory=dict)


class GangSchedule(Owned):
    """The same in its older form; write gangPolicy and networkTopology instead."""

    min_role_replicas: _MinRoleReplicas = Field(default_factory=dict)
    network_topology: Annotated[NetworkTopology | None, Field(description="All pods of a group.")] = None


class TopologySpread(Owned):
    """How evenly pods lie over zones, nodes or other domains; becomes a constraint of every pod."""

    max_skew: Annotated[int, Field(ge=1, le=1000, json_schema_extra=INT32, description="Largest difference in pods.")]
    topology_key: Annotated[
        str, Field(min_length=1, max_length=317, description="Label of nodes whose value names the domain.")
    ]
    when_unsatisfiable: Annotated[
        Literal["DoNotSchedule", "ScheduleAnyway"], Field(description="Whether pods wait for such a place.")
    ]
    label_selector: Annotated[
        dict[str, Any] | None,
        WithJsonSchema(_FREE),
        Field(description="Pods that are counted (metav1.LabelSelector); left out, those of this ModelInfer."),
    ] = None
