"""Certificates over years in an instant: at no moment does what is shown not lead to what is trusted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509 import verification
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.webhooks import certificates
from controllers.webhooks.certificates import Pair, Terms, Unreadable, next_due, renewed

START = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = Terms()
NAMES = ["webhooks.system.svc", "127.0.0.1"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def holds(chest, trusted, now, names=NAMES):
    """Tell whether an API server that trusts this bundle takes what is shown."""
    store = verification.Store(x509.load_pem_x509_certificates(trusted))
    verifier = verification.PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(names[0]))
    try:
        verifier.verify(chest.serving.certificate, [])
    except verification.VerificationError:
        return False
    return certificates.fits(chest.serving.certificate, names)


def test_what_is_shown_is_for_the_names_and_leads_to_what_is_trusted():
    chest = renewed(None, NAMES, START, TERMS)

    assert holds(chest, chest.bundle, START)
    assert holds(chest, chest.bundle, START - HOUR / 2)
    assert not holds(chest, chest.bundle, START + TERMS.certificate + HOUR)
    assert not holds(renewed(None, NAMES, START, TERMS), chest.bundle, START)


def test_nothing_is_renewed_before_its_time_and_asking_then_is_worth_it():
    chest = renewed(None, NAMES, START, TERMS)
    due = next_due(chest, START + 2 * HOUR, TERMS)

    assert renewed(chest, NAMES, START + 59 * DAY, TERMS) is chest
    assert 59 * DAY < due - START < 61 * DAY
    again = renewed(chest, NAMES, due, TERMS)
    assert again.authority is chest.authority
    assert again.serving.certificate.not_valid_after_utc == due + TERMS.certificate


def test_another_name_takes_another_certificate_of_the_same_authority():
    chest = renewed(None, NAMES, START, TERMS)
    again = renewed(chest, [*NAMES, "localhost"], START, TERMS)

    assert again.authority is chest.authority
    assert holds(again, chest.bundle, START, [*NAMES, "localhost"])


def test_a_new_authority_is_trusted_before_it_signs():
    chest = renewed(None, NAMES, START, TERMS)
    due = START + timedelta(days=731)
    chest = renewed(chest, NAMES, due - 10 * DAY, TERMS)
    both = renewed(chest, NAMES, due, TERMS, told=True)
    untold = renewed(both, NAMES, due + 2 * HOUR, TERMS, told=False)
    early = renewed(both, NAMES, due + HOUR / 2, TERMS)
    signs = renewed(both, NAMES, due + HOUR, TERMS)

    assert len(both.trusted) == 2
    assert both.serving is chest.serving
    assert untold is both
    assert early is both
    assert signs.serving is not chest.serving
    assert holds(signs, both.bundle, due + HOUR)


def test_an_authority_that_is_known_signs_once_more_when_both_are_due():
    chest = renewed(None, NAMES, START, TERMS)
    later = START + timedelta(days=731)
    both = renewed(chest, NAMES, later, TERMS)

    assert both.authority is not chest.authority
    assert holds(both, chest.bundle, later)
    signs = renewed(both, NAMES, later + HOUR, TERMS)
    assert not holds(signs, chest.bundle, later + HOUR)
    assert holds(signs, both.bundle, later + HOUR)


def test_everything_is_made_anew_after_years_of_sleep():
    chest = renewed(None, NAMES, START, TERMS)
    later = START + timedelta(days=4 * 365)
    again = renewed(chest, NAMES, later, TERMS)

    assert holds(again, again.bundle, later)
    assert len(again.trusted) == 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 24 * 120), st.booleans()), min_size=1, max_size=25))
def test_at_no_moment_is_something_shown_that_was_not_trusted_before(steps):
    now, chest = START, renewed(None, NAMES, START, TERMS)
    spread = chest.bundle
    for hours, told in steps:
        now += hours * HOUR
        before = spread
        known = chest.authority.certificate_pem in spread
        chest = renewed(chest, NAMES, now, TERMS, told=known)
        expired = not x509.load_pem_x509_certificates(before)[0].not_valid_after_utc > now
        assert holds(chest, chest.bundle, now)
        assert holds(chest, before, now) or expired or not known
        spread = chest.bundle if told else spread


def test_a_chain_of_renewals_ends_in_rest():
    now, chest = START, renewed(None, NAMES, START, TERMS)
    renewals = 0
    while now < START + timedelta(days=3650):
        due = next_due(chest, now, TERMS)
        assert due > now
        now, renewals = due, renewals + 1
        chest = renewed(chest, NAMES, now, TERMS)
        assert renewed(chest, NAMES, now, TERMS) is chest
        assert holds(chest, chest.bundle, now)

    assert renewals < 120


def test_what_is_written_is_read_back():
    chest = renewed(None, NAMES, START, TERMS)

    assert Pair.read(chest.serving.certificate_pem, chest.serving.key_pem).certificate == chest.serving.certificate
    assert certificates.read_all(chest.bundle) == chest.trusted


@pytest.mark.parametrize("garbage", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_garbage_is_named(garbage):
    chest = renewed(None, NAMES, START, TERMS)

    with pytest.raises(Unreadable):
        certificates.read_all(garbage)
    with pytest.raises(Unreadable):
        Pair.read(garbage, chest.serving.key_pem)
    with pytest.raises(Unreadable):
        Pair.read(chest.serving.certificate_pem, garbage)
    with pytest.raises(Unreadable, match="not the certificate's"):
        Pair.read(chest.serving.certificate_pem, chest.authority.key_pem)
