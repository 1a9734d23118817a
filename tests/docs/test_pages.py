"""The pages keep their word: what they tell to type works and says what they show, their YAML is valid, their links lead somewhere."""

import argparse
import re

import pytest
import yaml

from controllers import ir
from controllers.xds import replies
from engine.simulator import settings
from extproc import errors, plugins
from extproc.scheduling import config
from matrixinfer.cli import up
from matrixinfer.cluster import directory
from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, runnable
from tests.docs.shell import Reader
from tests.limits import server

OURS = ("networking.matrixinfer.ai/v1alpha1", "workload.matrixinfer.ai/v1alpha1", "llm-d.ai/v1alpha2", "v1")
SCHEDULER = "EndpointPickerConfig"
KUBETEST = ROOT / ".build" / "kubernetes" / "kubetest"
RUNNABLE = [page for page in PAGES if runnable(page)]


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.envoy
@pytest.mark.parametrize("page", RUNNABLE, ids=named)
def test_every_command_works_and_says_what_the_page_shows(page, tmp_path):
    if any("kubernetes" in block.tags for block in blocks(page)) and not KUBETEST.is_file():
        pytest.skip("the page needs an API server: `make kubetest`")
    if any("redis" in block.tags for block in blocks(page)) and server.binary() is None:
        pytest.skip("the page needs a redis-server")
    with Reader(tmp_path) as reader:
        for block in blocks(page):
            try:
                reader.follow(block)
            except AssertionError as error:
                raise AssertionError(f"{named(page)}:{block.line}: {error}") from error


def yaml_blocks():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml":
                yield pytest.param(block, id=f"{named(page)}:{block.line}")


@pytest.mark.parametrize("block", list(yaml_blocks()))
def test_every_yaml_block_is_valid(block, tmp_path):
    documents = [document for document in yaml.safe_load_all(block.text) if isinstance(document, dict)]
    assert documents

    if any(document.get("kind") == SCHEDULER for document in documents):
        config.build(config.load(config.parse(block.text), plugins.BUILTIN))
    elif any(document.get("apiVersion") in OURS for document in documents):
        (tmp_path / "block.yaml").write_text(block.text)
        reading = directory.read(tmp_path)
        dangling = [
            finding
            for finding in reading.findings
            if finding.severity == "error"
            and ("no ModelServer" in finding.message or "no ExternalModelProvider" in finding.message)
        ]
        assert [str(finding) for finding in reading.findings if finding.severity == "error"] == [
            str(d) for d in dangling
        ]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page

        assert target.exists(), f"{named(page)} links to {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{named(page)} links to {path}#{anchor}"


def test_every_page_can_be_reached_from_the_map():
    index = ROOT / "docs" / "index.md"
    reached = {(index.parent / path).resolve() for path, _ in links(index) if path}

    assert {page for page in PAGES if page.parent == index.parent} - {index} <= reached


def flags_in(page):
    rows = [line.split(" | ")[0] for line in page.read_text().splitlines() if line.startswith("| `--")]
    return {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)`", row)}


def flags_of(parser):
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")} - {
        "--help"
    }


def test_the_quickstart_lists_every_flag_of_up():
    parser = argparse.ArgumentParser()
    up.arguments(parser)

    assert flags_in(ROOT / "docs" / "quickstart.md") == flags_of(parser)


def test_the_simulators_page_lists_every_flag():
    assert flags_in(ROOT / "docs" / "simulator.md") == flags_of(settings._parser())


def test_the_data_paths_table_has_every_refusal():
    page = (ROOT / "docs" / "data-path.md").read_text()
    by_picker = {(each.status, each.reason, each.code) for each in errors.Rejection.__subclasses__()}
    by_envoy = {reply.reason for reply in replies._replies(ir.Limits())} - {"internal"}

    for status, reason, code in by_picker:
        shown = f"`{code}`" if code else "\N{EN DASH}"
        assert f"| {status} | `{reason}` | {shown} |" in page
    for reason in by_envoy:
        assert f"`{reason}`" in page
