"""Names of headless Services where there is no DNS: each stands for one address, that of the pod which the Service selects.

An address is a Service's from when it is first asked for, before its pod is there and after it has gone: who was told it once finds
whatever pod comes in that place. In commands, arguments and variables of pods the names are replaced where they are written as in
`NAME.NAMESPACE`, `NAME.NAMESPACE.svc` or `NAME.NAMESPACE.svc.cluster.local`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from matrixinfer.api.meta import Manifest
    from matrixinfer.local.addresses import Addresses

_HOST: Final = re.compile(
    r"(?<![A-Za-z0-9.-])([a-z][a-z0-9-]*)\.([a-z0-9-]+)(?:\.svc(?:\.cluster\.local\.?)?)?(?![A-Za-z0-9-]|\.[A-Za-z0-9])"
)
_HEADLESS: Final = "None"

Name = tuple[str, str]  # namespace, name


class Names:
    """Which addresses belong to names, and which pods have them now."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._of: dict[Name, str] = {}  # Service -> its address
        self._held: dict[Name, Name] = {}  # Service -> the pod that has the address

    def take(self, pod: Manifest, services: Iterable[Manifest]) -> str:
        """Give a pod its address: that of a Service which selects it and has no other pod, or any."""
        headless = [one for one in services if _is_headless(one)]
        self._forget({_name(one) for one in headless})
        for service in headless:
            name = _name(service)
            if name not in self._held and _selects(service, pod):
                self._held[name] = _name(pod)
                return self._address(name)
        return self._addresses.take()

    def give_back(self, address: str) -> None:
        """Take note that a pod has no use for its address any more; a Service keeps its own."""
        for service, own in self._of.items():
            if own == address:
                self._held.pop(service, None)
                return
        self._addresses.give_back(address)

    def resolved(self, pod: Manifest, services: Iterable[Manifest]) -> Manifest:
        """Give the pod with addresses in the place of names."""
        known = {_name(one) for one in services if _is_headless(one)}

        def address(match: re.Match[str]) -> str:
            name = match[2], match[1]
            return self._address(name) if name in known else match[0]

        def told(text: str) -> str:
            return _HOST.sub(address, text)

        spec = dict(pod["spec"])
        for member in ("initContainers", "containers"):
            if member in spec:
                spec[member] = [_rewritten(container, told) for container in spec[member] or ()]
        return pod | {"spec": spec}

    def _address(self, name: Name) -> str:
        if name not in self._of:
            self._of[name] = self._addresses.take()
        return self._of[name]

    def _forget(self, standing: set[Name]) -> None:
        for name in self._of.keys() - standing - self._held.keys():
            self._addresses.give_back(self._of.pop(name))


def _rewritten(container: Manifest, told: Callable[[str], str]) -> Manifest:
    made: dict[str, Any] = dict(container)
    for member in ("command", "args"):
        if member in made:
            made[member] = [told(word) if isinstance(word, str) else word for word in made[member] or ()]
    if "env" in made:
        made["env"] = [
            entry | {"value": told(entry["value"])} if isinstance(entry.get("value"), str) else entry
            for entry in made["env"] or ()
        ]
    return made


def _is_headless(service: Manifest) -> bool:
    spec = service.get("spec") or {}
    return spec.get("clusterIP") == _HEADLESS and bool(spec.get("selector"))


def _selects(service: Manifest, pod: Manifest) -> bool:
    if _name(service)[0] != _name(pod)[0]:
        return False
    labels: dict[str, str] = pod["metadata"].get("labels") or {}
    selector: dict[str, str] = service["spec"]["selector"]
    return selector.items() <= labels.items()


def _name(manifest: Manifest) -> Name:
    meta = manifest["metadata"]
    return meta.get("namespace") or "default", meta["name"]
