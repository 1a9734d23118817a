"""Reading a client's JSON with refusals that name the field: what both translations of requests stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from extproc import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Json = dict[str, Any]
_SHOWN: Final = 100
_decode: Final = msgspec.json.Decoder().decode
encode: Final = msgspec.json.Encoder().encode


def refusal(field: str, why: str) -> errors.BadRequest:
    """Make the answer that names a field which the provider cannot be told."""
    return errors.BadRequest(f"{field}: {why}", param=field)


def document(body: bytes) -> Json:
    """Decode a body that has been parsed before, so that it is an object."""
    decoded: Json = _decode(body)
    return decoded


def decoded(text: str | bytes) -> Any:
    """Decode JSON. Raises ValueError."""
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def objects(value: Any, field: str) -> list[Json]:
    """Return a list of objects."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise refusal(field, "expected an array of objects")
    return value


def an_object(value: Any, field: str) -> Json:
    """Return an object."""
    if not isinstance(value, dict):
        raise refusal(field, "expected an object")
    return value


def text(value: Any, field: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise refusal(field, "expected a string")
    return value


def copied(body: Mapping[str, Any], made: Json, keys: Mapping[str, str]) -> None:
    """Copy what is set, under the names of the other API."""
    for key, other in keys.items():
        if body.get(key) is not None:
            made[other] = body[key]


def known(body: Mapping[str, Any], keys: Iterable[str], api: str) -> None:
    """Refuse whatever is set beside `keys`: passing it over might change what is asked for."""
    allowed = frozenset(keys)
    for key, value in body.items():
        if key not in allowed and value is not None:
            raise refusal(key[:_SHOWN], f"cannot be translated for a provider of the {api} API: leave it out")
