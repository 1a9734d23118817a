"""Who asks: as the gateway's metadata says, and nothing else."""

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from extproc.protocol import codec
from extproc.protocol.messages import Caller
from extproc.protocol.session import Session


def told(**fields):
    request = pb.ProcessingRequest()
    request.request_headers.end_of_stream = True
    header = request.request_headers.headers.headers.add()
    header.key, header.raw_value = "x-matrixinfer-tenant", b"root"
    if fields:
        request.metadata_context.filter_metadata["matrixinfer.access"].update(fields)
    return codec.decode(request.SerializeToString())


def test_the_tenant_comes_from_metadata_only():
    assert told().caller is None
    assert told(tenant="alice").caller == Caller("alice")
    assert told(tenant="bob", client=",default/a,|bob").caller == Caller("bob", "bob")
    assert told(tenant="bob", models=["demo", "gold"]).caller == Caller("bob", "", frozenset({"demo", "gold"}))


def test_the_request_that_is_decided_carries_its_caller():
    (decide,) = Session(1000).step(told(tenant="bob", client=",default/a,|bob", models=["demo"]))

    assert (decide.request.tenant, decide.request.key, decide.request.allowed) == ("bob", "bob", {"demo"})
