"""Starts simulators as processes and talks to them."""

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    def events(self) -> list[tuple[str | None, Any]]:
        """Server-sent events: their names and their data, decoded where it is JSON."""
        events = []
        for block in self.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "data" in fields:
                data = fields["data"]
                events.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
        return events


def call(url: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None) -> Answered:
    """One exchange; `body` is sent as JSON unless it is text already."""
    data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    request = urllib.request.Request(  # noqa: S310 (our own servers)
        url, data=data, method=method, headers={"content-type": "application/json", **(headers or {})}
    )
    try:
        answer = urllib.request.urlopen(request, timeout=30)  # noqa: S310 (as above)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        names = {name.lower(): value for name, value in answer.headers.items()}
        return Answered(answer.status, names, answer.read().decode())


class Simulator:
    """A simulator process on free ports; a context manager."""

    def __init__(self, *flags: str, model: str = "demo") -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "engine.simulator", "--host", "127.0.0.1"),
                *("--port", "0", "--admin-port", "0", "--model", model, *flags),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._address()
        self.admin = self._address()

    def _address(self) -> str:
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the simulator did not start: {line!r}"
        return found.group()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def call(self, path: str, body: Any = None, **kwargs: Any) -> Answered:
        return call(self.url + path, body, **kwargs)

    def control(self, path: str, body: Any = None, **kwargs: Any) -> Any:
        return call(self.admin + path, body, **kwargs).json()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
