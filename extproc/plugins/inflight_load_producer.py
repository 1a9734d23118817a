"""`inflight-load-producer`: the counts of requests and tokens in flight, which are always kept."""

from __future__ import annotations

from extproc.scheduling.framework import NoParams


class InflightLoadProducer:
    """Named in upstream's configurations; here the director counts for every profile, so there is nothing to set.

    No parameters. Source: llm-d's inflight-load-producer.
    """

    TYPE = "inflight-load-producer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
