"""A director whose ModelServer has prefill and decode pods, and engines that answer as a test says."""

import json
from dataclasses import dataclass, field

from extproc.errors import Busy
from extproc.scheduling.endpoints import Endpoint
from extproc.traffic.routes import RouteTable
from extproc.types import Call, Called
from matrixinfer.api import networking
from tests.director.stage import Stage, a_route

GROUPS = {
    "127.0.0.1": ("prefill", "a"),
    "127.0.0.2": ("decode", "a"),
    "127.0.0.3": ("prefill", "b"),
    "127.0.0.4": ("decode", "b"),
}
PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": "e"}
PREFILLED = Called(200, json.dumps({"kv_transfer_params": PARAMS}).encode())


@dataclass
class Engines:
    """What engines are asked, and what they say: by host, else the default."""

    answers: dict = field(default_factory=dict)
    default: object = PREFILLED
    calls: list = field(default_factory=list)

    def answer(self, call):
        self.calls.append(call)
        host = call.url.split("/")[2].rpartition(":")[0]
        said = self.answers.get(host, self.default)
        return said(call) if callable(said) else said


def a_split_server(connector="nixl", engine="vLLM", *, pd_group=True):
    labels = {"groupKey": "group", "prefillLabels": {"role": "prefill"}, "decodeLabels": {"role": "decode"}}
    return networking.ModelServer.model_validate(
        {
            "metadata": {"namespace": "ns", "name": "engines"},
            "spec": {
                "inferenceEngine": engine,
                "workloadSelector": {"matchLabels": {"app": "demo"}, **({"pdGroup": labels} if pd_group else {})},
                "workloadPort": {"port": 8000},
                **({"kvConnector": {"type": connector}} if connector else {}),
            },
        }
    )


def a_stage(groups=None, *, document=None, connector="nixl", engine="vLLM", labels=None, pd_group=True):
    """A stage over `groups`: address -> role, group; `labels` are further ones by address."""
    groups = GROUPS if groups is None else groups
    addresses = tuple(f"{host}:8000" for host in groups)
    stage = Stage(addresses, document)
    for host, (role, group) in groups.items():
        own = {"role": role, "group": group} | (labels or {}).get(host, {})
        stage.table.upsert(Endpoint(f"{host}:8000", f"ns/{host}", engine, own))
    stage.pools.refresh()
    stage.director.use_routes(RouteTable.build([a_route()], [a_split_server(connector, engine, pd_group=pd_group)]))
    return stage


def tell(story, engines):
    """Tell a story to its end; engines answer calls."""
    try:
        errand = next(story)
        while True:
            if isinstance(errand, Call):
                said = engines.answer(errand)
                errand = story.throw(said) if isinstance(said, Busy) else story.send(said)
            else:
                errand = story.send(errand.work())
    except StopIteration as end:
        return end.value
