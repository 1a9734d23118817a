"""Token blocks: a request's prefix as the engine's own token ids, in a chain; text blocks where there are none.

The loop looks pieces up and encodes little ones; more than `inline_bytes` of unknown text is encoded beside the loop, and
more than `pending_bytes` of it is not waited for. Text blocks take the place of token blocks for that request then, as
they do for a model without a tokenizer and a body that a template refuses. Requests that bring the same unknown text at
once have it encoded once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from extproc.tokens import chain
from extproc.tokens.model import Fault, Prompt, bare_ids
from extproc.types import Prefix, Unread

if TYPE_CHECKING:
    from extproc.tokens.chain import TokenIds
    from extproc.tokens.memo import Found
    from extproc.tokens.model import ModelTokenizer
    from extproc.tokens.remote import Remote
    from extproc.tokens.text import TextBlocks
    from extproc.types import Called, InferenceRequest

_QUICKER: Final = 6  # times as fast is what tiktoken encodes
_ANSWERED: Final = Prompt("", None, special=False, exact=True)  # what an engine told the ids of


class Tokenizers(Protocol):
    """Whoever knows the models' tokenizers."""

    def find(self, model: str) -> ModelTokenizer | None:
        """Return the tokenizer of `model`, as its engine knows it; None: there is none, or not yet."""
        ...

    @property
    def remote(self) -> Remote | None:
        """Who asks engines where there is no tokenizer; None: nobody."""
        ...

    def fault(self, model: str, fault: Fault) -> None:
        """Hear that a request could not be told in token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """How prompts are cut, and how much is done where.

    `inline_bytes`: 4096 take the loop about a millisecond, a thread more than it saves; six times as much where encoding is
    quick. `pending_bytes`: 2 MiB are 0.1 to 0.7 seconds of one core, the longest that a request waits for the texts of others.
    """

    block_tokens: int = 16
    max_blocks: int = 8192
    inline_bytes: int = 4096
    pending_bytes: int = 2 << 20


@dataclass(slots=True)
class Counts:
    """What was done, for metrics."""

    # by what their prefix is: "tokens", "no-tokenizer", "busy", a fault's reason
    requests: Counter[str] = field(default_factory=Counter)
    pending_bytes: int = 0  # being encoded beside the loop
    encoded_bytes: int = 0
    known_bytes: int = 0


class _Job(NamedTuple):
    """Text that is being encoded beside the loop."""

    text: str
    made: list[TokenIds]  # empty until it is done


class TokenBlocks:
    """Chains over blocks of token ids."""

    def __init__(self, tokenizers: Tokenizers, text: TextBlocks, bounds: Bounds, counts: Counts) -> None:
        """`text`: takes the place of token blocks; `counts`: outlive a change of the configuration."""
        self.counts = counts
        self._tokenizers = tokenizers
        self._text = text
        self._bounds = bounds
        self._jobs: dict[bytes, _Job] = {}
        self._stretches = chain.Stretches()

    def prefix(self, request: InferenceRequest, model: str) -> Prefix | Unread:
        """Return the chain over the engine's tokens, or what has to be done for it."""
        tokenizer = self._tokenizers.find(model)
        if tokenizer is None:
            return self._without(request, model)
        try:
            prompt = tokenizer.prompt(request)
            if prompt.ids is not None:
                return self._by_ids(request, model, prompt, prompt.ids)
            found = tokenizer.encoder.find(prompt.text)
        except (Fault, UnicodeEncodeError) as error:
            fault = error if isinstance(error, Fault) else Fault("body", "a lone surrogate, which no tokenizer takes")
            self._tokenizers.fault(model, fault)
            return self._by_text(request, model, fault.reason)
        self.counts.known_bytes += found.size - found.missing
        self.counts.encoded_bytes += found.missing
        inline = self._bounds.inline_bytes
        if found.missing > (inline if tokenizer.encoder.quick is None else inline * _QUICKER):
            return self._aside(request, model, tokenizer, prompt, found)
        made = tokenizer.encoder.encode(found.texts) if found.texts else ()
        ids = tokenizer.around(tokenizer.encoder.joined(found, made), prompt)
        return self._by_ids(request, model, prompt, ids)

    def _without(self, request: InferenceRequest, model: str) -> Prefix | Unread:
        """Do without a tokenizer: a prompt of token ids needs none, and an engine may be asked."""
        bare = bare_ids(request)
        if bare is not None and bare.ids is not None:
            return self._by_ids(request, model, bare, bare.ids)
        remote = self._tokenizers.remote
        question = remote.question(request, model) if remote is not None else None
        if remote is None or question is None:
            return self._by_text(request, model, "no-tokenizer")
        if question.ids is not None:
            return self._by_ids(request, model, _ANSWERED, question.ids)

        def read(called: Called) -> Prefix:
            ids = remote.answered(question, called)
            if ids is None:
                return self._by_text(request, model, "no-answer")
            return self._by_ids(request, model, _ANSWERED, ids)

        def otherwise() -> Prefix:
            remote.dropped()
            return self._by_text(request, model, "busy")

        return Unread(question.call, read, otherwise)

    def _aside(
        self, request: InferenceRequest, model: str, tokenizer: ModelTokenizer, prompt: Prompt, found: Found
    ) -> Prefix | Unread:
        """Have what is missing encoded beside the loop."""
        encoder = tokenizer.encoder
        jobs = self._jobs
        mine: dict[bytes, _Job] = {}
        for key, text in zip(found.keys, found.texts, strict=True):
            if key not in jobs and key not in mine:
                mine[key] = _Job(text, [])
        size = found.missing if mine else 0
        pending = self.counts.pending_bytes
        if pending and pending + size > self._bounds.pending_bytes:  # a text alone may be as long as it is
            return self._by_text(request, model, "busy")
        jobs.update(mine)
        wanted = [jobs[key] for key in found.keys]
        self.counts.pending_bytes += size

        def work() -> list[TokenIds]:
            todo = {id(job): job for job in wanted if not job.made}
            for job, ids in zip(todo.values(), encoder.encode([job.text for job in todo.values()]), strict=True):
                job.made.append(ids)
            return [job.made[0] for job in wanted]

        def over() -> None:
            self.counts.pending_bytes -= size
            for key in mine:
                jobs.pop(key, None)

        def read(made: list[TokenIds]) -> Prefix:
            over()
            return self._by_ids(request, model, prompt, tokenizer.around(encoder.joined(found, made), prompt))

        def otherwise() -> Prefix:
            over()
            return self._by_text(request, model, "busy")

        return Unread(work, read, otherwise)

    def _by_ids(self, request: InferenceRequest, model: str, prompt: Prompt, ids: TokenIds) -> Prefix:
        self.counts.requests["tokens"] += 1
        root = chain.root(model, request.cache_salt)
        hashes, words = self._stretches.chain(ids, root, self._bounds.block_tokens, self._bounds.max_blocks)
        lasting = (len(ids) - prompt.opening) // self._bounds.block_tokens if prompt.opening else None
        return Prefix(hashes, self._bounds.block_tokens, len(ids) + prompt.more, prompt.exact, lasting, words)

    def _by_text(self, request: InferenceRequest, model: str, why: str) -> Prefix:
        self.counts.requests[why] += 1
        return self._text.prefix(request, model)
