"""`openai-parser`: requests of OpenAI's API, which are always understood."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class OpenaiParser:
    """Named in upstream's configurations; here every format is recognised by its path, whether it is named or not.

    This one: /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/responses.
    No parameters. Source: llm-d's openai-parser.
    """

    TYPE = "openai-parser"
    SERVES = sections.PARSER
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
