"""`vllmhttp-parser`: requests of vLLM's own API, which are always understood."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class VllmhttpParser:
    """Named in upstream's configurations; here every format is recognised by its path, whether it is named or not.

    This one: the engine's own paths, such as /tokenize and /v1/rerank.
    No parameters. Source: llm-d's vllmhttp-parser.
    """

    TYPE = "vllmhttp-parser"
    SERVES = sections.PARSER
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
