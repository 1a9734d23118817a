"""crds/ and docs/reference/ are what the types give."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrixinfer.api import generate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", generate.files())
def test_the_tree_holds_what_the_types_give(path):
    text = (ROOT / path).read_text(encoding="utf-8")

    assert text == generate.files()[path], "run `make generate`"


def test_no_other_file_pretends_to_be_a_crd():
    in_tree = {f"crds/{file.name}" for file in (ROOT / "crds").iterdir()}

    assert in_tree == {path for path in generate.files() if path.startswith("crds/")}
