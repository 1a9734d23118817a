"""Looks and snapshots that say what matters in a test."""

import io

from rich.console import Console

from matrixinfer.cli import pages
from matrixinfer.cli.view.samples import samples
from matrixinfer.cli.view.snapshot import DecisionRow, EndpointRow, Gateway, Look, ModelRow, Snapshot, Traffic

HEALTHY = "matrixinfer_feed_connected 1.0\n"


def an_endpoint(number=0, **fields):
    return pages.Endpoint(
        **{"address": f"127.0.0.{number}:8000", "pod": f"default/demo-{number}", "ready": True, "scraped_s_ago": 0.1}
        | {"servers": ("default/demo",)}
        | fields
    )


def a_look(at=0.0, metrics="", *, endpoints=(), decisions=(), refusals=(), routes=None):
    return Look(at, samples(HEALTHY + metrics), endpoints, decisions, refusals, routes or pages.Routes(("demo",)))


def a_row(number, **fields):
    traffic = Traffic(requests_s=1.5, output_s=120, prompt=1000, cached=880, requests=90)
    given = {"address": f"127.0.0.{number}:8000", "pod": f"demo-{number}", "state": "ready", "inflight": 2}
    return EndpointRow(**given | {"waiting": 0.0, "kv_usage": 0.42, "traffic": traffic, "server": "demo"} | fields)


def a_decision(number=0, **fields):
    given = {"s_ago": float(number), "ticket": f"40748ad5-{number}", "request_id": f"request-{number}", "model": "demo"}
    return DecisionRow(**given | {"pod": "demo-0", "matched": "9/10", "prompt_tokens": 160, "end": "complete"} | fields)


def a_gateway(number=1, silent_s=None):
    return Gateway(number, f"http://127.0.0.1:{8079 + number}", f"http://127.0.0.1:{14999 + number}", silent_s)


def a_snapshot(count=4, **fields):
    traffic = Traffic(6.0, 100, 480, 4000, 3520, 3, 360, 0.018, 0.087)
    given = {
        "gateways": (a_gateway(),),
        "up_s": 192.0,
        "total": traffic,
        "served": 1234.0,
        "endpoints": tuple(a_row(number) for number in range(count)),
        "models": (ModelRow("demo", (f"demo {count}/{count}",), served=True, traffic=traffic),),
        "decisions": tuple(a_decision(number) for number in range(5)),
    }
    return Snapshot(**given | fields)


def text(renderable, width):
    """What a terminal without colours shows of it."""
    console = Console(file=io.StringIO(), width=width, height=100, color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
