"""`disagg-headers-handler`: upstream's way to say that `x-prefiller-host-port` is sent."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.scheduling.framework import parameter


class DisaggHeadersHandler:
    """Accepted so that upstream's files load: the profile handler sends the header by itself (`prefillLeg: proxy`).

    - `prefillProfile` (default `prefill`): read by nobody here; the profile handler names its profiles
    - `encodeProfile` (default `encode`): likewise

    Source: llm-d's disagg-headers-handler (deprecated there).
    """

    TYPE = "disagg-headers-handler"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        prefill_profile: str = parameter("prefill")
        encode_profile: str = parameter("encode")

    def __init__(self, params: Params) -> None:
        self.params = params
