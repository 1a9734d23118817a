"""One HTTP request and the sequences that answer it: gathers tokens, writes them in the form its endpoint speaks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import orjson

from engine.simulator import batch, server, text, tokenizer


class Form(Protocol):
    """How an endpoint words its answer. Streams are `opening`, a `token` each, `closing`; a plain answer is `body`."""

    request_id: str

    def opening(self, answer: "Answer") -> Iterable[bytes]:
        """Events before the first token."""

    def token(self, answer: "Answer", sequence: batch.Sequence, words: bytes) -> bytes | None:
        """Give the event for new text, given as a JSON string; `sequence.finish` tells if it is the last."""

    def closing(self, answer: "Answer") -> Iterable[bytes]:
        """Events after the last token."""

    def body(self, answer: "Answer") -> bytes:
        """Give the whole answer."""


class Answer:
    """What the engine and the connection meet in."""

    __slots__ = (
        "_open",
        "_opened",
        "_parts",
        "breaks_after",
        "broken",
        "form",
        "kv_transfer_params",
        "max_tokens",
        "n",
        "offering",
        "reply",
        "sequences",
        "stops",
        "stream",
    )

    def __init__(  # noqa: PLR0913 (what an answer is made of)
        self,
        *,
        reply: server.Reply,
        form: Form,
        sequences: Sequence[batch.Sequence],
        stops: Sequence[text.StopStrings | None],
        stream: bool,
        n: int,
        max_tokens: int | None,
    ) -> None:
        self.reply = reply
        self.form = form
        self.sequences = sequences
        self.stops = stops
        self.stream = stream
        self.n = n
        self.max_tokens = max_tokens
        self.breaks_after: int | None = None
        self.broken = False
        self.offering: Callable[[Answer], bool] | None = (
            None  # keeps the blocks for another engine; False: answer later
        )
        self.kv_transfer_params: dict[str, Any] | None = None
        self._open = len(sequences)
        self._opened = False
        self._parts = 0
        for sequence in sequences:
            sequence.owner = self

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; a prompt that is answered n times counts once."""
        return sum(sequence.prompt_tokens for sequence in self.sequences[:: self.n])

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the cache served, each prompt once."""
        return sum(sequence.cached_tokens for sequence in self.sequences[:: self.n])

    @property
    def stored_tokens(self) -> int:
        """Prompt tokens that this request put into the cache."""
        return sum(sequence.stored_tokens for sequence in self.sequences)

    @property
    def generated_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(sequence.output_tokens for sequence in self.sequences)

    def text_of(self, sequence: batch.Sequence) -> str:
        """Give the whole text of one choice."""
        stop = self.stops[sequence.index]
        if stop is not None:
            return stop.text
        return tokenizer.plain_text(sequence.output)

    def progress(self, sequence: batch.Sequence) -> None:
        """Take a token."""
        if self.stream and not self.reply.ended:
            if not self._opened:
                self._opened = True
                self._emit(self.form.opening(self))
            words = text.AS_JSON[sequence.tokens[-1]] if self.stops[sequence.index] is None else self._words(sequence)
            part = None if words is None else self.form.token(self, sequence, words)
            if part is not None:
                if self.breaks_after is None:
                    self.reply.part(part)
                else:
                    self._emit((part,))
        if sequence.finish is not None:
            self._open -= 1

    def flush(self) -> None:
        """Write what is due; complete the answer when every sequence is."""
        reply = self.reply
        if reply.ended:
            return
        if self._open:
            reply.flush()
        elif self.offering is not None:
            offering, self.offering = self.offering, None
            if offering(self):
                self.flush()
        elif self.stream:
            self._emit(self.form.closing(self))
            if not reply.ended:
                reply.end()
        elif self.breaks_after is None:
            reply.send(200, self.form.body(self))
        else:
            self.broken = True
            reply.send_half(self.form.body(self))

    def _words(self, sequence: batch.Sequence) -> bytes | None:
        """Give the new text that no stop string can take back any more."""
        stop = self.stops[sequence.index]
        words = stop.delta(last=sequence.finish is not None) if stop is not None else ""
        return orjson.dumps(words) if words or sequence.finish is not None else None

    def _emit(self, parts: Iterable[bytes]) -> None:
        reply = self.reply
        for part in parts:
            if self.breaks_after is not None and self._parts >= self.breaks_after:
                self.broken = True
                reply.cut(reset=True)
                return
            self._parts += 1
            reply.part(part)
