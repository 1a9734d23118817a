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
        if folder.name == "simulate":  # clusters as the simulator reads them, which are no manifests
            continue
        assert main(["validate", str(folder)]) == 0
        assert "error" not in capsys.readouterr().out


def test_every_example_of_a_scheduler_configuration_is_valid_by_its_path(capsys):
    files = [path for path in EXAMPLES.rglob("*.yaml") if "kind: EndpointPickerConfig" in path.read_text()]
    assert files

    for path in files:
        assert main(["validate", str(path)]) == 0
        assert not capsys.readouterr().out


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


SCHEDULER = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: load-aware-scorer
  parameters:
    treshold: 3
- type: burst-prefix-cache-producer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: -1
"""
MISTAKES = [
    ":7: error: plugins[1].parameters.treshold: unknown parameter; did you mean threshold? We have: threshold",
    ":8: error: plugins[2].type: burst-prefix-cache-producer is not supported: ",
    ":13: error: schedulingProfiles[0].plugins[0].weight: must be a number at least 0, not -1",
]


def test_a_scheduler_configuration_among_manifests_is_checked(tmp_path, capsys):
    (tmp_path / "route.yaml").write_text(ROUTE.replace("modelServerNam:", "modelServerName:"))
    (tmp_path / "scheduler.yaml").write_text(SCHEDULER)

    assert main(["validate", str(tmp_path)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "scheduler.yaml" in line]
    assert len(lines) == len(MISTAKES)
    for line, wanted in zip(lines, MISTAKES, strict=True):
        assert line.startswith(f"{tmp_path}/scheduler.yaml{wanted}")


def test_a_scheduler_configuration_is_checked_by_its_path(tmp_path, capsys):
    bad, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    bad.write_text(SCHEDULER)
    good.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n")

    assert main(["validate", str(good)]) == 0
    assert not capsys.readouterr().out
    assert main(["validate", str(bad)]) == 1
    assert capsys.readouterr().out.startswith(f"{bad}{MISTAKES[0]}")


def test_a_sound_scheduler_configuration_is_not_called_without_effect(tmp_path, capsys):
    (tmp_path / "scheduler.yaml").write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n")

    assert main(["validate", str(tmp_path)]) == 0
    assert not capsys.readouterr().out


def test_a_single_manifest_is_sent_to_its_directory(tmp_path, capsys):
    (tmp_path / "route.yaml").write_text(ROUTE)

    assert main(["validate", str(tmp_path / "route.yaml")]) == 0
    assert "route.yaml:1: warning: is no EndpointPickerConfig: give the directory" in capsys.readouterr().out
