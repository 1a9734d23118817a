from __future__ import annotations

import logging

import pytest

from extproc.adapters import tokenizers, tokens_files
from extproc.adapters.tokenizers import Tokenizers
from extproc.adapters.tokens_files import ANNOTATION, Named
from extproc.plugins.token_producer import TokenizerOf, TokenProducer
from extproc.tokens.blocks import Counts
from extproc.tokens.model import Fault
from extproc.traffic.routes import RouteTable
from extproc.types import Called
from matrixinfer.api import networking
from tests.tokens import tiny


def a_server(name="engines", model=None, annotation=None):
    metadata = {"namespace": "ns", "name": name}
    if annotation:
        metadata["annotations"] = {ANNOTATION: annotation}
    spec = {
        "inferenceEngine": "vLLM",
        "workloadSelector": {"matchLabels": {"app": "a"}},
        "workloadPort": {"port": 8000},
    }
    return networking.ModelServer.model_validate(
        {"metadata": metadata, "spec": spec | ({"model": model} if model else {})}
    )


def a_route(model="demo", adapters=(), server="engines"):
    return networking.ModelRoute.model_validate(
        {
            "metadata": {"namespace": "ns", "name": model, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "modelName": model,
                **({"loraAdapters": list(adapters)} if adapters else {}),
                "rules": [{"targetModels": [{"modelServerName": server}]}],
            },
        }
    )


def some_tokenizers(tmp_path, *, server=None, route=None, **params):
    table = RouteTable.build([route or a_route()], [server or a_server()])
    return Tokenizers(TokenProducer.Params(hub_cache=str(tmp_path / "hub"), **params), lambda: table)


def a_snapshot(hub, model, revision="main", commit="c0ffee"):
    home = hub / f"models--{model.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / revision).write_text(commit)
    return tiny.a_folder(home / "snapshots" / commit)


async def test_a_folder_is_named_in_the_configuration(tmp_path):
    tiny.a_folder(tmp_path / "here")
    known = some_tokenizers(tmp_path, tokenizers=(TokenizerOf(model="de*", source=str(tmp_path / "here")),))

    await known.look()

    assert known.find("demo").encoder.ids("hello").tolist()
    assert known.find("other") is None


async def test_a_mounted_volume_holds_a_folder_for_each_model(tmp_path):
    tiny.a_folder(tmp_path / "models" / "org" / "demo")
    known = some_tokenizers(tmp_path, server=a_server(model="org/demo"), folders=(str(tmp_path / "models"),))

    await known.look()

    assert known.find("org/demo") is not None


async def test_a_model_is_found_in_the_hub_cache_by_its_id(tmp_path):
    a_snapshot(tmp_path / "hub", "org/demo")
    known = some_tokenizers(tmp_path, route=a_route("org/demo"))

    await known.look()

    assert known.find("org/demo") is not None


async def test_a_revision_is_followed(tmp_path):
    a_snapshot(tmp_path / "hub", "org/demo", revision="v2", commit="beef")
    wanted = TokenizerOf(model="demo", source="org/demo", revision="v2")
    known = some_tokenizers(tmp_path, tokenizers=(wanted,))

    await known.look()

    assert known.find("demo") is not None


async def test_the_annotation_of_the_model_server_goes_first(tmp_path):
    tiny.a_folder(tmp_path / "models" / "demo", template="one")
    tiny.a_folder(tmp_path / "own", template="own")
    server = a_server(annotation=str(tmp_path / "own"))
    known = some_tokenizers(tmp_path, server=server, folders=(str(tmp_path / "models"),))

    await known.look()

    assert known._loaded.keys() == {tokens_files.Source(tmp_path / "own", tokens_files._ANY)}


async def test_a_model_can_be_left_to_text_blocks(tmp_path):
    tiny.a_folder(tmp_path / "models" / "demo")
    known = some_tokenizers(tmp_path, server=a_server(annotation="none"), folders=(str(tmp_path / "models"),))

    await known.look()

    assert known.find("demo") is None


async def test_an_adapter_shares_the_tokenizer_of_its_base_model(tmp_path):
    a_snapshot(tmp_path / "hub", "org/base")
    known = some_tokenizers(
        tmp_path, server=a_server(model="org/base"), route=a_route("demo", adapters=("sql", "poems"))
    )

    await known.look()

    assert known.find("sql") is known.find("org/base") is known.find("poems")
    assert known.loads == 1


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc", "a//b", ".", ""])
def test_names_do_not_lead_out_of_the_folders(tmp_path, name):
    tiny.a_folder(tmp_path / "secret")
    (tmp_path / "models" / "a").mkdir(parents=True)
    params = TokenProducer.Params(hub_cache=str(tmp_path / "models"), folders=(str(tmp_path / "models"),))

    assert tokens_files.locate(Named((name,)), params) is None


async def test_a_missing_tokenizer_is_said_once_and_tried_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    known = some_tokenizers(tmp_path, folders=(str(tmp_path / "models"),))

    await known.look()
    await known.look()
    tiny.a_folder(tmp_path / "models" / "demo")
    await known.look()

    assert [record.message.partition(":")[0] for record in caplog.records] == ["no tokenizer", "a tokenizer is in use"]
    assert known.find("demo") is not None


async def test_what_is_configured_and_not_there_is_told_with_its_path(tmp_path, caplog):
    known = some_tokenizers(tmp_path, tokenizers=(TokenizerOf(model="*", source="/nowhere"),))

    await known.look()
    await known.look()

    (record,) = caplog.records
    assert "/nowhere" in record.problem
    assert known.find("demo") is None


