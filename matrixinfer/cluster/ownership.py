"""Server-side apply: who owns which field, what a merge gives, and which fields fall away. Pure.

A field is a path of elements as `managedFields` writes them: `f:NAME` for a member of an object, `k:{KEYS}` for an item of a
list that is keyed, `v:VALUE` for a member of a set. Lists are one value (atomic) unless named in `LIST_KEYS` or `SETS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from matrixinfer.cluster.protocol import Conflict, Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from matrixinfer.cluster.protocol import Manifest

Path = tuple[str, ...]
Names = tuple[str, str]  # the last two member names on the way to a value: what a list is known by

_CONTAINER_LISTS: Final = ("containers", "initContainers", "ephemeralContainers")
# Keys of the lists that Kubernetes merges by item, by the member that holds the list and the one above it.
LIST_KEYS: Final[Mapping[Names, tuple[str, ...]]] = {
    **{("spec", name): ("name",) for name in _CONTAINER_LISTS},
    **{(name, "env"): ("name",) for name in _CONTAINER_LISTS},
    **{(name, "ports"): ("containerPort", "protocol") for name in _CONTAINER_LISTS},
    **{(name, "volumeMounts"): ("mountPath",) for name in _CONTAINER_LISTS},
    **{(name, "volumeDevices"): ("devicePath",) for name in _CONTAINER_LISTS},
    ("spec", "volumes"): ("name",),
    ("spec", "imagePullSecrets"): ("name",),
    ("spec", "hostAliases"): ("ip",),
    ("spec", "topologySpreadConstraints"): ("topologyKey", "whenUnsatisfiable"),
    ("spec", "ports"): ("port", "protocol"),
    ("status", "conditions"): ("type",),
    ("status", "podIPs"): ("ip",),
    ("metadata", "ownerReferences"): ("uid",),
}
SETS: Final = frozenset({("metadata", "finalizers")})
# Of those, the lists whose items have one owner as a whole, in the kinds that are ours: so their CRDs say.
OUR_WHOLE_ITEMS: Final = frozenset({("status", "conditions")})
_KEY_DEFAULTS: Final = {"protocol": "TCP"}
# Nobody owns what identifies the object or what the API server itself writes.
_UNOWNED: Final = frozenset({"apiVersion", "kind"})
_UNOWNED_METADATA: Final = frozenset(
    {
        "name",
        "namespace",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)
_ITEM: Final = b"item"  # stands for the existence of a list's item in flattened objects


@dataclass(frozen=True, slots=True)
class Claim:
    """The fields that one manager owns through one way of writing."""

    manager: str
    operation: str  # Apply or Update
    subresource: str  # "", status or scale
    fields: frozenset[Path]
    time: str

    def is_of(self, writer: Writer) -> bool:
        """Return whether this is the writer's own claim."""
        return (self.manager, self.operation, self.subresource) == (
            writer.manager,
            writer.operation,
            writer.subresource,
        )


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, how, and when."""

    manager: str
    operation: str
    subresource: str
    time: str


Claims = tuple[Claim, ...]


def canonical(value: Any) -> bytes:
    """JSON with sorted keys: equal if and only if the values are (True is not 1)."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def flatten(manifest: Manifest, whole: AbstractSet[Names] = frozenset()) -> dict[Path, bytes]:
    """Every field that can be owned, with its value; of the lists in `whole`, each item is one value."""
    found: dict[Path, bytes] = {}
    for name, value in manifest.items():
        if name in _UNOWNED:
            continue
        if name == "metadata":
            for member, inner in value.items():
                if member not in _UNOWNED_METADATA:
                    _flatten(inner, ("f:metadata", f"f:{member}"), ("metadata", member), found, whole)
        else:
            _flatten(value, (f"f:{name}",), ("", name), found, whole)
    return found


def _flatten(value: Any, at: Path, names: Names, found: dict[Path, bytes], whole: AbstractSet[Names]) -> None:
    if isinstance(value, dict) and value:
        for member, inner in value.items():
            _flatten(inner, (*at, f"f:{member}"), (names[1], member), found, whole)
    elif isinstance(value, list) and value and names in LIST_KEYS:
        for element, item in _items(value, at, names):
            if (*at, element) in found:
                raise Invalid(f"{pretty((*at, element))}: Duplicate value: each item's key must be its own")
            if names in whole:
                found[(*at, element)] = canonical(item)
                continue
            found[(*at, element)] = _ITEM
            for member, inner in item.items():
                _flatten(inner, (*at, element, f"f:{member}"), (names[1], member), found, whole)
    elif isinstance(value, list) and value and names in SETS:
        for member in value:
            found[(*at, _member(member))] = _ITEM
    else:
        found[at] = canonical(value)


