"""A container's environment and command line, with the downward API and `$(NAME)`, by Kubernetes' rules. Pure.

There is no image that brings an environment: a process starts with the supervisor's own (so that `HF_TOKEN`, `PATH`,
`CUDA_VISIBLE_DEVICES` and the like hold), then what the node adds, then what the Pod says.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matrixinfer.api import core
    from matrixinfer.api.meta import Manifest

NODE_NAME = "local"
_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class BadEnvironment(Exception):
    """A variable cannot be set as the Pod says; the message says what to change."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)`; a name that is not defined stays as it is written, `$$` is one dollar sign."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else variables.get(name, match.group(0))

    return _REFERENCE.sub(value, text)


def command_line(words: Sequence[str], variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words with their references replaced."""
    return tuple(expand(word, variables) for word in words)


def references(container: core.Container) -> Iterator[tuple[str, str]]:
    """Kind and name of the ConfigMaps and Secrets that `build` needs."""
    for entry in container.env:
        if entry.value_from and entry.value_from.config_map_key_ref:
            yield "ConfigMap", entry.value_from.config_map_key_ref.name
        if entry.value_from and entry.value_from.secret_key_ref:
            yield "Secret", entry.value_from.secret_key_ref.name


def keys(manifest: Manifest) -> dict[str, str]:
    """Return the keys of a ConfigMap or Secret."""
    plain = {key: str(value) for key, value in (manifest.get("data") or {}).items()}
    if manifest.get("kind") == "Secret":
        plain = {key: base64.b64decode(value).decode(errors="replace") for key, value in plain.items()}
        plain |= {key: str(value) for key, value in (manifest.get("stringData") or {}).items()}
    return plain


def build(
    pod: core.Pod,
    container: core.Container,
    *,
    address: str,
    initial: Mapping[str, str],
    sources: Mapping[tuple[str, str], Mapping[str, str]],
) -> dict[str, str]:
    """Environment of the container; each entry sees those before it. Raises BadEnvironment.

    `sources` holds the keys of each of `references` that exists.
    """
    variables = dict(initial) | {"POD_IP": address, "HOSTNAME": pod.metadata.name}
    for entry in container.env:
        source = entry.value_from
        if source is None:
            variables[entry.name] = expand(entry.value, variables)
        elif source.field_ref is not None:
            variables[entry.name] = field(pod, source.field_ref.field_path, address)
        else:
            kind, ref = (
                ("ConfigMap", source.config_map_key_ref)
                if source.config_map_key_ref
                else ("Secret", source.secret_key_ref)
            )
            if ref is None:
                raise BadEnvironment(
                    f"env {entry.name}: valueFrom takes fieldRef, configMapKeyRef or secretKeyRef here"
                )
            value = sources.get((kind, ref.name), {}).get(ref.key)
            if value is not None:
                variables[entry.name] = value
            elif not ref.optional:
                raise BadEnvironment(f"env {entry.name}: there is no {kind} {ref.name} with a key {ref.key!r}")
    return variables


def field(pod: core.Pod, path: str, address: str) -> str:
    """Value of a field of the Pod, as the downward API gives it. Raises BadEnvironment for a field it does not give."""
    meta = pod.metadata
    plain = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "spec.nodeName": NODE_NAME,
        "spec.serviceAccountName": "default",
        "status.podIP": address,
        "status.podIPs": address,
        "status.hostIP": "127.0.0.1",
        "status.hostIPs": "127.0.0.1",
    }
    if path in plain:
        return plain[path]
    keyed = _KEYED.fullmatch(path)
    if keyed is None:
        known = ", ".join(plain)
        raise BadEnvironment(
            f"fieldPath {path!r} is not one of {known}, metadata.labels['key'], metadata.annotations['key']"
        )
    values = meta.labels if keyed.group(1) == "labels" else meta.annotations
    return values.get(keyed.group(2), "")
