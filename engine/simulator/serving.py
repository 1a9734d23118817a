"""From a request's body to sequences in the batch, the same way for every endpoint that generates."""

import secrets
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from engine.simulator import (
    batch,
    bodies,
    engine,
    errors,
    faults,
    http1,
    kvcache,
    ledger,
    openai,
    server,
    text,
    tokenizer,
    transfer,
)
from engine.simulator.answer import Answer, Form
from engine.simulator.settings import Settings


class Adapters:
    """LoRA adapters by name: path, and the id that KV events carry."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._ids: dict[str, int] = {}
        self._next = 1

    def load(self, name: str, path: str) -> None:
        """Add an adapter, or load it again."""
        self._paths[name] = path
        if name not in self._ids:
            self._ids[name] = self._next
            self._next += 1

    def unload(self, name: str) -> None:
        """Forget an adapter."""
        del self._paths[name], self._ids[name]

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def id_of(self, name: str) -> int:
        """Give the adapter's number."""
        return self._ids[name]

    def items(self) -> Sequence[tuple[str, str]]:
        """Names and paths, in the order of loading."""
        return list(self._paths.items())


@dataclass(frozen=True, slots=True)
class Work:
    """What an endpoint asks for: prompts, how to continue them, in whose name."""

    prompts: Sequence["array[int]"]
    sampling: bodies.Sampling
    model: str
    salt: str | None
    form: Form
    want: transfer.Want = transfer.NOTHING


