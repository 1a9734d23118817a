"""Small services with which a transport is tried, and the client that calls them."""

import asyncio

import grpc.aio

ECHO, GROW, LATE, BROKEN, COUNT, QUIET = (
    f"/test.Test/{name}" for name in ("Echo", "Grow", "Late", "Broken", "Count", "Quiet")
)
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class Listener:
    """Does nothing, and remembers how its call ended."""

    def __init__(self, service, call):
        self.service, self.call = service, call
        self.cancels = 0

    def on_message(self, data):
        self.service.messages.append(len(data))

    def on_end(self):
        self.call.finish()

    def on_cancel(self):
        self.cancels += 1
        self.service.cancelled.set()

    def on_drain(self):
        pass


class Service:
    """Opens listeners of one kind and keeps them."""

    def __init__(self, kind):
        self.kind = kind
        self.listeners, self.messages = [], []
        self.cancelled, self.opened = asyncio.Event(), asyncio.Event()

    def open(self, call):
        listener = self.kind(self, call)
        self.listeners.append(listener)
        self.opened.set()
        return listener


class Echo(Listener):
    """Sends back what comes; ends when the client does."""

    def on_message(self, data):
        self.call.send(data)


class Grow(Listener):
    """Sends as many bytes as the message says, 1 MiB at a time, and ends."""

    def on_message(self, data):
        left = int(data)
        while left:
            size = min(left, 1 << 20)
            self.call.send(b"x" * size)
            left -= size
        self.call.finish()


class Late(Listener):
    """Answers when the test says so, from outside of any message."""

    def answer(self, data):
        self.call.send(data)
        self.call.finish()


class Broken(Listener):
    """Has a bug."""

    def on_message(self, data):
        raise ZeroDivisionError(f"the test's own bug, {len(data)} bytes")


class Count(Listener):
    """Answers at the client's end with the number of messages, and refuses none."""

    def on_end(self):
        if not self.service.messages:
            self.call.finish(5, "nichts da: größer als 100 %\n")
            return
        self.call.send(str(len(self.service.messages)).encode())
        self.call.finish()


class Quiet(Listener):
    """Never answers."""

    def on_end(self):
        pass


def services():
    kinds = {ECHO: Echo, GROW: Grow, LATE: Late, BROKEN: Broken, COUNT: Count, QUIET: Quiet}
    return {path: Service(kind) for path, kind in kinds.items()}


def a_channel(address):
    return grpc.aio.insecure_channel(address, options=UNLIMITED)


def unary(channel, path, request=b"", **options):
    return channel.unary_unary(path)(request, **options)


def bidi(channel, path, **options):
    return channel.stream_stream(path)(**options)


async def code_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""
