from pathlib import Path

from matrixinfer.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"

ROUTE = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelRoute
metadata:
  name: demo
spec:
  modelName: demo
  rules:
  - targetModels:
    - modelServerNam: demo
"""


def test_every_example_is_valid(capsys):
    for folder in EXAMPLES.iterdir():
        assert main(["validate", str(folder)]) == 0
        assert "error" not in capsys.readouterr().out


def test_a_mistake_is_named_with_its_file_line_field_and_what_to_change(tmp_path, capsys):
    (tmp_path / "route.yaml").write_text(ROUTE)

    assert main(["validate", str(tmp_path)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{tmp_path}/route.yaml:9: error: spec.rules[0].targetModels[0].modelServerNam")
    assert "did you mean modelServerName?" in first


def test_a_warning_does_not_fail(tmp_path, capsys):
    (tmp_path / "web.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n")

    assert main(["validate", str(tmp_path)]) == 0
    assert "web.yaml:2: warning: kind: Deployment of apps/v1" in capsys.readouterr().out


def test_a_directory_that_does_not_exist_is_a_mistake(tmp_path, capsys):
    assert main(["validate", str(tmp_path / "none")]) == 1
    assert "is not a directory" in capsys.readouterr().out