class Serving:
    """Everything a handler needs: the engine, the model's names, the account of requests."""

    def __init__(self, settings: Settings, runner: engine.Engine, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.engine = runner
        self.tokens = tokenizer.Tokenizer()
        self.adapters = Adapters()
        self.ledger = ledger.Ledger()
        self.faults = faults.Faults()
        self.clock = clock
        self.transfers: transfer.Transfers | None = None

    def model(self, body: bodies.Body) -> str:
        """Give the name asked for; without one, the model's own. ApiError if it is not served."""
        name = bodies.text(body, "model") or self.settings.names[0]
        if name not in self.settings.names and name not in self.adapters:
            raise errors.unknown_model(name, self.settings.names)
        return name

    def frame(self, reply: server.Reply, model: str, sampling: bodies.Sampling) -> openai.Frame:
        """Give what OpenAI's answers say besides their words."""
        return openai.Frame(
            model=model,
            request_key=request_key(reply.request),
            include_usage=sampling.include_usage,
            continuous_usage=sampling.continuous_usage,
        )

    def prompts(self, body: bodies.Body, name: str) -> Sequence["array[int]"]:
        """Give the prompts of a field: a text, token ids, or a list of either."""
        given = body.get(name)
        if given is None or given == "":
            raise errors.parameter("Either prompt or prompt_embeds must be provided and non-empty.", name)
        if isinstance(given, str):
            return [self.tokens.encode(given)]
        if not isinstance(given, list):
            refused = ("list_type", f"body.{name}", "Input should be a valid list", given)
            raise errors.invalid_all(
                refused, refused, ("string_type", f"body.{name}", "Input should be a valid string", given), refused
            )
        if not given:
            raise errors.ApiError(400, "You must pass at least one prompt")
        if all(map(_is_token, given)):
            return [self._ids(given, name)]
        return [self._one_of(prompt, name) for prompt in given]

    def _one_of(self, prompt: object, name: str) -> "array[int]":
        if not isinstance(prompt, str):
            return self._ids(prompt, name)
        if not prompt:
            raise errors.ApiError(400, "The decoder prompt cannot be empty")
        return self.tokens.encode(prompt)

    def _ids(self, given: object, name: str) -> "array[int]":
        if not isinstance(given, list) or not given or not all(map(_is_token, given)):
            raise errors.invalid("string_type", f"body.{name}", "Input should be a valid string", given)
        if min(given) < 0 or max(given) >= tokenizer.VOCABULARY:
            worst = min(given) if min(given) < 0 else max(given)
            raise errors.ApiError(400, f"Token id {worst} is out of vocabulary")
        limit = self.settings.context_length
        if len(given) > limit:
            raise errors.too_long(limit, len(given), exact=True)
        return array("I", given)

    def room(self, prompt_tokens: int, sampling: bodies.Sampling) -> int:
        """Give the most tokens an answer may have; ApiError where the context leaves none or never had as many."""
        limit, asked = self.settings.context_length, sampling.max_tokens
        if asked is not None and asked > limit:
            name = sampling.limit_name
            raise errors.parameter(
                f"{name}={asked} cannot be greater than max_model_len={limit}. Please request fewer output tokens.",
                name,
                asked,
            )
        if prompt_tokens > limit:
            raise errors.too_long(limit, prompt_tokens)
        if asked == 0:
            return 0
        if prompt_tokens == limit:
            raise errors.parameter("max_tokens must be at least 1, got 0.", "max_tokens", 0)
        return min(limit - prompt_tokens, asked or limit)

    def generate(self, reply: server.Reply, work: Work) -> None:
        """Put the prompts into the batch; the answer writes itself as tokens come."""
        sampling = work.sampling
        rooms = [self.room(len(prompt), sampling) for prompt in work.prompts]
        lora = work.model if work.model in self.adapters else None
        origin = kvcache.Origin(lora, self.adapters.id_of(lora) if lora else None, work.salt)
        sequences: list[batch.Sequence] = []
        stops: list[text.StopStrings | None] = []
        for prompt, room in zip(work.prompts, rooms, strict=True):
            for choice in range(sampling.n):
                stop = text.StopStrings(sampling.stop) if sampling.stop else None
                sequence = self._sequence(prompt, room=room, choice=choice, origin=origin, sampling=sampling, stop=stop)
                sequence.index = len(sequences)
                sequences.append(sequence)
                stops.append(stop)
        answer = Answer(
            reply=reply, form=work.form, sequences=sequences, stops=stops,
            stream=sampling.stream, n=sampling.n, max_tokens=sampling.max_tokens,
        )  # fmt: skip
        self._account(reply, answer, work)
        failure = self.faults.take("die-mid-stream")
        if failure is not None:
            answer.breaks_after = failure.chunks
        self._transferred(reply, answer, work.want)

    def _transferred(self, reply: server.Reply, answer: Answer, want: transfer.Want) -> None:
        """Begin, once the blocks are here that another engine computed; keep those that another engine will take."""
        transfers = self.transfers
        if transfers is not None and want.key is not None:
            self._offer(transfers, answer, want)
        if transfers is None or want.source is None:
            self._begin(reply, answer)
            return

        def came(tokens: int | None) -> None:
            if reply.ended:
                return
            if tokens is None:
                error = errors.ApiError(500, "Internal server error", kind="InternalServerError")
                reply.send(500, error.body())
                return
            for sequence in answer.sequences:
                sequence.remote_tokens = tokens
                sequence.remote_cached = want.cached if tokens else None
            self._begin(reply, answer)

        give_up, gone = transfers.receive(want, came), reply.gone

        def left() -> None:
            give_up()
            if gone is not None:
                gone()

        reply.gone = left

    def _begin(self, reply: server.Reply, answer: Answer) -> None:
        if answer.stream:
            reply.start(server.EVENTS)
            reply.flush()
        self.engine.submit(answer.sequences)

    def _offer(self, transfers: transfer.Transfers, answer: Answer, want: transfer.Want) -> None:
        first = answer.sequences[0]
        first.held = True

        def finished(answer: Answer) -> bool:
            if first.finish not in ("length", "stop"):
                return True
            in_turn = transfers.config.kind == "SGLang"  # it answers when the other side has the blocks
            answer.kv_transfer_params = transfers.offer(want, first, answer.flush if in_turn else None)
            return not in_turn or not first.blocks

        answer.offering = finished

    def _sequence(  # noqa: PLR0913 (what a sequence is made of)
        self,
        prompt: "array[int]",
        *,
        room: int,
        choice: int,
        origin: kvcache.Origin,
        sampling: bodies.Sampling,
        stop: text.StopStrings | None,
    ) -> batch.Sequence:
        seed = xxh3_64_intdigest(memoryview(prompt).cast("B"), origin.seed ^ (self.settings.seed * 1_000_003 + choice))
        length = None
        if sampling.max_tokens is None and not sampling.ignore_eos:
            length = text.natural_length(seed, self.settings.answer_tokens)
        ends: Callable[[batch.Sequence], bool] | None = None
        if length is not None or stop is not None or sampling.stop_token_ids:
            ends = _Ends(stop, sampling.stop_token_ids)
        return batch.Sequence(
            tokens=array("I", prompt),
            max_tokens=room,
            draw=text.Voice(seed, length),
            origin=origin,
            ends=ends,
        )

    def _account(self, reply: server.Reply, answer: Answer, work: Work) -> None:
        request = reply.request
        entry = self.ledger.open(
            request_id=work.form.request_id,
            client_request_id=request.headers.get("x-request-id"),
            path=request.path,
            model=work.model,
            stream=work.sampling.stream,
            now=self.clock(),
        )

        def ended(*, gone: bool) -> None:
            unfinished = [sequence for sequence in answer.sequences if sequence.finish is None]
            self.engine.abort(unfinished)
            entry.status = reply.status
            entry.prompt_tokens = answer.prompt_tokens
            entry.cached_tokens = answer.cached_tokens
            entry.generated_tokens = answer.generated_tokens
            if answer.broken:
                end = "failed:die-mid-stream"
            elif gone:
                end = "abort"
            else:
                end = answer.sequences[0].finish or "abort"
            self.ledger.close(entry, end, self.clock())

        reply.gone = lambda: ended(gone=True)
        reply.complete = lambda: ended(gone=False)


def request_key(request: http1.Request) -> str:
    """Give what makes an answer's id its own: the caller's request id, where there is one."""
    return request.headers.get("x-request-id") or secrets.token_hex(8)


class _Ends:
    """Whether a sequence's last token ends it: the end mark, a stop token, a stop string."""

    __slots__ = ("_ids", "_stop")

    def __init__(self, stop: text.StopStrings | None, ids: frozenset[int]) -> None:
        self._stop = stop
        self._ids = ids

    def __call__(self, sequence: batch.Sequence) -> bool:
        token = sequence.tokens[-1]
        if token == tokenizer.END:
            return True
        if token in self._ids:
            sequence.stop_reason = token
            return True
        if self._stop is not None and self._stop.add(token):
            sequence.stop_reason = self._stop.found
            return True
        return False


def _is_token(value: object) -> bool:
    return type(value) is int
