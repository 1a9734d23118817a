"""Who may, on a real stack: every kind of credential, in every state. The picker's own counter shows that it hears of none
that is refused."""

import json
import ssl
import time
from datetime import timedelta

import pytest
import pytest_asyncio

from matrixinfer.local import tls
from tests.e2e.stack import CHAT, a_body, a_pod, a_route, a_server, an_error, running, total
from tests.local.waiting import eventually_async
from tests.xds.issuer import Authority, Signer

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

SIGNER, AWAY = Signer(), Signer(url="https://away.test")
AUTHORITY, STRANGERS = Authority(), Authority()

SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{alice: {alice}, bob: sk-bob}}\n"
POLICY = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: AccessPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{{target}}}]
  jwt:
  - issuer: https://issuer.test
    audiences: [gateway]
    jwks: {{inline: {jwks}}}
  - issuer: https://away.test
    jwks: {{url: "http://127.0.0.1:1/keys"}}
  apiKeys: {{secretRefs: [{{name: keys}}]}}
  clientCertificates: true
  rules: [{rule}]
"""


def a_policy(name, target, rule="{}"):
    return POLICY.format(name=name, target=target, rule=rule, jwks=json.dumps(SIGNER.jwks))


def certificate(folder, authority, name, **how):
    """Files of a client's certificate and key."""
    files = folder / f"{name}.pem", folder / f"{name}.key"
    for file, text in zip(files, authority.issue(name, **how), strict=True):
        file.write_bytes(text)
    return files


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    (folder / "ca.pem").write_bytes(AUTHORITY.pem)
    files = tls.Files(*certificate(folder, AUTHORITY, "localhost"), folder / "ca.pem", client_optional=True)
    documents = [a_pod("demo-0"), a_server(), a_route(), a_route("gold"), SECRET.format(alice="sk-alice")]
    documents += [
        a_policy("everybody", "kind: Gateway"),
        a_policy("gold", "kind: Model, name: gold", "tenants: [alice]"),
    ]
    documents[-1] = documents[-1].replace("rules: [tenants: [alice]]", "rules: [{tenants: [alice]}]")
    async with running(folder / "manifests", *documents, tls=files, tls_port=0) as it:
        yield it


async def ask(world, model="demo", *, client=None, secure=False, **headers):
    """Status, error, and how often the picker was asked meanwhile; 0 is a handshake that was refused."""
    before = await asked(world)
    url, how = world.url, None
    if client is not None or secure:
        url, how = (
            f"https://localhost:{world.stack.tls_port}",
            ssl.create_default_context(cadata=AUTHORITY.pem.decode()),
        )
        if client is not None:
            how.load_cert_chain(*client)
    named = {name.replace("_", "-"): value for name, value in headers.items()} | {"connection": "close"}
    try:
        async with world.http.post(
            url + CHAT, json=a_body(CHAT, model=model), ssl=how or True, headers=named
        ) as answer:
            status, body, challenge = answer.status, await answer.read(), answer.headers.get("www-authenticate")
    except OSError:
        return 0, None, await asked(world) - before
    error = an_error(body) if status >= 400 else {"code": None}
    assert status != 401 or (challenge or "").startswith('Bearer realm="matrixinfer"'), challenge
    return status, error["code"], await asked(world) - before


async def asked(world):
    return total(await world.metrics(), "matrixinfer_exchanges_total")


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def token(**claims):
    return bearer(SIGNER.token(**{"aud": "gateway"} | claims))


