"""The page about seeing against a running stack: its example runs as it stands, its answers have the fields they show."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.stack import a_pod, a_route, a_server, running

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
PAGE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
EXAMPLE = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1]
OPTIONAL = {"dropped_by", "score", "scores", "candidates_left_off"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    pods = [a_pod(f"demo-{number}") for number in range(2)]
    async with running(tmp_path_factory.mktemp("seeing") / "manifests", *pods, a_server(), a_route()) as it:
        yield it


def for_stack(text, stack):
    for port, real in ((8080, stack.port), (15000, stack.admin_port), (9090, stack.metrics_port)):
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{real}")
    return text


async def test_the_example_runs_and_shows_what_the_page_says(world):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        for_stack(EXAMPLE, world.stack),
        env=os.environ | {"PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    shown = out.decode()

    assert process.returncode == 0, err
    assert shown.count("x-matrixinfer-decision: {") == 2
    assert "request try-2  ticket" in shown
    assert "most of it by prefix-cache-scorer" in shown
    assert re.search(r"ended +complete, status 200 from 127\.", shown)
    assert re.search(r"\([1-9]\d* cached, \d\d%\)", shown)
    assert 'matrixinfer_requests_total{model="demo",reason="complete",status="200"} 2.0' in shown
    assert re.search(r'matrixinfer_cached_tokens_total\{model="demo"\} [1-9]', shown)


async def test_the_header_and_the_admin_page_say_the_same(world):
    identity = world.new_id()
    answer = await world.send(headers={"x-request-id": identity, "x-matrixinfer-explain": "1"}, prompt=identity)
    header = json.loads(answer.headers["x-matrixinfer-decision"])
    page = await world.decision(identity)

    assert {key: page[key] for key in header} == header
    assert set(page) - set(header) == {"s_ago", "end"}


async def test_answers_have_the_fields_that_the_page_shows(world):
    identity = world.new_id()
    await world.send(headers={"x-request-id": identity})
    await world.send(headers={"x-request-id": world.new_id()}, model="nobody-has-it")
    await world.decision(identity)
    examples = {
        path: json.loads(block)
        for path, block in re.findall(r"^`GET (/[^`]*)`.*?```json\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    }

    assert set(examples) == {
        "/endpoints",
        "/decisions?limit=50&model=NAME",
        "/decisions/{id}",
        "/routes",
        "/config",
        "/healthz",
    }
    for path, example in examples.items():
        asked = path.replace("{id}", identity).replace("&model=NAME", "")
        async with aiohttp.ClientSession() as session, session.get(world.stack.admin_url + asked) as answer:
            assert answer.status == 200
            same_fields(example, await answer.json(), path)


def same_fields(shown, real, where):
    """Objects that are records have the same fields; of what is named by users only the form counts."""
    assert type(shown) is type(real) or None in (shown, real) or {type(shown), type(real)} == {int, float}, where
    if isinstance(shown, dict) and real is not None:
        leaf = where.rsplit(".", 1)[-1]
        if leaf in ("skipped", "problems"):
            return
        if leaf in ("spec", "parameters", "weights", "scores"):
            assert leaf == "parameters" or set(shown) <= set(real), where
            return
        if leaf == "servers":
            shown, real = {"": next(iter(shown.values()))}, {"": next(iter(real.values()))}
        assert set(shown) - OPTIONAL == set(real) - OPTIONAL, where
        for key in set(shown) & set(real):
            same_fields(shown[key], real[key], f"{where}.{key}")
    elif isinstance(shown, list) and shown and real:
        same_fields(shown[0], real[0], f"{where}[]")


async def test_explain_shows_a_request_of_the_stack_in_json_too(world):
    identity = world.new_id()
    await world.send(headers={"x-request-id": identity})
    page = await world.decision(identity)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "matrixinfer", "explain", page["ticket"], "--json", "--admin", world.stack.admin_url),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)

    assert json.loads(out) | {"s_ago": 0} == page | {"s_ago": 0}
