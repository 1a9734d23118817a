"""`models-data-source`: the engines' lists of models, which are always asked for."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class ModelsDataSource:
    """Named in upstream's configurations; here every engine is asked for /v1/models, every 15 seconds.

    No parameters. Source: llm-d's models-data-source.
    """

    TYPE = "models-data-source"
    SERVES = sections.SOURCE
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
