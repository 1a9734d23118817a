"""One build of the module and one process a session; where no compiler has the sanitizers the tests are skipped, and say so."""

import pytest

from tests.modules.streams import Module, Unbuildable, build


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    try:
        program = build(folder)
    except Unbuildable as error:
        pytest.skip(f"the module cannot be built with sanitizers: {error}")
    started = Module(program, folder / "errors")
    yield started
    started.close()
