"""`metrics-data-source`: the engines' metrics pages, which are always scraped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from extproc.scheduling import sections
from extproc.scheduling.framework import parameter


class MetricsDataSource:
    """Named in upstream's configurations; here every engine is asked for /metrics, about once a second while it works.

    `scheme` http: what stands in the ModelServer's workloadPort is used, whichever is said here. `path` /metrics: the only
    one. `insecureSkipVerify` true: engines' certificates are not checked; false is refused.
    Source: llm-d's metrics-data-source, of whose parameters those for certificates, port and interval are refused.
    """

    TYPE = "metrics-data-source"
    SERVES = sections.SOURCE

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        LACKS: ClassVar = {
            "port": "metrics are on the port that serves requests",
            "interval": "the pace follows the engine's work: about a second while it has some",
            **dict.fromkeys(
                ("caCertPath", "clientCertPath", "clientKeyPath"), "certificates of engines are not checked"
            ),
        }

        scheme: Literal["http", "https"] = "http"
        path: Literal["/metrics"] = "/metrics"
        insecure_skip_verify: bool = parameter(default=True)

        def __post_init__(self) -> None:
            if not self.insecure_skip_verify:
                raise ValueError("insecureSkipVerify must be true: the certificates of engines are not checked")

    def __init__(self, params: Params) -> None:
        self.params = params
