"""A server of either transport with the test services behind it."""

import pytest

from extproc.adapters.transport.calls import Limits
from extproc.adapters.transport.serving import serve
from tests.transport.services import a_channel, services


@pytest.fixture(params=["ngh2", "grpc"])
def transport(request):
    return request.param


@pytest.fixture
async def start(transport, tmp_path):
    """Return a function that starts a server: `server = await start(services, **settings)`."""
    running = []

    async def starter(served, *, address=None, **settings):
        server = await serve(
            address or f"unix:{tmp_path}/s.sock", served, **{"transport": transport, "limits": Limits(), **settings}
        )
        running.append(server)
        return server

    yield starter
    for server in running:
        await server.stop(0)


@pytest.fixture
def served():
    return services()


@pytest.fixture
async def server(start, served):
    return await start(served)


@pytest.fixture
async def channel(server):
    channel = a_channel(server.address)
    yield channel
    await channel.close()