def cells():
    """Name, how it is asked, status, code. Tokens are made when they are used, as they expire."""
    now = int(time.time())
    missing, bad, forbidden = (401, "missing_credentials"), (401, "invalid_api_key"), (403, "model_not_allowed")
    served, alice = (200, None), {"sub": "alice"}
    bob = bearer("sk-bob")
    return [
        ("nothing", {}, *missing),
        ("nothing, TLS", {"secure": True}, *missing),
        ("nothing, forged tenant", {"x_matrixinfer_tenant": "alice", "x_matrixinfer_client": ",x,|alice"}, *missing),
        ("token", token(), *served),
        ("token, TLS", {"secure": True} | token(), *served),
        ("token, its model", {"model": "gold"} | token(**alice), *served),
        ("token, another's model", {"model": "gold"} | token(sub="bob"), *forbidden),
        ("token, forged tenant", {"model": "gold", "x_matrixinfer_tenant": "alice"} | token(sub="bob"), *forbidden),
        ("token, forged model", {"model": "gold", "x_matrixinfer_model": "demo"} | token(sub="bob"), *forbidden),
        ("token, expired within the clocks' difference", token(exp=now - 5), *served),
        ("token, expired", token(exp=now - 45), *bad),
        ("token, never expiring", token(exp=None), *bad),
        ("token, not yet valid", token(nbf=now + 600), *bad),
        ("token, wrong audience", token(aud="else"), *forbidden),
        ("token, no audience", token(aud=None), *forbidden),
        ("token, alg none", token(alg="none"), *bad),
        ("token, forged signature", bearer(Signer().token(aud="gateway")), *bad),
        ("token, cut", bearer(SIGNER.token(aud="gateway")[:-5]), *bad),
        ("token, unknown issuer", bearer(Signer(url="https://else.test").token(aud="gateway")), *bad),
        ("token, keys cannot be fetched", bearer(AWAY.token()), 503, "keys_unavailable"),
        ("token, garbage", bearer("a.b.c"), *bad),
        ("token, 20 kB", token(x="y" * 20_000), *served),
        ("token, 100 kB", token(x="y" * 100_000), 431, None),
        ("key", bob, *served),
        ("key, its header", {"x_api_key": "sk-bob"}, *served),
        ("key, its model", {"model": "gold"} | bearer("sk-alice"), *served),
        ("key, another's model", {"model": "gold"} | bob, *forbidden),
        ("key, forged tenant", {"model": "gold", "x_matrixinfer_tenant": "alice"} | bob, *forbidden),
        ("key, unknown", bearer("sk-nobody"), *bad),
        ("key, empty", bearer(""), *bad),
        ("key, Basic", {"authorization": "Basic c2s6"}, *bad),
    ]


async def test_tokens_and_keys_are_decided_before_the_picker_hears_of_them(world):
    found = {}
    for name, how, status, code in cells():
        answer = await ask(world, **how)
        if answer != (status, code, int(status == 200)):
            found[name] = answer

    assert found == {}


async def test_certificates_are_too_and_bad_ones_do_not_get_as_far_as_a_request(world, tmp_path):
    alice, partner = (certificate(tmp_path, AUTHORITY, name) for name in ("alice", "partner"))
    expired = certificate(tmp_path, AUTHORITY, "expired", ends=timedelta(minutes=-5))
    stranger = certificate(tmp_path, STRANGERS, "stranger")

    assert await ask(world, client=partner) == (200, None, 1)
    assert await ask(world, "gold", client=alice) == (200, None, 1)
    assert await ask(world, "gold", client=partner) == (403, "model_not_allowed", 0)
    assert await ask(world, "gold", client=partner, x_matrixinfer_tenant="alice") == (403, "model_not_allowed", 0)
    assert await ask(world, client=expired) == (0, None, 0)
    assert await ask(world, client=stranger) == (0, None, 0)
    assert await ask(world, client=partner, **bearer("sk-nobody")) == (401, "invalid_api_key", 0)


async def test_a_key_that_was_replaced_is_expired_at_once(world):
    draft = world.directory.parent / "draft"
    draft.write_text(SECRET.format(alice="sk-new"))
    draft.replace(world.directory / "secret-keys.yaml")

    async def replaced():
        return (await ask(world, **bearer("sk-new")))[0] == 200

    await eventually_async(replaced)
    assert await ask(world, **bearer("sk-alice")) == (401, "invalid_api_key", 0)
    assert await ask(world, **bearer("sk-bob")) == (200, None, 1)
