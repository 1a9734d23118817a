"""What is valid and yet hardly meant: older forms of fields, settings without effect, rules that are never reached. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from matrixinfer.api import kinds, networking, validation, workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matrixinfer.api.meta import Manifest


def oddities(manifest: Manifest) -> Iterator[str]:
    """Give a line for each, with the field's path and what to write instead; none for what cannot be read."""
    kind = validation.kind_of(manifest)
    try:
        if kind == kinds.MODEL_SERVER:
            yield from _server(networking.ModelServer.model_validate(manifest).spec)
        elif kind == kinds.MODEL_ROUTE:
            yield from _route(networking.ModelRoute.model_validate(manifest).spec)
        elif kind == kinds.MODEL_INFER:
            yield from _infer(workload.ModelInfer.model_validate(manifest).spec)
    except ValidationError:
        return


def _server(spec: networking.ModelServerSpec) -> Iterator[str]:
    if spec.kv_connector is not None and spec.workload_selector.pd_group is None:
        yield "spec.kvConnector: has no effect without spec.workloadSelector.pdGroup"


def _route(spec: networking.ModelRouteSpec) -> Iterator[str]:
    if spec.parent_refs:
        yield "spec.parentRefs: only these Gateways would serve the route; without the field, the gateway here does"
    catch_all: int | None = None
    for number, rule in enumerate(spec.rules):
        if catch_all is not None:
            yield f"spec.rules[{number}]: is never reached: rules[{catch_all}] takes every request"
        elif rule.model_match is None or rule.model_match == networking.ModelMatch():
            catch_all = number
        for place, target in enumerate(rule.target_models):
            where = f"spec.rules[{number}].targetModels[{place}]"
            if target.external_model_provider_name is not None:
                yield f"{where}.externalModelProviderName: external providers get no requests yet"
            elif target.weight == 0:
                yield f"{where}.weight: 0 takes no requests"


def _infer(spec: workload.ModelInferSpec) -> Iterator[str]:
    if spec.template.gang_schedule is not None:
        yield "spec.template.gangSchedule: is the older form: write gangPolicy and networkTopology"
    if spec.revision_history_limit == 0:
        yield "spec.revisionHistoryLimit: 0 keeps no revision to go back to"
    rolling = spec.rollout_strategy.rolling_update_configuration
    if rolling is not None and rolling.partition is not None and spec.replicas:
        kept = workload.resolve_up(rolling.partition, spec.replicas)
        if kept >= spec.replicas:
            yield (
                f"spec.rolloutStrategy.rollingUpdateConfiguration.partition: keeps all {spec.replicas} groups at their "
                "revision: nothing is rolled"
            )