async def test_a_broken_tokenizer_is_told_once_and_read_again_when_it_changes(tmp_path, caplog):
    folder = tiny.a_folder(tmp_path / "models" / "demo")
    (folder / "tokenizer.json").write_text("{")
    known = some_tokenizers(tmp_path, folders=(str(tmp_path / "models"),))

    await known.look()
    await known.look()

    assert (known.failures, len(caplog.records), known.find("demo")) == (1, 1, None)
    tiny.a_folder(tmp_path / "models" / "demo")
    await known.look()
    assert known.find("demo") is not None


async def test_a_tokenizer_follows_its_files(tmp_path):
    folder = tiny.a_folder(tmp_path / "models" / "demo")
    known = some_tokenizers(tmp_path, folders=(str(tmp_path / "models"),))
    await known.look()
    before = known.find("demo")

    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} only")
    await known.look()

    assert known.find("demo") is not before
    assert known.find("demo").tokenizer is before.tokenizer
    assert known.find("demo")._sources == {"default": "{{ messages[0].content }} only"}


async def test_a_tokenizer_that_turns_bad_stays_as_it_was(tmp_path):
    folder = tiny.a_folder(tmp_path / "models" / "demo")
    known = some_tokenizers(tmp_path, folders=(str(tmp_path / "models"),))
    await known.look()
    before = known.find("demo")

    (folder / "tokenizer.json").write_text("no json")
    await known.look()

    assert known.find("demo") is before


async def test_a_model_that_no_route_names_is_forgotten(tmp_path):
    tiny.a_folder(tmp_path / "models" / "demo")
    tables = [RouteTable.build([a_route()], [a_server()]), RouteTable.build([], [])]
    params = TokenProducer.Params(hub_cache=str(tmp_path), folders=(str(tmp_path / "models"),))
    known = Tokenizers(params, lambda: tables[0])
    await known.look()
    tables.pop(0)

    await known.look()

    assert (known.find("demo"), known._loaded) == (None, {})


async def test_switched_off_there_are_none(tmp_path):
    tiny.a_folder(tmp_path / "models" / "demo")
    known = some_tokenizers(tmp_path, folders=(str(tmp_path / "models"),), enabled=False)

    await known.look()

    assert known.find("demo") is None


async def test_templates_of_all_places_are_read(tmp_path):
    folder = tiny.a_folder(tmp_path / "a")
    source = tokens_files.Source(folder, tokens_files._ANY)
    assert tokens_files.read(source).templates == ()

    (folder / "chat_template.jinja").write_text("one")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("two")
    (folder / "chat_template.json").write_text('{"chat_template": "three"}')
    assert tokens_files.read(source).templates == (("default", "one"), ("tool_use", "two"))
    assert tokens_files.read(source).processor == "three"

    (tmp_path / "own.jinja").write_text("four")
    own = source._replace(settings=TokenizerOf(model="*", source="", chat_template=str(tmp_path / "own.jinja")))
    assert tokens_files.read(own).templates == (("default", "four"),)


async def test_engines_are_asked_in_turn_and_left_alone_when_they_fail(tmp_path):
    table = RouteTable.build([a_route()], [a_server()])
    urls = {"ns/engines": ["http://a", "http://b"]}
    params = TokenProducer.Params(hub_cache=str(tmp_path), ask_engines=True)
    known = Tokenizers(params, lambda: table, lambda server: urls.get(server, []))
    await known.look()

    asked = [known._engine("demo") for _ in range(4)]
    known._engine_failed("demo", "timeout")

    assert asked == ["http://a", "http://b", "http://a", "http://b"]
    assert known._engine("demo") == known._engine("other") == ""
    assert known.remote is not None
    known.use(TokenProducer.Params(hub_cache=str(tmp_path)))
    assert known.remote is None


@pytest.mark.parametrize(
    ("called", "template"),
    [
        (Called(200, b'{"chat_template": "the engine\'s own"}'), "the engine's own"),
        (Called(404, b"{}"), tiny.CHATML),
        (Called(200, b"{}"), tiny.CHATML),
        (Called(0, b"", "timeout"), tiny.CHATML),
    ],
)
async def test_an_engine_that_tells_its_template_is_believed(tmp_path, called, template):
    tiny.a_folder(tmp_path / "models" / "demo")
    table = RouteTable.build([a_route()], [a_server()])
    params = TokenProducer.Params(hub_cache=str(tmp_path), folders=(str(tmp_path / "models"),), ask_engines=True)
    urls = []

    async def call(asked):
        urls.append(asked.url)
        return called

    known = Tokenizers(params, lambda: table, lambda _server: ["http://a"], call)
    await known.look()

    assert urls == ["http://a/tokenizer_info"]
    assert known.find("demo")._sources["default"] == template


async def test_faults_are_logged_now_and_then(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    known = some_tokenizers(tmp_path)

    for _ in range(1001):
        known.fault("demo", Fault("template", "no"))

    assert [record.seen for record in caplog.records] == [1, 1001]


async def test_metrics_say_what_there_is(tmp_path):
    tiny.a_folder(tmp_path / "models" / "demo")
    known = some_tokenizers(tmp_path, folders=(str(tmp_path / "models"),))
    await known.look()

    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in known.metrics(Counts())
        for sample in family.samples
    }

    assert samples["matrixinfer_tokenizers", "ready"] == 1
    assert samples["matrixinfer_tokenizer_loads_total", "ok"] == 1


def test_every_model_of_the_routes_is_named():
    routes = RouteTable.build([a_route("demo", adapters=("sql",))], [a_server(model="org/base", annotation="x")])

    assert dict(tokenizers.named(routes)) == {
        "org/base": Named(("org/base",), "x", "ns/engines"),
        "sql": Named(("sql", "org/base"), "x", "ns/engines"),
    }
