"""Reviews as API servers send them."""

from __future__ import annotations

from matrixinfer.api import kinds
from tests.gateway.test_reconcile import a_route, a_server
from tests.modelinfer.village import an_infer

__all__ = ["a_review", "a_route", "a_server", "an_infer"]


def a_review(manifest, old=None, **request):
    kind = kinds.KINDS.get((manifest.get("apiVersion"), manifest.get("kind"))) if isinstance(manifest, dict) else None
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind} if kind else {},
            "operation": "CREATE" if old is None else "UPDATE",
            "name": "demo",
            "namespace": "default",
            "object": manifest,
            "oldObject": old,
            "dryRun": False,
            **request,
        },
    }
