"""`disagg-profile-handler`: one scheduling profile for decode endpoints, one for prefill endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from extproc.scheduling.framework import parameter


@dataclass(frozen=True, slots=True)
class Deciders:
    """Which plugin decides about each stage."""

    prefill: str = ""
    encode: str = ""


class DisaggProfileHandler:
    """Run the decode profile; where its decider says so, the prefill profile, too.

    - `decodeProfile`, `prefillProfile` (default `decode`, `prefill`): names of the profiles
    - `deciders.prefill`, or `deciderPluginName`: which plugin decides (default: always disaggregate)
    - `prefillLeg` (default `proxy`): who performs it: `proxy` sends `x-prefiller-host-port` to a proxy in the decode pod,
      as upstream does; `gateway` lets the picker perform it before Envoy sends the request on
    - `acrossGroups` (default false): pair endpoints of different groups (`pdGroup.groupKey`), too
    - `aggregatedFallback` (default `engine`): whether a decode endpoint may compute a prompt itself: `always`, `never`,
      or what its engine can (vLLM: yes, SGLang in decode mode: no)
    - `prefillTimeoutSeconds` (default 45), `maxPrefillTries` (default 2): bounds of the prefill leg
    - `bootstrapPort` (default 8998): of Mooncake's and SGLang's prefill engines

    - `stageOrder` (`decode-first`, the only one), `prefixPluginType`, `prefixPluginName`: upstream's; there is one prefix index

    Encode stages are refused: engines behind this picker encode images themselves. Source: llm-d's
    disagg-profile-handler; `prefillLeg`, `acrossGroups`, `aggregatedFallback` and the bounds are our own.
    """

    TYPE = "disagg-profile-handler"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Profiles, deciders, and how a prefill leg runs."""

        decode_profile: str = parameter("decode")
        prefill_profile: str = parameter("prefill")
        decider_plugin_name: str = parameter("")
        deciders: Deciders = Deciders()
        stage_order: Literal["decode-first"] = parameter("decode-first")
        prefix_plugin_type: str = parameter("")  # upstream's: there is one prefix index here
        prefix_plugin_name: str = parameter("")
        prefill_leg: Literal["proxy", "gateway"] = parameter("proxy")
        across_groups: bool = parameter(False)
        aggregated_fallback: Literal["engine", "always", "never"] = parameter("engine")
        prefill_timeout_seconds: float = parameter(45.0, minimum=0.1, maximum=55.0)
        max_prefill_tries: int = parameter(2, minimum=1, maximum=8)
        bootstrap_port: int = parameter(8998, minimum=1, maximum=65535)

        def __post_init__(self) -> None:
            if self.deciders.encode:
                raise ValueError("deciders.encode is not supported: engines encode images themselves; remove it")
            if self.deciders.prefill and self.decider_plugin_name not in ("", self.deciders.prefill):
                raise ValueError("deciders.prefill and deciderPluginName name different plugins; keep one of them")

        @property
        def decider(self) -> str:
            """Name of the plugin that decides; "" for the default."""
            return self.deciders.prefill or self.decider_plugin_name

    def __init__(self, params: Params) -> None:
        self.params = params

    def profiles(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the decode profile and the prefill profile. Raises ValueError if one of them is not there."""
        return two_profiles(self.TYPE, self.params.decode_profile, self.params.prefill_profile, names)


def two_profiles(type_name: str, decode: str, prefill: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return both names. Raises ValueError if one of them is no profile."""
    for key, name in (("decodeProfile", decode), ("prefillProfile", prefill)):
        if name not in names:
            raise ValueError(f"{type_name} runs a profile called {name} ({key}), and there is none")
    return decode, prefill
