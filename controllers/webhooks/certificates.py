"""Certificates of the webhooks: an authority of our own, what it signs, and when each has to be made anew.

Times are arguments; only keys are drawn here. The authority is renewed long before its end and then trusted beside the one
before it, which goes on signing until every API server has had time to learn of the new one: no handshake fails on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COMMON_NAME: Final = 64  # characters that one may have
_BAD: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound)


class Unreadable(ValueError):
    """A key or certificate that cannot be used; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Terms:
    """For how long things hold. A certificate is renewed when two thirds of its life are over."""

    authority: timedelta = timedelta(days=3 * 365)
    certificate: timedelta = timedelta(days=90)
    settle: timedelta = timedelta(hours=1)  # from a new authority until it signs: API servers learn of it by watching
    backdated: timedelta = timedelta(hours=1)  # clocks of API servers may be behind

    def due(self, certificate: x509.Certificate) -> datetime:
        """Say when to renew it."""
        start = certificate.not_valid_before_utc
        return start + (certificate.not_valid_after_utc - start) * 2 / 3


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Self:
        """Parse PEM. Raises Unreadable."""
        try:
            parsed = serialization.load_pem_private_key(key, None)
            first = x509.load_pem_x509_certificate(certificate)
        except _BAD as error:
            raise Unreadable(f"is no certificate with its key in PEM: {error}") from None
        if not isinstance(parsed, ec.EllipticCurvePrivateKey):
            raise Unreadable("the key is not one of an elliptic curve")
        if parsed.public_key() != first.public_key():
            raise Unreadable("the key is not the certificate's")
        return cls(first, parsed)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as text."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as text."""
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@dataclass(frozen=True, slots=True)
class Chest:
    """What is kept: the newest authority, all that are to be trusted (newest first), and what servers show."""

    authority: Pair
    trusted: tuple[x509.Certificate, ...]
    serving: Pair

    @property
    def bundle(self) -> bytes:
        """What API servers have to trust."""
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in self.trusted)


def renewed(chest: Chest | None, names: Sequence[str], now: datetime, terms: Terms, *, told: bool = True) -> Chest:
    """Give what is to be kept from now on; the same chest if nothing is due.

    `told` says whether API servers have been given the newest authority: until they have, and some time longer, what servers
    show stays signed by the one before.
    """
    if chest is None or chest.authority.certificate.not_valid_after_utc <= now:
        authority = new_authority(now, terms)
        return Chest(authority, (authority.certificate,), new_certificate(authority, names, now, terms))
    authority = chest.authority
    trusted = tuple(one for one in chest.trusted if one.not_valid_after_utc > now)
    if now >= terms.due(authority.certificate):
        authority = new_authority(now, terms)
        trusted = (authority.certificate, *trusted)
        told = False
    shown = chest.serving.certificate
    usable = shown.not_valid_after_utc > now and fits(shown, names) and any(_signed(shown, one) for one in trusted)
    if _signed(shown, authority.certificate):
        stands = usable and now < terms.due(shown)
    else:
        stands = usable and (not told or now < settled_at(authority.certificate, terms))
    # Whoever has slept needs both at once: the authority that is known signs once more, while its key is at hand.
    serving = chest.serving if stands else new_certificate(chest.authority, names, now, terms)
    same = authority is chest.authority and serving is chest.serving and trusted == chest.trusted
    return chest if same else Chest(authority, trusted, serving)


def next_due(chest: Chest, now: datetime, terms: Terms) -> datetime:
    """Say when to ask `renewed` again; later than now."""
    authority, serving = chest.authority.certificate, chest.serving.certificate
    ends = (one.not_valid_after_utc for one in (*chest.trusted, serving))
    moments = (terms.due(authority), terms.due(serving), settled_at(authority, terms), *ends)
    return min((moment for moment in moments if moment > now), default=now + terms.settle)


def settled_at(authority: x509.Certificate, terms: Terms) -> datetime:
    """Say when an authority that followed another signs."""
    return authority.not_valid_before_utc + terms.backdated + terms.settle


def new_authority(now: datetime, terms: Terms) -> Pair:
    """Make an authority that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"matrixinfer-webhooks {now:%Y-%m-%dT%H:%M:%SZ}")])
    builder = (
        _dated(name, name, now, terms.authority, terms)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _issued(builder, key, key)


def new_certificate(authority: Pair, names: Sequence[str], now: datetime, terms: Terms) -> Pair:
    """Make a server's certificate for these names and addresses; it does not outlive its authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    first = names[0] if len(names[0]) <= _COMMON_NAME else "matrixinfer-webhooks"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, first)])
    lasts = min(terms.certificate, authority.certificate.not_valid_after_utc - now)
    builder = (
        _dated(subject, authority.certificate.subject, now, lasts, terms)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    )
    return _issued(builder, key, authority.key)


def fits(certificate: x509.Certificate, names: Iterable[str]) -> bool:
    """Tell whether the certificate is for all of these names and addresses."""
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    known = {*said.get_values_for_type(x509.DNSName), *map(str, said.get_values_for_type(x509.IPAddress))}
    return known.issuperset(names)


def read_all(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Parse the certificates of a bundle. Raises Unreadable."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except _BAD as error:
        raise Unreadable(f"is no list of certificates in PEM: {error}") from None


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _dated(
    subject: x509.Name, issuer: x509.Name, now: datetime, lasts: timedelta, terms: Terms
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - terms.backdated)
        .not_valid_after(now + lasts)
    )


def _issued(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
) -> Pair:
    identified = (
        builder.public_key(key.public_key())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return Pair(identified.sign(signer, hashes.SHA256()), key)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
