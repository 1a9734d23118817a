"""`pd-profile-handler`: upstream's former name and form of `disagg-profile-handler`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from extproc.plugins.disagg_profile_handler import two_profiles
from extproc.scheduling.framework import parameter


class PdProfileHandler:
    """As disagg-profile-handler, which should be used instead: see there for what the parameters mean.

    - `decodeProfile`, `prefillProfile`, `deciderPluginName`, `prefillLeg`, `acrossGroups`, `aggregatedFallback`,
      `prefillTimeoutSeconds`, `maxPrefillTries`, `bootstrapPort`, `prefixPluginType`, `prefixPluginName`: as there
    - `primaryPort` (default 0): upstream's, for data-parallel ranks behind one port; must be 0 here

    Source: llm-d's pd-profile-handler (deprecated there).
    """

    TYPE = "pd-profile-handler"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Profiles, the decider, and how a prefill leg runs."""

        decode_profile: str = parameter("decode")
        prefill_profile: str = parameter("prefill")
        decider_plugin_name: str = parameter("")
        prefix_plugin_type: str = parameter("")
        prefix_plugin_name: str = parameter("")
        primary_port: int = parameter(0, minimum=0, maximum=0)
        prefill_leg: Literal["proxy", "gateway"] = parameter("proxy")
        across_groups: bool = parameter(False)
        aggregated_fallback: Literal["engine", "always", "never"] = parameter("engine")
        prefill_timeout_seconds: float = parameter(45.0, minimum=0.1, maximum=55.0)
        max_prefill_tries: int = parameter(2, minimum=1, maximum=8)
        bootstrap_port: int = parameter(8998, minimum=1, maximum=65535)

        @property
        def decider(self) -> str:
            """Name of the plugin that decides; "" for the default."""
            return self.decider_plugin_name

    def __init__(self, params: Params) -> None:
        self.params = params

    def profiles(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the decode profile and the prefill profile. Raises ValueError if one of them is not there."""
        return two_profiles(self.TYPE, self.params.decode_profile, self.params.prefill_profile, names)
