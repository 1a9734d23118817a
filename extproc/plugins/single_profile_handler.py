"""`single-profile-handler`: the one profile that there is."""

from __future__ import annotations

from extproc.scheduling.framework import NoParams


class SingleProfileHandler:
    """Run the only scheduling profile. More than one is a mistake in the configuration.

    No parameters. Source: llm-d's single-profile-handler.
    """

    TYPE = "single-profile-handler"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def profiles(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the one name. Raises ValueError if there are several."""
        if len(names) != 1:
            raise ValueError(f"single-profile-handler runs exactly one scheduling profile, there are {len(names)}")
        return names
