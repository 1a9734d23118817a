from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from extproc import plugins
from extproc.scheduling import config, parameters

PAGE = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
EXAMPLES = [one for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "kind:" in one]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_loads(example):
    config.build(config.load(config.parse(example), plugins.BUILTIN))


def test_the_complete_example_is_the_default():
    written = config.load(config.parse(EXAMPLES[0]), plugins.BUILTIN)
    default = config.load(plugins.DEFAULT, plugins.BUILTIN)

    assert (written.profile, written.prefix) == (default.profile, default.prefix)
    assert set(written.plugins) == set(default.plugins)


@pytest.mark.parametrize("plugin", plugins.BUILTIN.types, ids=lambda one: one.TYPE)
def test_the_page_has_every_plugin_with_its_parameters_and_defaults(plugin):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{plugin.TYPE}`")]
    shown = dict(re.findall(r"`(\w+)`(?: ([\w./-]+))?", row.rsplit(" | ", 1)[1]))

    wanted = {parameters.wire_name(one): one.default for one in fields(plugin.Params)}
    assert set(shown) == set(wanted)
    for name, default in wanted.items():
        if isinstance(default, bool):
            assert shown[name] == str(default).lower()
        elif isinstance(default, int | float):
            assert float(shown[name]) == default
        else:
            assert shown[name] == (default if isinstance(default, str) else "")


@pytest.mark.parametrize("plugin", plugins.BUILTIN.types, ids=lambda one: one.TYPE)
def test_every_plugin_has_a_file_of_its_name_and_says_what_it_does(plugin):
    assert plugin.__module__ == "extproc.plugins." + plugin.TYPE.replace("-", "_")
    told = "".join(one.__doc__ for one in plugins.BUILTIN.types if one.Params is plugin.Params)
    for name in (parameters.wire_name(one) for one in fields(plugin.Params)):
        assert name in told
