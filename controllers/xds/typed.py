"""Envoy's extension points take `Any`: the two ways in which they are filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.google.protobuf import Any
from envoy_data_plane.xds.core.v3 import TypedExtensionConfig as XdsTypedExtensionConfig

if TYPE_CHECKING:
    from betterproto2 import Message


def packed(message: Message) -> Any:
    """Wrap `message` with its type's address."""
    return Any.pack(message)


def extension(name: str, message: Message) -> TypedExtensionConfig:
    """Name an extension and give it its configuration."""
    return TypedExtensionConfig(name=name, typed_config=packed(message))


def xds_extension(name: str, message: Message) -> XdsTypedExtensionConfig:
    """Do the same where the generic matchers ask for it: they have a type of their own."""
    return XdsTypedExtensionConfig(name=name, typed_config=packed(message))
