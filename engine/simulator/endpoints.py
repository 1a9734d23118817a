"""What each path does with a body: the OpenAI, Anthropic and vLLM endpoints that use the model."""

from array import array
from typing import Any

import orjson

from engine.simulator import anthropic, bodies, chat, openai, pooling, responses, server, transfer
from engine.simulator.answer import Form
from engine.simulator.bodies import Body
from engine.simulator.errors import ApiError, invalid_all, missing, parameter
from engine.simulator.serving import Serving, Work, request_key

_COMPLETION_LENGTH = 16  # OpenAI's default for completions


class Endpoints:
    """One method for each path that reads a body."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def chat(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/chat/completions."""
        messages = bodies.messages(body)
        sampling = bodies.sampling(body, "max_completion_tokens", "max_tokens")
        model = self._serving.model(body)
        form = openai.Chat(self._serving.frame(reply, model, sampling))
        prompt = chat.render(self._serving.tokens, messages, tools=body.get("tools"))
        self._generate(body, reply, prompts=[prompt], sampling=sampling, model=model, form=form)

    def completions(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/completions."""
        sampling = bodies.with_default_length(bodies.sampling(body, "max_tokens"), _COMPLETION_LENGTH)
        model = self._serving.model(body)
        prompts = self._serving.prompts(body, "prompt")
        form = openai.Completion(self._serving.frame(reply, model, sampling))
        self._generate(body, reply, prompts=prompts, sampling=sampling, model=model, form=form)

    def responses(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/responses."""
        messages = responses.as_messages(body)
        sampling = bodies.sampling(body, "max_output_tokens")
        model = self._serving.model(body)
        form = responses.Response(body, model=model)
        prompt = chat.render(self._serving.tokens, messages, tools=body.get("tools"))
        self._generate(body, reply, prompts=[prompt], sampling=sampling, model=model, form=form)

    def messages(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/messages."""
        messages = anthropic.as_messages(body)
        if body.get("max_tokens") is None:
            raise missing("max_tokens", body)
        asked = {**body, "stop": body.get("stop_sequences"), "n": None, "max_completion_tokens": body["max_tokens"]}
        sampling = bodies.sampling(asked, "max_completion_tokens")
        model = self._serving.model(body)
        form = anthropic.Messages(request_key(reply.request), model=model)
        prompt = chat.render(self._serving.tokens, messages, tools=body.get("tools"))
        self._generate(body, reply, prompts=[prompt], sampling=sampling, model=model, form=form)

    def count_tokens(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/messages/count_tokens."""
        messages = anthropic.as_messages(body)
        self._serving.model(body)
        prompt = chat.render(self._serving.tokens, messages, tools=body.get("tools"))
        reply.send(
            200,
            orjson.dumps({"input_tokens": len(prompt), "context_management": {"original_input_tokens": len(prompt)}}),
        )

    def tokenize(self, body: Body, reply: server.Reply) -> None:
        """POST /tokenize."""
        self._serving.model(body)
        if "messages" in body:
            prompt = chat.render(
                self._serving.tokens,
                bodies.messages(body),
                tools=body.get("tools"),
                generation_prompt=body.get("add_generation_prompt") is not False,
            )
        else:
            text = bodies.text(body, "prompt")
            if text is None:
                fields = ("body.prompt", "body.messages")
                raise invalid_all(*(("missing", field, "Field required", body) for field in fields))
            prompt = self._serving.tokens.encode(text)
        strings = [self._serving.tokens.decode([token]) for token in prompt] if body.get("return_token_strs") else None
        answer = {
            "count": len(prompt),
            "max_model_len": self._serving.settings.context_length,
            "tokens": prompt.tolist(),
            "token_strs": strings,
        }
        reply.send(200, orjson.dumps(answer))

    def detokenize(self, body: Body, reply: server.Reply) -> None:
        """POST /detokenize."""
        self._serving.model(body)
        if "tokens" not in body:
            raise missing("tokens", body)
        given = body["tokens"]
        tokens = self._serving.prompts(body, "tokens")[0] if given else array("I")
        reply.send(200, orjson.dumps({"prompt": self._serving.tokens.decode(tokens)}))

    def embeddings(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/embeddings."""
        model = self._serving.model(body)
        if "input" not in body:
            raise missing("input", body)
        prompts = self._serving.prompts(body, "input")
        self._pool(body, reply, prompts=prompts, form=pooling.Embeddings(body, model=model), model=model)

    def score(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/score."""
        model = self._serving.model(body)
        first = pooling.texts(body, "text_1", "queries")
        second = pooling.texts(body, "text_2", "documents")
        if len(first) not in (1, len(second)):
            raise ApiError(400, "Input lengths must be either 1:1, 1:N or N:N")
        pairs = list(zip(first * (len(second) // len(first)), second, strict=True))
        self._score(body, reply, pairs=pairs, model=model, rerank=False)

    def rerank(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/rerank."""
        model = self._serving.model(body)
        (query,) = pooling.texts(body, "query")[:1]
        pairs = [(query, document) for document in pooling.texts(body, "documents")]
        self._score(body, reply, pairs=pairs, model=model, rerank=True)

    def load_lora(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/load_lora_adapter."""
        for field in ("lora_name", "lora_path"):
            if field not in body:
                raise missing(field, body)
        name, path = bodies.text(body, "lora_name"), bodies.text(body, "lora_path")
        if not name or not path:
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
        if name in self._serving.adapters and not bodies.flag(body, "load_inplace"):
            raise ApiError(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                kind="InvalidUserInput",
            )
        self._serving.adapters.load(name, path)
        reply.send(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), None)

    def unload_lora(self, body: Body, reply: server.Reply) -> None:
        """POST /v1/unload_lora_adapter."""
        if "lora_name" not in body:
            raise missing("lora_name", body)
        name = bodies.text(body, "lora_name")
        if not name:
            raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", kind="InvalidUserInput")
        if name not in self._serving.adapters:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", kind="NotFoundError")
        self._serving.adapters.unload(name)
        reply.send(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), None)

    def _score(
        self, body: Body, reply: server.Reply, *, pairs: list[tuple[str, str]], model: str, rerank: bool
    ) -> None:
        prompts = [self._serving.tokens.encode(f"{first}\n{second}") for first, second in pairs]
        form = pooling.Scores(pairs, model=model, rerank=rerank, top_n=bodies.integer(body, "top_n"))
        self._pool(body, reply, prompts=prompts, form=form, model=model)

    def _pool(
        self, body: Body, reply: server.Reply, *, prompts: Any, form: pooling.Embeddings | pooling.Scores, model: str
    ) -> None:
        self._generate(body, reply, prompts=prompts, sampling=bodies.POOLING, model=model, form=form)

    def _generate(  # noqa: PLR0913 (the parts of `Work`)
        self, body: Body, reply: server.Reply, *, prompts: Any, sampling: bodies.Sampling, model: str, form: Form
    ) -> None:
        salt = bodies.text(body, "cache_salt")
        if salt == "":
            raise parameter("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
        transfers = self._serving.transfers
        want = transfer.NOTHING if transfers is None else transfers.wanted(body, form.request_id)
        work = Work(prompts=prompts, sampling=sampling, model=model, salt=salt, form=form, want=want)
        self._serving.generate(reply, work)
