"""`sglanghttp-parser`: requests of SGLang's own API, which are always understood."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class SglanghttpParser:
    """Named in upstream's configurations; here every format is recognised by its path, whether it is named or not.

    This one: the engine's own paths, such as /generate.
    No parameters. Source: llm-d's sglanghttp-parser.
    """

    TYPE = "sglanghttp-parser"
    SERVES = sections.PARSER
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