def _items(items: list[Any], at: Path, names: Names) -> Iterator[tuple[str, Manifest]]:
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise Invalid(f"{pretty(at)}[{number}]: must be an object")
        yield _element(item, f"{pretty(at)}[{number}]", LIST_KEYS[names]), item


def _element(item: Manifest, where: str, keys: Sequence[str]) -> str:
    values = {key: item.get(key, _KEY_DEFAULTS.get(key)) for key in keys}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise Invalid(f"{where}.{missing[0]}: Required value: it tells the items of this list apart")
    return "k:" + canonical(values).decode()


def _member(value: Any) -> str:
    return "v:" + canonical(value).decode()


def merge(live: Any, applied: Any, whole: AbstractSet[Names] = frozenset(), names: Names = ("", "")) -> Any:
    """Lay what is applied over what stands; neither argument is changed, parts of both are shared."""
    if isinstance(live, dict) and isinstance(applied, dict):
        return live | {
            member: merge(live[member], inner, whole, (names[1], member)) if member in live else inner
            for member, inner in applied.items()
        }
    if isinstance(live, list) and isinstance(applied, list):
        if names in LIST_KEYS:
            return _merge_items(dict(_items(live, (), names)), dict(_items(applied, (), names)), whole, names)
        if names in SETS:
            return live + [member for member in applied if member not in live]
    return applied


def _merge_items(live: Manifest, applied: Manifest, whole: AbstractSet[Names], names: Names) -> list[Any]:
    """Give the items in the order in which they are applied; those that only stand keep their place before the next shared one."""
    merged = []
    standing = iter(live.items())
    passed: set[str] = set()
    for element, item in applied.items():
        if element in live and element not in passed:
            for other, stood in standing:
                passed.add(other)
                if other == element:
                    break
                if other not in applied:
                    merged.append(stood)
        merged.append(merge(live[element], item, whole, names) if element in live and names not in whole else item)
    return merged + [stood for other, stood in standing if other not in applied]


def after_update(claims: Claims, old: Mapping[Path, bytes], new: Mapping[Path, bytes], writer: Writer) -> Claims:
    """Ownership after a write that is no apply: what it changed is the writer's alone."""
    changed = frozenset(path for path, value in new.items() if old.get(path) != value)
    return _settle(claims, writer, mine=changed, taken=changed, kept=new, add=True)


def conflicts(
    claims: Claims, live: Mapping[Path, bytes], applied: Mapping[Path, bytes], writer: Writer
) -> list[tuple[Claim, list[Path]]]:
    """Return the claims of others on fields that the apply would change."""
    changed = _changed(live, applied)
    return [
        (claim, sorted(claim.fields & changed))
        for claim in claims
        if not claim.is_of(writer) and not claim.fields.isdisjoint(changed)
    ]


def _changed(live: Mapping[Path, bytes], applied: Mapping[Path, bytes]) -> set[Path]:
    """Fields of `live` that would not be what they are; an empty object or list leaves what others have put in it."""
    around, wanted_around = _containers(live), _containers(applied)
    replaced = {path for path, value in applied.items() if live.get(path) != value and around.get(path) != value}
    replaced |= {path for path, value in wanted_around.items() if live.get(path, value) not in (value, _ITEM)}
    emptied = replaced & around.keys()
    if emptied:
        replaced |= {path for path in live if any(path[:depth] in emptied for depth in range(1, len(path)))}
    return replaced


def _containers(fields: Iterable[Path]) -> dict[Path, bytes]:
    """Everything that has fields in it, as it would look without them."""
    return {
        path[:depth]: b"{}" if path[depth].startswith("f:") else b"[]"
        for path in fields
        for depth in range(1, len(path))
    }


def conflict(found: Sequence[tuple[Claim, list[Path]]]) -> Conflict:
    """Say the conflicts as the API server does."""
    count = sum(len(paths) for _, paths in found)
    if count == 1:
        claim, paths = found[0]
        return Conflict(f"Apply failed with 1 conflict: conflict with {_author(claim)}: {pretty(paths[0])}")
    lines = [
        f"conflicts with {_author(claim)}:\n" + "\n".join(f"- {pretty(path)}" for path in paths)
        for claim, paths in found
    ]
    return Conflict(f"Apply failed with {count} conflicts: " + "\n".join(lines))


def _author(claim: Claim) -> str:
    through = f' with subresource "{claim.subresource}"' if claim.subresource else ""
    return f'"{claim.manager}"{through}'


