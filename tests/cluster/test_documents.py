"""YAML text to objects with lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cluster.documents import parse

BOMB = "x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x{number}: &x{number} [{', '.join([f'*x{number - 1}'] * 10)}]\n" for number in range(1, 7)
)  # ten million values in seven lines


def values(text: str):
    documents, findings = parse(text, "f.yaml")
    assert findings == []
    return [document.manifest for document in documents]


def test_every_document_of_a_file_is_read():
    assert values("a: 1\n---\nb: 2\n---\n# only a comment\n---\nc: 3\n") == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_lines_count_from_the_top_of_the_file():
    documents, _ = parse("# head\na: 1\n---\nspec:\n  rules:\n  - name: x\n    weight: 1\n  - name: y\n", "f.yaml")

    lines = documents[1]
    assert [lines.line(("spec", "rules", 0, "weight")), lines.line(("spec", "rules", 1))] == [7, 8]
    assert lines.line(("spec", "missing", "deeper")) == 4
    assert lines.line() == 4


def test_one_broken_document_leaves_the_others():
    documents, findings = parse("a: 1\n---\nb: [1, 2\n---\nc: 3\n", "f.yaml")

    assert [document.manifest for document in documents] == [{"a": 1}, {"c": 3}]
    assert [(finding.file, finding.line) for finding in findings] == [("f.yaml", 3)]
    assert "not YAML" in findings[0].message


def test_a_list_is_opened_and_keeps_its_lines():
    text = "apiVersion: v1\nkind: List\nitems:\n- kind: A\n- kind: B\n  spec:\n    x: 1\n"
    documents, _ = parse(text, "f.yaml")

    assert [document.manifest for document in documents] == [{"kind": "A"}, {"kind": "B", "spec": {"x": 1}}]
    assert documents[1].line(("spec", "x")) == 7


def test_the_items_of_a_typed_list_get_its_kind():
    assert values("apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: p}\n") == [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    ]


def test_values_are_what_json_can_hold():
    text = "date: 2024-01-01\ntime: 12:30\nyes: true\n8: x\nnothing:\nhex: 0x10\nfloat: 1e3\nport: '80'\n"

    assert values(text) == [
        {
            "date": "2024-01-01",
            "time": "12:30",
            "yes": True,
            "8": "x",
            "nothing": None,
            "hex": 16,
            "float": "1e3",
            "port": "80",
        }
    ]


def test_anchors_and_merge_keys_work():
    text = "base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\nsame: *base\n"

    assert values(text) == [{"base": {"a": 1, "b": 2}, "use": {"a": 1, "b": 3}, "same": {"a": 1, "b": 2}}]


def test_json_is_read_tabs_and_surrogates_included():
    assert values('{\n\t"a": "\\ud83d\\ude00",\n\t"b": [1, 2]\n}') == [{"a": "\U0001f600", "b": [1, 2]}]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is given twice, first in line 1"),
        ("a:\n\tb: 1\n", 2, "spaces"),
        ("a: .nan\n", 1, "JSON"),
        ("b: 1\na: 99999999999999999999\n", 2, "JSON"),
        ("a: !!python/object:os.system x\n", 1, "!!python"),
        ("a: !!binary aGk=\n", 1, "!!binary"),
        ("? {a: 1}\n: 2\n", 1, "key"),
        ("a: {{ .Values.name }}\n", 1, "template"),
        ("a: &a [*a]\n", 1, "alias"),
        ("a: b: c\n", 1, "mapping values"),
        (BOMB, 1, "aliases"),
        ("[" * 100_000, 1, "nested"),
        ("- " * 100_000, 1, "nested"),
        ("a: *missing\n", 1, "alias"),
        ("a: \x00\n", 1, "not YAML"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(text, line, said):
    documents, findings = parse(text, "f.yaml")

    assert documents == []
    [finding] = findings
    assert said in finding.message
    assert finding.line == line


@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#%@,\n \t0~<")), max_size=60))
def test_any_text_gives_documents_or_findings(text):
    documents, findings = parse(text, "f.yaml")

    assert all(1 <= finding.line <= text.count("\n") + 1 for finding in findings)
    assert all(1 <= document.line() <= text.count("\n") + 1 for document in documents)


def test_a_comment_that_is_indented_far_takes_no_longer():
    documents, findings = parse(f"# a\n#{' ' * 5000}b\n{' ' * 5000}# c\na: 1\n", "f.yaml")

    assert [document.manifest for document in documents] == [{"a": 1}]
    assert findings == []
