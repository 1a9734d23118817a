"""`models-data-extractor`: what is read of the engines' lists of models."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class ModelsDataExtractor:
    """Named in upstream's configurations; here the names of models, and which of them are adapters, are always read.

    No parameters. Source: llm-d's models-data-extractor.
    """

    TYPE = "models-data-extractor"
    SERVES = sections.EXTRACTOR
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
