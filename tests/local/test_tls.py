"""TLS of the stack: both ports, clients' certificates, and certificates that change while it runs."""

import asyncio
import ssl

import pytest

from matrixinfer.local import tls
from matrixinfer.local.stack import CannotStart, Stack
from tests.local.test_stack import QUICKSTART, a_config
from tests.xds.issuer import Authority

pytestmark = pytest.mark.envoy


@pytest.fixture
def small(tmp_path):
    """The quickstart with one engine, and a policy that takes certificates."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    for file in QUICKSTART.glob("*.yaml"):
        (folder / file.name).write_text(file.read_text().replace("replicas: 4", "replicas: 1"))
    return folder


def issued(folder, authority, name="localhost"):
    certificate, key = authority.issue(name)
    files = folder / f"{name}.pem", folder / f"{name}.key"
    for file, text in zip(files, (certificate, key), strict=True):
        file.write_bytes(text)
    return files


async def asked(port, authority, client=None):
    """Status of GET /v1/models, and the server's certificate; the status of a refused handshake is 0."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if client is not None:
        context.load_cert_chain(*client)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        certificate = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return 0, b""
    return int(answer.split()[1]) if answer else 0, certificate


async def until(what, wanted):
    async with asyncio.timeout(20):
        while (found := await what()) != wanted:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.1)
    return found


POLICY = """
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: AccessPolicy
metadata: {name: partners}
spec:
  targetRefs: [{kind: Gateway}]
  clientCertificates: true
  rules: [{tenants: [partner]}]
"""


async def test_certificates_are_asked_for_and_say_who_it_is_and_new_ones_serve_at_once(small, tmp_path):
    authority, strangers = Authority(), Authority()
    server = issued(tmp_path, authority)
    partner, other = (issued(tmp_path, authority, name) for name in ("partner", "other"))
    stranger = issued(tmp_path, strangers, "stranger")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    (small / "access.yaml").write_text(POLICY)
    files = tls.Files(*server, ca, client_optional=True)
    async with Stack(a_config(small, tls=files, tls_port=0)) as stack:
        await stack.ready()

        async def status(client=None):
            return (await asked(stack.tls_port, authority, client))[0]

        assert await until(status, 401) == 401
        assert await until(lambda: status(partner), 200) == 200
        assert (await status(stranger), await status(other)) == (0, 200)
        _, before = await asked(stack.tls_port, authority)
        server[1].write_bytes(b"no key")  # half of a change: nothing happens
        await asyncio.sleep(0)
        issued(tmp_path, authority)

        async def renewed():
            return (await asked(stack.tls_port, authority))[1] not in (before, b"")

        assert await until(renewed, True)


def test_files_that_do_not_fit_are_refused_with_their_names(tmp_path):
    authority = Authority()
    certificate, _ = issued(tmp_path, authority)
    _, key = issued(tmp_path, authority, "other")

    for files, name in (
        (tls.Files(certificate, key), "other.key"),
        (tls.Files(tmp_path / "gone.pem", key), "gone.pem"),
        (tls.Files(*issued(tmp_path, authority), key), "other.key holds no certificates"),
    ):
        with pytest.raises(tls.BadCertificate, match=name):
            tls.Secrets(files, tmp_path).write()


async def test_a_stack_does_not_start_without_the_policy_that_it_was_given(small):
    (small / "access.yaml").write_text(POLICY.replace("clientCertificates: true", "clientCertificates: yes please"))

    with pytest.raises(CannotStart, match="open to all"):
        async with Stack(a_config(small)):
            pass
