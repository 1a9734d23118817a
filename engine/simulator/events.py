"""KV events on the wire: ZMQ PUB for what happens, ZMQ ROUTER for what happened, in vLLM's frames.

A published message is topic, sequence number (8 bytes, big endian), payload; the payload is msgpack of
[time, [event, ...], data-parallel rank], events as maps. A replay request names the first sequence number wanted; the answer
is one message for each batch still in the buffer, and one with number -1 to end.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.simulator import kvcache

_END = (-1).to_bytes(8, "big", signed=True)
HIGH_WATER_MARK = 100_000


@dataclass(frozen=True, slots=True)
class Feed:
    """Where events go and how they are labelled."""

    endpoint: str
    replay_endpoint: str | None
    topic: str
    buffer_steps: int
    rank: int

    def as_config(self) -> dict[str, Any]:
        """Give what GET /kv_event_sources tells of it."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "buffer_steps": self.buffer_steps,
            "hwm": HIGH_WATER_MARK,
            "max_queue_size": HIGH_WATER_MARK,
            "topic": self.topic,
        }


def as_map(event: kvcache.CacheEvent, block_size: int) -> dict[str, Any]:
    """Give one event as vLLM's map."""
    match event:
        case kvcache.Stored():
            return {
                "type": "BlockStored",
                "block_hashes": event.hashes,
                "parent_block_hash": event.parent,
                "token_ids": event.tokens.tolist(),
                "block_size": block_size,
                "lora_id": event.origin.lora_id,
                "medium": "GPU",
                "lora_name": event.origin.lora,
                "extra_keys": _extra_keys(event),
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }
        case kvcache.Removed():
            return {"type": "BlockRemoved", "block_hashes": [event.block_hash], "medium": "GPU", "group_idx": 0}
        case kvcache.Cleared():
            return {"type": "AllBlocksCleared"}


def _extra_keys(event: kvcache.Stored) -> list[list[str] | None]:
    lora = [event.origin.lora] if event.origin.lora is not None else []
    keys: list[list[str] | None] = [lora or None] * len(event.hashes)
    if event.starts_sequence and event.origin.salt is not None:
        keys[0] = [*lora, event.origin.salt]
    return keys


class Publisher:
    """The two sockets, the sequence number, and the buffer behind the replay."""

    def __init__(self, feed: Feed, *, block_size: int) -> None:
        import zmq  # noqa: PLC0415 (only engines with events pay for it)

        self._zmq = zmq
        self._feed = feed
        self._block_size = block_size
        self._topic = feed.topic.encode()
        self._encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self._sequence = 0
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=feed.buffer_steps)
        self._context = zmq.Context()
        self._events = self._context.socket(zmq.PUB)
        self._events.set_hwm(HIGH_WATER_MARK)
        self._events.bind(feed.endpoint)
        self._replay = None
        if feed.replay_endpoint is not None:
            self._replay = self._context.socket(zmq.ROUTER)
            self._replay.bind(feed.replay_endpoint)
            asyncio.get_running_loop().add_reader(self._replay, self._serve_replay)

    def publish(self, events: Iterable[kvcache.CacheEvent]) -> None:
        """Send one batch of events."""
        maps = [as_map(event, self._block_size) for event in events]
        payload = self._encode([time.time(), maps, self._feed.rank])
        number = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        self._buffer.append((number, payload))
        self._events.send_multipart((self._topic, number, payload), self._zmq.NOBLOCK)

    def close(self) -> None:
        """Close the sockets; what is not sent yet is dropped."""
        if self._replay is not None:
            asyncio.get_running_loop().remove_reader(self._replay)
        self._context.destroy(linger=0)

    def _serve_replay(self) -> None:
        replay, zmq = self._replay, self._zmq
        while replay is not None and replay.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            frames = replay.recv_multipart(zmq.NOBLOCK)
            if len(frames) != 3:  # noqa: PLR2004 (client, empty, first number); others are not for us
                continue
            client, _, first = frames
            for number, payload in self._buffer:
                if number >= first:
                    replay.send_multipart((client, b"", self._topic, number, payload), zmq.NOBLOCK)
            replay.send_multipart((client, b"", b"", _END, b""), zmq.NOBLOCK)
