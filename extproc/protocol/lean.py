"""ProcessingRequest with its headers left as bytes, for who meets the same headers again and again.

To make an object for each header, and to read two fields of it, is what upb takes longest for in a request; most headers
are the same as last time. On the wire a message and bytes are the same, so the classes made here read what the generated
ones write, and give a header as the bytes of its HeaderValue. Other fields have the generated types; those that nobody
reads are left out.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "matrixinfer.lean"
_UNREAD: Final = frozenset({"attributes", "observability_mode"})


def _request() -> Any:
    request, head = pb.ProcessingRequest.DESCRIPTOR, pb.HttpHeaders.DESCRIPTOR
    headers = head.fields_by_name["headers"].message_type
    entries = headers.fields_by_name["headers"]
    file = descriptor_pb2.FileDescriptorProto(name="matrixinfer/lean.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.extend([pb.DESCRIPTOR.name, *(used.name for used in pb.DESCRIPTOR.dependencies)])
    ours = file.message_type.add(name=headers.name)
    ours.field.add(name=entries.name, number=entries.number, label="LABEL_REPEATED", type="TYPE_BYTES")
    for original in (head, request):
        _copy(original, file.message_type.add(name=original.name), lean={headers.name, head.name})
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{request.name}"))


def _copy(original: Any, copy: Any, *, lean: set[str]) -> None:
    """Declare the fields of `original` once more, those with messages named in `lean` with our messages."""
    copy.oneof_decl.extend([descriptor_pb2.OneofDescriptorProto(name=choice.name) for choice in original.oneofs])
    for field in original.fields:
        if field.name in _UNREAD:
            continue
        made = copy.field.add(name=field.name, number=field.number, label="LABEL_OPTIONAL", type=field.type)
        if field.message_type is not None:
            ours = field.message_type.name in lean
            made.type_name = f".{_PACKAGE}.{field.message_type.name}" if ours else f".{field.message_type.full_name}"
        if field.containing_oneof is not None:
            made.oneof_index = field.containing_oneof.index


ProcessingRequest: Final = _request()
