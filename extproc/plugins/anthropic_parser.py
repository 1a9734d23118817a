"""`anthropic-parser`: requests of Anthropic's messages, which are always understood."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class AnthropicParser:
    """Named in upstream's configurations; here every format is recognised by its path, whether it is named or not.

    This one: /v1/messages and /v1/messages/count_tokens.
    No parameters. Source: llm-d's anthropic-parser.
    """

    TYPE = "anthropic-parser"
    SERVES = sections.PARSER
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
