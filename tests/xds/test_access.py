"""Real Envoy decides who may: tokens, keys and certificates, by model; the picker never hears of a refusal."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from controllers import ir
from matrixinfer.api import dataplane
from tests.local.waiting import eventually_async
from tests.xds.issuer import Signer
from tests.xds.stack import Engine, Immediate, demo, read_answer, running

pytestmark = pytest.mark.envoy

SIGNER = Signer()
ISSUER = ir.Issuer(SIGNER.url, ir.Jwks(inline=SIGNER.jwks))
TEAMS = ir.Grant("default/teams", issuers=((SIGNER.url, ("gateway",)),), keys=True)
GOLD = ir.Grant(
    "default/gold",
    issuers=((SIGNER.url, ()),),
    keys=True,
    tenants=("alice", "carol"),
)
ADMINS = ir.Grant("default/admins", issuers=((SIGNER.url, ()),), claims=(("realm.groups", ("admins",)),))
KEYS = (
    ir.ApiKey("sk-alice", "alice", ("default/teams", "default/gold")),
    ir.ApiKey("sk-bob", "bob", ("default/teams",)),
    ir.ApiKey("sk-mallory", "alice", ("default/other",)),
)
ACCESS = ir.Access(
    issuers=(ISSUER,),
    keys=KEYS,
    takes_keys=True,
    models=(("demo", (TEAMS,)), ("gold", (GOLD, ADMINS)), ("locked", ())),
    otherwise=(TEAMS,),
)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def model(name):
    return b'{"model":"%s"}' % name.encode()


def matrix():
    """Name, headers, model, status, code; tokens are made when they are used, as they expire."""
    return [
        ("nothing", {}, "demo", 401, "missing_credentials"),
        ("a key", bearer("sk-bob"), "demo", 200, None),
        ("a key as x-api-key", {"x_api_key": "sk-bob"}, "demo", 200, None),
        ("an unknown key", bearer("sk-nobody"), "demo", 401, "invalid_api_key"),
        ("Basic", {"authorization": "Basic c2s6"}, "demo", 401, "invalid_api_key"),
        ("a key for another model", bearer("sk-bob"), "gold", 403, "model_not_allowed"),
        ("a key and its model", bearer("sk-alice"), "gold", 200, None),
        ("the same name by another policy", bearer("sk-mallory"), "gold", 403, "model_not_allowed"),
        ("a key, a name that no policy knows", bearer("sk-bob"), "else", 200, None),
        ("a model that is nobody's", bearer("sk-alice"), "locked", 403, "model_not_allowed"),
        ("a token", bearer(SIGNER.token(aud="gateway")), "demo", 200, None),
        ("a token with two audiences", bearer(SIGNER.token(aud=["x", "gateway"])), "demo", 200, None),
        ("a wrong audience", bearer(SIGNER.token(aud="x")), "demo", 403, "model_not_allowed"),
        ("expired", bearer(SIGNER.token(aud="gateway", exp=int(time.time()) - 60)), "demo", 401, "invalid_api_key"),
        ("expired just now", bearer(SIGNER.token(aud="gateway", exp=int(time.time()) - 5)), "demo", 200, None),
        (
            "not yet valid",
            bearer(SIGNER.token(aud="gateway", nbf=int(time.time()) + 600)),
            "demo",
            401,
            "invalid_api_key",
        ),
        ("never expiring", bearer(SIGNER.token(aud="gateway", exp=None)), "demo", 401, "invalid_api_key"),
        ("alg none", bearer(SIGNER.token(alg="none", aud="gateway")), "demo", 401, "invalid_api_key"),
        ("a forged signature", bearer(Signer().token(aud="gateway")), "demo", 401, "invalid_api_key"),
        ("another issuer", bearer(Signer(url="https://x").token(aud="gateway")), "demo", 401, "invalid_api_key"),
        ("garbage", bearer("a.b.c"), "demo", 401, "invalid_api_key"),
        ("a tenant that may", bearer(SIGNER.token(sub="carol")), "gold", 200, None),
        ("a tenant that may not", bearer(SIGNER.token(sub="dave")), "gold", 403, "model_not_allowed"),
        ("a claim", bearer(SIGNER.token(sub="dave", realm={"groups": ["x", "admins"]})), "gold", 200, None),
        ("no tenant", bearer(SIGNER.token(sub=None, aud="gateway")), "demo", 401, "missing_credentials"),
        ("a token of 20 kB", bearer(SIGNER.token(aud="gateway", x="y" * 20_000)), "demo", 200, None),
        ("a token of 100 kB", bearer(SIGNER.token(aud="gateway", x="y" * 100_000)), "demo", 431, None),
    ]


@pytest.mark.parametrize("module", [True, False])
@pytest.mark.parametrize("fail_open", [True, False])
async def test_the_matrix_is_decided_without_the_picker(module, fail_open):
    async with running(module=module, fail_open=fail_open) as stack:
        await stack.apply(access=ACCESS)
        stack.pick(0)
        wrong = {}
        for name, headers, asked, status, code in matrix():
            before = len(stack.picker.seen)
            answer = await stack.envoy.request(body=model(asked), **headers)
            error = answer.json.get("error", {})
            asked_picker = len(stack.picker.seen) - before
            if (answer.status, error.get("code"), asked_picker) != (status, code, int(status == 200)):
                wrong[name] = (answer.status, asked_picker, answer.headers, answer.json)
            if answer.status == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer realm"), name

        assert not wrong


async def test_credentials_and_forged_headers_go_no_further_and_the_tenant_is_metadata():
    async with running(module=True) as stack:
        await stack.apply(access=ACCESS)
        stack.pick(0)
        for headers in (
            {"x_api_key": "sk-alice"},
            bearer("sk-alice"),
            bearer(SIGNER.token(aud="gateway")),
            {**bearer(SIGNER.token(aud="gateway")), "x_api_key": "engine"},
        ):
            answer = await stack.envoy.request(x_matrixinfer_tenant="root", x_matrixinfer_client="|root", **headers)
            assert answer.status == 200

        assert not [
            (name, value)
            for request in stack.engines[0].requests
            for name, value in request.headers.items()
            if name in ("authorization", "x-api-key") or name.startswith("x-matrixinfer")
        ]
        told = [one.get(dataplane.ACCESS_METADATA, {}).get("tenant") for one in stack.picker.told]
        assert told == ["alice"] * 4
        assert not [name for headers, _ in stack.picker.seen for name in headers if "tenant" in name]


async def test_the_picker_is_told_which_models_to_list():
    async with running(module=True) as stack:
        await stack.apply(access=ACCESS)
        stack.picker.answer = lambda _headers, _body: Immediate(200, b'{"data":[]}')

        async def listed(headers):
            answer = await stack.envoy.request("GET", "/v1/models", **headers)
            return answer.status, set(stack.picker.told[-1][dataplane.ACCESS_METADATA]["models"])

        assert await listed(bearer("sk-bob")) == (200, {"demo"})
        assert await listed(bearer("sk-alice")) == (200, {"demo", "gold"})
        assert await listed(bearer("sk-mallory")) == (200, {""})
        assert await listed(bearer(SIGNER.token(sub="dave", realm={"groups": ["admins"]}))) == (200, {"gold"})
        assert (await stack.envoy.request("GET", "/v1/models")).status == 401
        assert (await stack.envoy.request("GET", "/healthz")).status == 200


@pytest.mark.parametrize("module", [True, False])
async def test_without_the_picker_the_same_are_refused(module):
    gold = Engine()
    await gold.start()
    async with running(module=module) as stack:
        share = ir.Rule((ir.Share("default", "gold", 1),))
        await stack.apply(
            access=ACCESS,
            backends=(demo(stack.engines), ir.Backend("default", "gold", (ir.Endpoint("127.0.0.1", gold.port),))),
            models=(*stack.config.models, ir.Model("gold", (share,))),
        )
        await stack.picker.stop()

        anonymous = await stack.envoy.request()
        bob = await stack.envoy.request(**bearer("sk-bob"))
        bobs_gold = await stack.envoy.request(body=model("gold"), **bearer("sk-bob"))
        forged = await stack.envoy.request(
            body=model("gold"), x_matrixinfer_model="demo", x_matrixinfer_target="default/gold", **bearer("sk-bob")
        )
        alices_gold = await stack.envoy.request(body=model("gold"), **bearer("sk-alice"))
        nameless = await stack.envoy.request(body=b"[]", **bearer("sk-alice"))
        models = await stack.envoy.request("GET", "/v1/models", **bearer("sk-bob"))

    await gold.stop()
    assert (anonymous.status, bob.status, bobs_gold.status, forged.status) == (401, 200, 403, 403)
    assert (alices_gold.status, nameless.status, len(gold.requests)) == (200, 400, 1)
    assert [one["id"] for one in models.json["data"]] == ["demo"]


async def test_a_key_is_rotated_without_closing_a_connection():
    async with running(module=True) as stack:
        await stack.apply(access=ACCESS)
        stack.pick(0)
        listeners = await stack.envoy.admin("/config_dump?resource=dynamic_listeners")
        renewed = replace(ACCESS, keys=(ir.ApiKey("sk-new", "alice", ("default/teams",)),))
        await stack.apply(access=renewed)

        old, new = [(await stack.envoy.request(**bearer(key))).status for key in ("sk-alice", "sk-new")]

        assert (old, new) == (401, 200)
        assert await stack.envoy.admin("/config_dump?resource=dynamic_listeners") == listeners


@pytest.mark.parametrize("module", [True, False])
async def test_keys_of_an_issuer_come_from_a_url_and_its_absence_is_said(module):
    second = Signer("k2")

    async def answer(_request, writer):
        body = second.jwks.encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    server = Engine()
    server.behave = answer
    await server.start()
    url = f"http://localhost:{server.port}/keys"
    await server.stop()
    async with running(module=module) as stack:
        await stack.apply(access=replace(ACCESS, issuers=(replace(ISSUER, jwks=ir.Jwks(url=url)),)))
        stack.pick(0)
        token = bearer(second.token(aud="gateway"))
        away = await stack.envoy.request(**token)
        bad = await stack.envoy.request(**bearer(Signer().token(aud="gateway", iss="https://else.test")))
        by_key = await stack.envoy.request(**bearer("sk-bob"))
        await server.start()
        deadline = time.monotonic() + 15
        while (there := (await stack.envoy.request(**token)).status) != 200:
            assert time.monotonic() < deadline, there
        fetched = len(server.requests)
        again = [(await stack.envoy.request(**token)).status for _ in range(5)]

    await server.stop()
    assert (away.status, away.json["error"]["code"], by_key.status) == (503, "keys_unavailable", 200)
    assert "www-authenticate" not in away.headers  # other credentials would not help
    assert (bad.status, "www-authenticate" in bad.headers) == (401, True)
    assert (again, len(server.requests)) == ([200] * 5, fetched)


async def test_keys_of_an_issuer_come_from_a_file(tmp_path):
    file = tmp_path / "jwks.json"
    file.write_text(SIGNER.jwks)
    async with running(module=True) as stack:
        await stack.apply(access=replace(ACCESS, issuers=(replace(ISSUER, jwks=ir.Jwks(file=str(file))),)))
        stack.pick(0)

        async def status(signer):
            return (await stack.envoy.request(**bearer(signer.token(aud="gateway")))).status

        assert (await status(SIGNER), await status(Signer())) == (200, 401)
        listeners = await stack.envoy.admin("/config_dump?resource=dynamic_listeners")
        file.write_text("half of a cha")  # the last good keys stay
        second = Signer("k2")
        file.write_text(second.jwks)

        async def rotated():
            return (await status(second), await status(SIGNER)) == (200, 401)

        await eventually_async(rotated)
        assert await stack.envoy.admin("/config_dump?resource=dynamic_listeners") == listeners


async def test_a_file_of_keys_that_is_not_there_lets_nobody_in_until_it_is(tmp_path):
    file = tmp_path / "jwks.json"
    async with running(module=True) as stack:
        await stack.apply(access=replace(ACCESS, issuers=(replace(ISSUER, jwks=ir.Jwks(file=str(file))),)))
        stack.pick(0)
        token = bearer(SIGNER.token(aud="gateway"))
        refused = await stack.envoy.request(**token)

        assert (refused.status, "www-authenticate" in refused.headers) == (401, True)
        assert not stack.picker.seen
        file.write_text(SIGNER.jwks)

        async def lets_in():
            return (await stack.envoy.request(**token)).status == 200

        await eventually_async(lets_in)


async def test_a_policy_for_one_model_leaves_the_others_open_and_each_issuer_has_its_own():
    partner = Signer("p1", "https://partner.test")
    mine = ir.Grant("default/mine", issuers=((SIGNER.url, ()),))
    theirs = ir.Grant("default/theirs", issuers=((partner.url, ()),))
    issuers = (ISSUER, ir.Issuer(partner.url, ir.Jwks(inline=partner.jwks), tenant_claim="org.team"))
    team = {"org": {"team": "red"}}
    cases = [
        ({}, "demo", 200),
        ({}, "mine", 401),
        (bearer(SIGNER.token()), "mine", 200),
        (bearer(SIGNER.token()), "theirs", 403),
        (bearer(partner.token(**team)), "theirs", 200),
        (bearer(partner.token(**team)), "mine", 403),
        (bearer(partner.token()), "theirs", 401),
        (bearer(partner.token(**team, exp=1)), "demo", 401),
        (bearer(Signer("k1", partner.url).token(**team)), "theirs", 401),
        (bearer(Signer(url="https://x").token()), "theirs", 401),
        (bearer("sk-1"), "mine", 401),
        ({"x_api_key": "sk-1"}, "mine", 401),
    ]
    async with running(module=True) as stack:
        models = (("demo", None), ("mine", (mine,)), ("theirs", (theirs,)))
        delivery = await stack.apply(access=ir.Access(issuers=issuers, models=models))
        stack.pick(0)

        found = [(await stack.envoy.request(body=model(asked), **headers)).status for headers, asked, _ in cases]
        red = bearer(partner.token(**team))
        told = [(await stack.envoy.request("GET", "/v1/models", **headers)).status for headers in ({}, red)]
        listed = [one[dataplane.ACCESS_METADATA]["models"] for one in stack.picker.told[-2:]]
        nameless = await stack.envoy.request(body=b"{}")

    assert not delivery.refusals
    assert found == [status for _, _, status in cases]
    assert (told, listed, nameless.status) == ([200, 200], [["demo"], ["demo", "theirs"]], 400)


async def test_no_policy_not_the_first_either_renews_the_listener_or_closes_a_connection():
    partner = ir.Issuer("https://partner.test", ir.Jwks(inline=Signer("p1").jwks), tenant_claim="org.team")
    async with running(module=True) as stack:
        stack.picker.answer = lambda _headers, _body: Immediate(200, b'{"data":[]}')
        listeners = await stack.envoy.admin("/config_dump?resource=dynamic_listeners")
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.envoy.port)

        async def asked(extra=""):
            writer.write(f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{extra}\r\n".encode())
            return (await read_answer(reader)).status

        found = [await asked()]
        for access in (
            ir.Access(keys=KEYS, takes_keys=True, otherwise=(TEAMS,)),
            ACCESS,
            replace(ACCESS, issuers=(ISSUER, partner), certificates=True),
            None,
        ):
            delivery = await stack.apply(access=access)
            assert not delivery.refusals
            found += [await asked(), await asked("authorization: Bearer sk-bob\r\n")]
        writer.close()

        assert found == [200, 401, 200, 401, 200, 401, 200, 200, 200]
        assert await stack.envoy.admin("/config_dump?resource=dynamic_listeners") == listeners


async def test_credentials_are_forwarded_where_a_policy_asks_for_it():
    async with running(module=True) as stack:
        await stack.apply(access=replace(ACCESS, issuers=(replace(ISSUER, forward=True),), forward_keys=True))
        stack.pick(0)
        token = SIGNER.token(aud="gateway")

        for headers in (bearer(token), bearer("sk-bob"), {"x_api_key": "sk-bob"}):
            assert (await stack.envoy.request(**headers)).status == 200

        seen = [(one.headers.get("authorization"), one.headers.get("x-api-key")) for one in stack.engines[0].requests]
        assert seen == [(f"bearer {token.lower()}", None), ("bearer sk-bob", None), (None, "sk-bob")]
