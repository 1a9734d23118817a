"""Grants as conditions: Envoy's principals and permissions for `rbac`, and the same as a table for `envoy/listing.lua`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.rbac.v3 import (
    Permission,
    PermissionSet,
    Principal,
    PrincipalSet,
    SourcedMetadata,
)
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.type.matcher.v3 import (
    ListMatcher,
    MetadataMatcher,
    MetadataMatcherPathSegment,
    OrMatcher,
    PathMatcher,
    StringMatcher,
    ValueMatcher,
)
from envoy_data_plane.google.protobuf import Struct

from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controllers import ir

JWT_METADATA: Final = "envoy.filters.http.jwt_authn"

ANYTHING: Final = Permission(any=True)
ANYBODY: Final = Principal(any=True)


def _metadata(namespace: str, path: Iterable[str], value: ValueMatcher) -> Principal:
    return Principal(
        sourced_metadata=SourcedMetadata(
            metadata_matcher=MetadataMatcher(
                filter=namespace, path=[MetadataMatcherPathSegment(key=key) for key in path], value=value
            ),
        )
    )


def _either(principals: Iterable[Principal]) -> Principal:
    return Principal(or_ids=PrincipalSet(ids=list(principals)))


def _both(principals: Iterable[Principal]) -> Principal:
    return Principal(and_ids=PrincipalSet(ids=list(principals)))


def _path(path: str) -> Permission:
    return Permission(url_path=PathMatcher(path=StringMatcher(exact=path)))


def _but(permission: Permission) -> Permission:
    return Permission(not_rule=permission)


_KNOWN: Final = _metadata(dataplane.ACCESS_METADATA, (dataplane.TENANT,), ValueMatcher(present_match=True))
_CERTIFIED: Final = _metadata(dataplane.ACCESS_METADATA, (dataplane.CERTIFICATE,), ValueMatcher(present_match=True))
UNKNOWN: Final = Principal(not_id=_KNOWN)
SERVED: Final = _but(Permission(or_rules=PermissionSet(rules=[_path(path) for path in dataplane.HEALTH_PATHS])))
_NAMED: Final = Permission(header=HeaderMatcher(name=dataplane.MODEL, present_match=True))
_GET: Final = Permission(header=HeaderMatcher(name=":method", string_match=StringMatcher(exact="GET")))
NO_MODEL: Final = Permission(and_rules=PermissionSet(rules=[_but(_NAMED), _but(_GET), SERVED]))


def not_listing(path: str) -> Permission:
    """Hold for all requests but those for the list of models and for health."""
    listed = Permission(
        and_rules=PermissionSet(rules=[_GET, Permission(url_path=PathMatcher(path=StringMatcher(prefix=path)))])
    )
    return Permission(and_rules=PermissionSet(rules=[SERVED, _but(listed)]))


def model_in(names: Iterable[str]) -> Permission:
    """Hold for requests for one of these models."""
    return Permission(
        or_rules=PermissionSet(
            rules=[
                Permission(header=HeaderMatcher(name=dataplane.MODEL, string_match=StringMatcher(exact=name)))
                for name in names
            ]
        )
    )


def model_not_in(names: list[str]) -> Permission:
    """Hold for requests for any other model."""
    others = [_but(model_in(names))] if names else []
    return Permission(and_rules=PermissionSet(rules=[_NAMED, *others]))


def none_of(grants: tuple[ir.Grant, ...]) -> Principal:
    """Hold for callers to whom none of the grants is made."""
    return Principal(not_id=_either(_granted(one) for one in grants)) if grants else ANYBODY


def _granted(grant: ir.Grant) -> Principal:
    ways = [_token(issuer, audiences, grant) for issuer, audiences in grant.issuers]
    if grant.keys and not grant.claims:
        mine = StringMatcher(contains=f",{grant.policy},")
        ways.append(_metadata(dataplane.ACCESS_METADATA, (dataplane.CLIENT,), ValueMatcher(string_match=mine)))
    if grant.certificates and not grant.claims:
        ways.append(_CERTIFIED)
    conditions = [_KNOWN, _either(ways) if ways else Principal(not_id=ANYBODY)]
    if grant.tenants:
        conditions.append(
            _either(
                _metadata(
                    dataplane.ACCESS_METADATA,
                    (dataplane.TENANT,),
                    ValueMatcher(string_match=StringMatcher(exact=tenant)),
                )
                for tenant in grant.tenants
            )
        )
    return _both(conditions)


def _token(issuer: str, audiences: tuple[str, ...], grant: ir.Grant) -> Principal:
    # A token without a tenant beside a certificate that has one: the tenant is not the token's.
    conditions = [_claim(issuer, ("iss",), (issuer,)), Principal(not_id=_CERTIFIED)]
    if audiences:
        conditions.append(_claim(issuer, ("aud",), audiences))
    conditions += [_claim(issuer, tuple(path.split(".")), values) for path, values in grant.claims]
    return _both(conditions)


def _claim(issuer: str, path: tuple[str, ...], values: tuple[str, ...]) -> Principal:
    """Hold if the claim is one of the values, or a list that has one of them."""
    texts = [ValueMatcher(string_match=StringMatcher(exact=value)) for value in values]
    lists = [ValueMatcher(list_match=ListMatcher(one_of=text)) for text in texts]
    return _metadata(JWT_METADATA, (issuer, *path), ValueMatcher(or_match=OrMatcher(value_matchers=[*texts, *lists])))


def table(access: ir.Access) -> Struct:
    """Write the names by who may use them, for the filter that says which are listed."""
    groups: dict[ir.Grants, list[str]] = {}
    for name, grants in access.models:
        groups.setdefault(grants, []).append(name)
    rows = [
        {"models": names, "open": grants is None, "grants": [_row(one) for one in grants or ()]}
        for grants, names in groups.items()
    ]
    written: Struct = Struct.from_dict({"groups": rows})
    return written


def _row(grant: ir.Grant) -> dict[str, object]:
    return {
        "policy": grant.policy,
        "keys": grant.keys,
        "certificates": grant.certificates,
        "tenants": list(grant.tenants),
        "issuers": [{"issuer": issuer, "audiences": list(audiences)} for issuer, audiences in grant.issuers],
        "claims": [{"path": path.split("."), "values": list(values)} for path, values in grant.claims],
    }
