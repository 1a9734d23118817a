"""Gateway messages, short to write."""

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from extproc.protocol import codec
from extproc.protocol.effects import Decide, Effects, Finish, Send
from extproc.protocol.messages import BodyMode, ProtocolConfig, RequestHeaders
from extproc.protocol.session import Session
from extproc.types import Decision, Reply

REPLY = Reply(200, b'{"data":[]}', (("content-type", "application/json"),), "models")


def a_decision(**changes):
    values = {"ticket": "t-1", "endpoints": ("10.0.0.1:8000", "10.0.0.2:8000"), "target": "default/demo"}
    return Decision(**{**values, **changes})


def a_config(request=BodyMode.BUFFERED, response=BodyMode.NONE, *, early=False):
    return ProtocolConfig(request, response, early)


def headers(mode=BodyMode.BUFFERED, *, end=False, subset=None, response=BodyMode.NONE, early=False, **extra):
    names = {":method": "POST", ":path": "/v1/chat/completions", **{k.replace("_", "-"): v for k, v in extra.items()}}
    return RequestHeaders(names, end, None if mode is None else a_config(mode, response, early=early), subset)


def a_session(*events, limit=1 << 20, follow=False):
    session = Session(limit, follow=follow)
    for event in events:
        session.step(event)
    return session


def sent(effects: Effects):
    return [pb.ProcessingResponse.FromString(effect.message) for effect in effects if isinstance(effect, Send)]


def asked(effects: Effects):
    return [effect.request for effect in effects if isinstance(effect, Decide)]


def ended(effects: Effects):
    return [effect.status for effect in effects if isinstance(effect, Finish)]


def set_headers(mutation):
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def metadata(response):
    return {name: dict(value.items()) for name, value in response.dynamic_metadata.items()}


def read(message):
    """Return the event in a ProcessingRequest."""
    return codec.decode(message.SerializeToString())
