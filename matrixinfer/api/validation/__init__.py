"""Checks of manifests: every problem of an object at once, each with its field and what to change.

`validate` looks at one object, `validate_update` at a change of one, `validate_set` at objects together. The webhooks, the
memory cluster, directories and `matrixinfer validate` all ask here. Nothing raises, whatever the manifest holds.
"""

from __future__ import annotations

from matrixinfer.api.validation.objects import TYPES, Problem, Severity, kind_of, validate, validate_update
from matrixinfer.api.validation.sets import DEFAULT_NAMESPACE, Finding, validate_set

__all__ = [
    "DEFAULT_NAMESPACE",
    "TYPES",
    "Finding",
    "Problem",
    "Severity",
    "kind_of",
    "validate",
    "validate_set",
    "validate_update",
]
