"""The answer to GET /v1/models, in a form that OpenAI's and Anthropic's clients both read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from extproc.traffic.routes import Listed


def listing(models: Iterable[Listed]) -> bytes:
    """Return the list of all models; `has_more`, `first_id` and `last_id` are Anthropic's paging, always one page."""
    data = [entry(listed) for listed in models]
    return msgspec.json.encode(
        {
            "object": "list",
            "data": data,
            "has_more": False,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
    )


def entry(listed: Listed) -> dict[str, Any]:
    """Return one model: OpenAI's keys, vLLM's `root` and `parent`, Anthropic's `type`, `display_name`, `created_at`."""
    return {
        "id": listed.name,
        "object": "model",
        "created": int(listed.created),
        "owned_by": "matrixinfer",
        "root": listed.name,
        "parent": listed.parent,
        "type": "model",
        "display_name": listed.name,
        "created_at": datetime.fromtimestamp(listed.created, UTC).isoformat().replace("+00:00", "Z"),
    }
