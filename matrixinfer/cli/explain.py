"""Say why a request went where it went: its candidates with their scores, the reason, and how it ended.

ID is the x-request-id of the answer, or the ticket in x-matrixinfer-decision. The picker keeps its most recent decisions
and refusals.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from matrixinfer.cli.exits import Exit

if TYPE_CHECKING:
    from matrixinfer.cli import pages

ADMIN = "http://127.0.0.1:15000"
PATIENCE_S = 5.0
_OK, _NOT_FOUND = 200, 404


class Unanswered(Exception):
    """There is nothing to show; the message says why."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("id", metavar="ID", help="x-request-id of the answer, or the decision's ticket")
    parser.add_argument(
        "--admin", metavar="URL", type=_url, default=ADMIN, help=f"the picker's admin port (default {ADMIN})"
    )
    parser.add_argument("--json", action="store_true", help="the picker's answer as it is")


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    from matrixinfer.cli import pages  # noqa: PLC0415 - see main.py

    try:
        _explain(arguments.id, arguments.admin, raw=arguments.json)
    except Unanswered as error:
        print(f"matrixinfer explain: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        return Exit.MISTAKE
    except pages.NotAPicker as error:
        print(f"matrixinfer explain: {arguments.admin}: {error}", file=sys.stderr)  # noqa: T201
        return Exit.MISTAKE
    return Exit.CLEAN


def _explain(wanted: str, admin: str, *, raw: bool) -> None:
    """Print the answer. Raises Unanswered and NotAPicker."""
    from urllib.parse import quote  # noqa: PLC0415 - see main.py

    from matrixinfer.cli import pages  # noqa: PLC0415
    from matrixinfer.cli.view import words  # noqa: PLC0415

    status, answer = _asked(admin, f"/decisions/{quote(wanted, safe='')}")
    refused = _refused(answer) if status == _NOT_FOUND else None
    if status != _OK and refused is None:
        raise Unanswered(_trouble(admin, status, answer))
    if raw:
        sys.stdout.write(answer.decode())
    elif refused is not None:
        why = f"refused with {refused.status} ({refused.reason})"
        sys.stdout.write(words.printable(f"request {refused.request_id} was sent nowhere: {why}") + "\n")
        sys.stdout.write(words.printable(refused.message) + "\n")
    else:
        decision = pages.read(answer, pages.Decision)
        _, listed = _asked(admin, "/endpoints")
        _show(decision, {each.address: each.pod for each in pages.read(listed, pages.Endpoints).endpoints})


def _show(decision: pages.Decision, pods: dict[str, str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - see main.py

    from matrixinfer.cli.explanation import explanation  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)  # a pipe has no width, and a table must not be folded for it
    console.print(explanation(decision, pods, width=console.width))


def _asked(admin: str, path: str) -> tuple[int, bytes]:
    """Return the status and the page. Raises Unanswered."""
    import http.client  # noqa: PLC0415 - see main.py
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the admin port is on loopback
    try:
        with opener.open(admin + path, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:  # URLError is one
        why = getattr(error, "reason", error)
        raise Unanswered(
            f"no picker answers at {admin} ({why}): is `matrixinfer up` running? "
            "Give its --admin-port, such as --admin http://127.0.0.1:15001"
        ) from error
    except http.client.HTTPException as error:
        raise Unanswered(f"{admin} is not the admin port of a picker: it does not speak HTTP") from error


def _refused(page: bytes) -> pages.Refusal | None:
    """Return the refusal that the page tells of; None if it knows nothing of the request."""
    from matrixinfer.cli import pages  # noqa: PLC0415 - see main.py

    try:
        return pages.read(page, pages.Refusal)
    except pages.NotAPicker:
        return None


def _trouble(admin: str, status: int, page: bytes) -> str:
    from matrixinfer.cli import pages  # noqa: PLC0415 - see main.py

    try:
        return pages.read(page, pages.Trouble).error
    except pages.NotAPicker:
        return f"{admin} is not the admin port of a picker: it answers {status}"


def _url(text: str) -> str:
    from urllib.parse import urlsplit  # noqa: PLC0415 - only where one is given

    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme != "http" or not url.hostname or url.path not in ("", "/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an admin address, such as {ADMIN}")
    return f"http://{url.netloc}"
