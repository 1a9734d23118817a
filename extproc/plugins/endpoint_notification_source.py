"""`endpoint-notification-source`: news of endpoints that come and go."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class EndpointNotificationSource:
    """Named in upstream's configurations; here everything that needs to know is always told.

    No parameters. Source: llm-d's endpoint-notification-source.
    """

    TYPE = "endpoint-notification-source"
    SERVES = sections.SOURCE
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