def _with_parents(paths: Iterable[Path]) -> set[Path]:
    return {path[:depth] for path in paths for depth in range(1, len(path) + 1)}


def prune(manifest: Manifest, claims: Claims, applied: Mapping[Path, bytes], writer: Writer) -> None:
    """Take out, in place, what the writer owned, no longer names, and nobody else holds."""
    before = next((claim.fields for claim in claims if claim.is_of(writer)), frozenset())
    named = [path for claim in claims if not claim.is_of(writer) for path in claim.fields]
    held = _with_parents((*named, *applied))
    for path in sorted(before - held, key=lambda path: (len(path), path)):  # whole items before what is in them
        _remove(manifest, path, held)


def _remove(manifest: Manifest, path: Path, held: AbstractSet[Path]) -> None:
    """Take one field out, and what is around it as far as this empties it and nobody holds it.

    The keys of a list's item stay as long as the item does.
    """
    if len(path) > 1 and path[-2].startswith("k:") and path[-1][2:] in orjson.loads(path[-2][2:]):
        return
    trail: list[tuple[Any, Any]] = []
    value: Any = manifest
    names: Names = ("", "")
    for element in path:
        place = _place(value, element, names)
        if place is None:
            return
        trail.append((value, place))
        value = value[place]
        if element.startswith("f:"):
            names = (names[1], element[2:])
    for depth, (container, place) in reversed(list(enumerate(trail))):
        del container[place]
        if container or path[:depth] in held:
            break


def _place(value: Any, element: str, names: Names) -> str | int | None:
    if element.startswith("f:"):
        return element[2:] if isinstance(value, dict) and element[2:] in value else None
    if not isinstance(value, list):
        return None
    if element.startswith("k:"):
        elements = [found for found, _ in _items(value, (), names)]
    else:
        elements = [_member(member) for member in value]
    return elements.index(element) if element in elements else None


def after_apply(
    claims: Claims,
    writer: Writer,
    *,
    applied: Mapping[Path, bytes],
    kept: Mapping[Path, bytes],
    forced: Sequence[tuple[Claim, list[Path]]],
) -> Claims:
    """Ownership after an apply: the writer owns what it named; others keep what they agree on, not what was forced."""
    taken = frozenset(path for _, paths in forced for path in paths)
    return _settle(claims, writer, mine=frozenset(applied), taken=taken, kept=kept, add=False)


def _settle(  # noqa: PLR0913 - one rule for both ways of writing
    claims: Claims,
    writer: Writer,
    *,
    mine: frozenset[Path],
    taken: frozenset[Path],
    kept: Mapping[Path, bytes],
    add: bool,
) -> Claims:
    standing = _with_parents(kept)
    settled = []
    own = mine
    since = writer.time
    for claim in claims:
        if claim.is_of(writer):
            own = claim.fields & standing | mine if add else mine
            since = claim.time if own == claim.fields else writer.time
            continue
        fields = claim.fields & standing - taken
        if fields:
            settled.append(claim if fields == claim.fields else replace(claim, fields=fields))
    if own:
        settled.append(Claim(writer.manager, writer.operation, writer.subresource, own, since))
    return tuple(sorted(settled, key=lambda claim: (claim.manager, claim.operation, claim.subresource)))


def managed_fields(claims: Claims, api_version: str) -> list[Manifest]:
    """`metadata.managedFields` that says the claims."""
    entries = []
    for claim in claims:
        entry: Manifest = {
            "manager": claim.manager,
            "operation": claim.operation,
            "apiVersion": api_version,
            "time": claim.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": _nest(claim.fields),
        }
        if claim.subresource:
            entry["subresource"] = claim.subresource
        entries.append(entry)
    return entries


def _nest(paths: frozenset[Path]) -> Manifest:
    tree: Manifest = {}
    for path in sorted(paths):
        at = tree
        for element in path:
            at = at.setdefault(element, {})
    for path in paths:
        at = tree
        for element in path:
            at = at[element]
        if at or path[-1].startswith("k:"):
            at["."] = {}  # owned itself, not only what is in it
    return tree


def pretty(path: Path) -> str:
    """Write the path for people: `.spec.containers[name="engine"].image`."""
    words = []
    for element in path:
        kind, text = element[:2], element[2:]
        if kind == "f:":
            words.append(f".{text}")
        elif kind == "k:":
            words.append("[" + ",".join(f"{key}={_quoted(value)}" for key, value in orjson.loads(text).items()) + "]")
        else:
            words.append(f"[={text}]")
    return "".join(words)


def _quoted(value: Any) -> str:
    return canonical(value).decode()
