"""One AdmissionReview and its answer. Pure.

The checks are `matrixinfer.api.validation`, which the controllers and the command line ask, too. Whatever could keep a user
from cleaning up is let through: deletions, objects that are on their way out, status and scale, and faults that an object had
before and that the edit has not touched.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from controllers.webhooks.oddities import oddities
from matrixinfer.api import kinds, validation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matrixinfer.api.meta import Manifest

API_VERSION: Final = "admission.k8s.io/v1"
JUDGED: Final = (
    kinds.MODEL_SERVER,
    kinds.MODEL_ROUTE,
    kinds.ACCESS_POLICY,
    kinds.EXTERNAL_MODEL_PROVIDER,
    kinds.MODEL_INFER,
)

_INDEX: Final = re.compile(r"\[[0-9]+\]")
_LONGEST_WARNING: Final = 256  # what the API server passes on
_UNPROCESSABLE: Final = 422


class NotAReview(ValueError):
    """The body is no AdmissionReview of the version that is spoken here; the message says what to send."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered: every problem, or none; warnings are shown and nothing else."""

    problems: tuple[validation.Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def answer(body: object) -> tuple[Manifest, str]:
    """Give the AdmissionReview that answers this one, and the word for it in metrics. Raises NotAReview."""
    request = _request(body)
    verdict = judge(request)
    said: Manifest = {"uid": request["uid"], "allowed": not verdict.problems}
    if verdict.warnings:
        said["warnings"] = [_cut(warning) for warning in verdict.warnings]
    if verdict.problems:
        said["status"] = _refused(request, verdict.problems)
    outcome = "refused" if verdict.problems else "warned" if verdict.warnings else "allowed"
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": said}, outcome


def kind_of(body: Mapping[str, Any]) -> str:
    """Give the kind that a review is about, if it is one of ours."""
    named = _mapping(_mapping(body.get("request")).get("kind")).get("kind")
    return named if isinstance(named, str) and named in {kind.kind for kind in JUDGED} else "other"


def judge(request: Mapping[str, Any]) -> Verdict:
    """Decide on one request."""
    if request.get("operation") not in ("CREATE", "UPDATE") or request.get("subResource"):
        return Verdict()
    manifest = request.get("object")
    if not isinstance(manifest, dict):
        return Verdict((validation.Problem("", "must be a mapping with apiVersion, kind, metadata and spec"),))
    if _mapping(manifest.get("metadata")).get("deletionTimestamp"):
        return Verdict()  # finalizers have to go, whatever the rest looks like
    if validation.kind_of(manifest) not in JUDGED:
        named = f"{manifest.get('kind')} of {manifest.get('apiVersion')}"
        return Verdict(warnings=(f"MatrixInfer's webhook has no opinion on {named}: leave it out of the rules",))
    old = request.get("oldObject")
    if request["operation"] == "UPDATE" and isinstance(old, dict):
        return _change(old, manifest)
    problems = _errors(validation.validate(manifest))
    return Verdict(problems, () if problems else tuple(oddities(manifest)))


def _change(old: Manifest, new: Manifest) -> Verdict:
    """Refuse what an edit brings; what was wrong before is said, and stays the owner's to mend."""
    before = Counter(map(_fault, _errors(validation.validate(old))))
    brought: list[validation.Problem] = []
    stale: list[str] = []
    for problem in _errors(validation.validate_update(old, new)):
        if before[_fault(problem)] > 0:
            before[_fault(problem)] -= 1
            stale.append(f"was wrong before and still is: {problem}")
        else:
            brought.append(problem)
    if brought:
        return Verdict(tuple(brought), tuple(stale))
    return Verdict(warnings=tuple(stale) or tuple(oddities(new)))


def _fault(problem: validation.Problem) -> tuple[str, str]:
    """Tell faults apart; an item that was moved in its list has the fault that it had."""
    return _INDEX.sub("[]", problem.path), problem.message


def _errors(problems: Iterable[validation.Problem]) -> tuple[validation.Problem, ...]:
    return tuple(problem for problem in problems if problem.severity == "error")


def _refused(request: Mapping[str, Any], problems: tuple[validation.Problem, ...]) -> Manifest:
    kind, name = _mapping(request.get("kind")), request.get("name") or ""
    causes = [
        {"reason": "FieldValueInvalid", "field": problem.path, "message": problem.message} for problem in problems
    ]
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "Invalid",
        "code": _UNPROCESSABLE,
        "message": "; ".join(map(str, problems)),
        "details": {"name": name, "group": kind.get("group", ""), "kind": kind.get("kind", ""), "causes": causes},
    }


def _request(body: object) -> dict[str, Any]:
    if not isinstance(body, dict) or body.get("kind") != "AdmissionReview":
        raise NotAReview(f"the body must be an AdmissionReview of {API_VERSION}")
    if body.get("apiVersion") != API_VERSION:
        raise NotAReview(
            f"only {API_VERSION} is spoken here: write admissionReviewVersions: [v1] in the webhook configuration"
        )
    request = body.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not request["uid"]:
        raise NotAReview("the AdmissionReview must have a request with a uid")
    return request


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_WARNING else text[: _LONGEST_WARNING - 3] + "..."
