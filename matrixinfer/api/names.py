"""How Kubernetes spells names: DNS labels and subdomains, label keys and values.

Each check returns what is wrong and how to write it instead, or "" if all is well.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

# The checks below once more, for the API server's schemas.
LABEL_KEY_PATTERN: Final = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$"
LABEL_VALUE_PATTERN: Final = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_LENGTH: Final = 63
_SUBDOMAIN_LENGTH: Final = 253


def dns_label(text: str) -> str:
    """Check a DNS-1123 label: namespaces, containers."""
    if len(text) <= _LABEL_LENGTH and _DNS_LABEL.fullmatch(text):
        return ""
    return "must be a DNS label: 1 to 63 lower case letters, digits and '-', with a letter or digit at both ends"


def dns_1035_label(text: str) -> str:
    """Check a DNS-1035 label: Services."""
    if not dns_label(text) and text[0].isalpha():
        return ""
    return (
        "must be a DNS label that starts with a letter: 1 to 63 lower case letters, digits and '-', not ending in '-'"
    )


def dns_subdomain(text: str) -> str:
    """Check a DNS-1123 subdomain: names of most objects."""
    if len(text) <= _SUBDOMAIN_LENGTH and all(_DNS_LABEL.fullmatch(part) for part in text.split(".")):
        return ""
    return (
        "must be a DNS name: 1 to 253 lower case letters, digits, '-' and '.', with a letter or digit at both ends and "
        "around every '.'"
    )


def label_key(text: str) -> str:
    """Check the key of a label or annotation: `name`, or `prefix/name` with a DNS name as prefix."""
    prefix, slash, name = text.rpartition("/")
    if slash and dns_subdomain(prefix):
        return "has a prefix before '/' that is not a DNS name: write it as in example.com/name"
    if len(name) <= _LABEL_LENGTH and _QUALIFIED.fullmatch(name):
        return ""
    return (
        "is not a label key: write 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, "
        "after an optional prefix as in example.com/name"
    )


def label_value(text: str) -> str:
    """Check the value of a label."""
    if not text or (len(text) <= _LABEL_LENGTH and _QUALIFIED.fullmatch(text)):
        return ""
    return (
        "is not a label value: write at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
    )


def _checked_key(text: str) -> str:
    problem = label_key(text)
    if problem:
        raise PydanticCustomError("label_key", "{problem}", {"problem": problem})
    return text


def _checked_value(text: str) -> str:
    problem = label_value(text)
    if problem:
        raise PydanticCustomError("label_value", "{problem}", {"problem": problem})
    return text


LabelKey = Annotated[str, AfterValidator(_checked_key)]
LabelValue = Annotated[str, AfterValidator(_checked_value)]
