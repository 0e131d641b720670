"""What the endpoints do: ask the engine, answer whole or in a stream. Knows nothing about routes and headers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from elmoe.engine.engine import Engine
from elmoe.engine.prompt import NO_TOKENIZER
from elmoe.engine.request import Output
from elmoe.errors import ElmoeError
from elmoe.server.documents import ChatChoice, Envelope, TextChoice, usage
from elmoe.server.errors import ApiError, from_engine, invalid
from elmoe.server.generations import Ask, Translator
from elmoe.server.live import LiveView
from elmoe.server.loop import Delta, EngineLoop
from elmoe.server.metrics import Metrics
from elmoe.server.options import ServerOptions
from elmoe.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationFields,
    StreamOptions,
    TokenizeRequest,
)
from elmoe.server.run import Run
from elmoe.server.streams import DONE, EventStream, event, unless_gone
from elmoe.server.structured import CallFormat

log = logging.getLogger("elmoe.server")
Choices = Sequence[ChatChoice | TextChoice]
D = TypeVar("D")


class Service:
    """An engine behind an API."""

    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        self.engine, self.options = engine, options
        self.metrics, self.live = Metrics(engine), LiveView(engine)
        self.loop = EngineLoop(engine, options.max_queue, (self.metrics, self.live))
        self.translator = Translator(engine, options)
        self.started = int(time.time())
        self.draining = False
        self.metrics.serve(self.loop)

    async def chat(self, asked: ChatRequest, request: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        asks = await self._translated(self.translator.chat, asked)
        calls = self.translator.calls if asked.tools and asked.tool_choice != "none" else CallFormat.NONE
        token_bytes = self._token_bytes if asked.logprobs else None
        stops = frozenset(self.engine.stop_tokens)
        choices = [ChatChoice(index, calls, token_bytes, stops) for index in range(len(asks))]
        envelope = Envelope("chat.completion", "chatcmpl", self.options.model_name)
        first = {"role": "assistant", "content": ""}
        return await self._answered(asks, choices, envelope, asked, request, first)

    async def complete(self, asked: CompletionRequest, request: HttpRequest) -> Response:
        """POST /v1/completions."""
        asks = await self._translated(self.translator.completion, asked)
        token_bytes = self._token_bytes if asked.logprobs is not None else None
        choices = [TextChoice(index, token_bytes) for index in range(len(asks))]
        envelope = Envelope("text_completion", "cmpl", self.options.model_name)
        return await self._answered(asks, choices, envelope, asked, request, None)

    async def tokenize(self, asked: TokenizeRequest) -> dict[str, Any]:
        """POST /tokenize."""
        self.translator.check_model(asked.model)
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise invalid(None, f"there is nothing to tokenize with: {NO_TOKENIZER}")
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("prompt", "give either a prompt or messages")
        try:
            if asked.prompt is not None:
                tokens = await asyncio.to_thread(tokenizer.encode, asked.prompt, asked.add_special_tokens)
            else:
                tokens = await asyncio.to_thread(self.translator.chat_tokens, asked.messages or [], {})
        except ElmoeError as error:
            raise from_engine(error) from error
        return {"tokens": tokens, "count": len(tokens), "max_model_len": self.engine.backend.shape.max_context}

    async def detokenize(self, asked: DetokenizeRequest) -> dict[str, Any]:
        """POST /detokenize."""
        self.translator.check_model(asked.model)
        tokenizer, vocab = self.engine.tokenizer, self.engine.backend.shape.vocab
        if tokenizer is None:
            raise invalid(None, f"there is nothing to detokenize with: {NO_TOKENIZER}")
        wrong = next((token for token in asked.tokens if token >= vocab), None)
        if wrong is not None:
            raise invalid("tokens", f"token {wrong} is not in the vocabulary of {vocab}")
        return {"prompt": await asyncio.to_thread(tokenizer.decode, asked.tokens, False)}

    async def _translated(self, translate: Callable[[D], list[Ask]], asked: D) -> list[Ask]:
        try:
            return await asyncio.to_thread(translate, asked)
        except ElmoeError as error:
            raise from_engine(error) from error

    def _token_bytes(self, token: int) -> bytes:
        grammars = self.engine.grammars
        return b"" if grammars is None else grammars.token_bytes(token)

    async def _answered(
        self,
        asks: list[Ask],
        choices: Choices,
        envelope: Envelope,
        asked: GenerationFields,
        request: HttpRequest,
        first: dict[str, Any] | None,
    ) -> Response:
        """first: what the first chunk of every choice says before there is text."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", "shutting_down", retry_after_seconds=10)
        if not self.loop.alive:
            raise ApiError(503, "the engine has failed; the server's log has the reason", "engine_failed")
        options = asked.stream_options or StreamOptions()
        client = request.scope["state"]["client"]
        run = Run(self.loop, asks, client, self.options.timeout_seconds, options.include_drafted)
        try:
            await run.start()
        except ApiError as error:
            if error.status == 429:
                self.metrics.requests.labels("refused").inc()
            raise
        if asked.stream:
            pieces = self._stream(run, choices, envelope, asked, first)
            return EventStream(pieces, self.options.timeout_seconds)
        outputs = await unless_gone(request, self._collect(run, choices))
        made = [
            choice.whole() | ({"token_ids": output.token_ids} if asked.return_token_ids else {})
            for choice, output in zip(choices, outputs, strict=True)
        ]
        return JSONResponse(envelope.whole(made, usage(run.jobs, outputs)))

    async def _collect(self, run: Run, choices: Choices) -> list[Output]:
        outputs: dict[int, Output] = {}
        async with aclosing(run.deltas()) as deltas:
            async for index, delta in deltas:
                choices[index].add(delta)
                if delta.output is not None:
                    outputs[index] = _finished(delta.output)
        return [outputs[index] for index in sorted(outputs)]

    async def _stream(
        self, run: Run, choices: Choices, envelope: Envelope, asked: GenerationFields, first: dict[str, Any] | None
    ) -> AsyncGenerator[bytes]:
        outputs, options = list[Output](), asked.stream_options or StreamOptions()
        try:
            if first is not None:
                head = {"delta": first, "logprobs": None, "finish_reason": None}
                for choice in choices:
                    yield event(envelope.chunk([{"index": choice.index, **head}]))
            async with aclosing(run.deltas()) as deltas:
                async for index, delta in deltas:
                    if delta.output is not None:
                        outputs.append(_finished(delta.output))
                    made = choices[index].add(delta)
                    if asked.return_token_ids:
                        made["token_ids"] = delta.tokens
                    if asked.return_token_ids or _says_something(made, delta):
                        yield event(envelope.chunk([made], **_drafted(delta, options)))
            if options.include_usage:
                yield event(envelope.chunk([], usage=usage(run.jobs, outputs)))
            yield DONE
        except ApiError as error:
            yield event(error.body())
        except Exception:  # the head has been sent: all that can be told is an event
            log.exception("a stream failed")
            yield event(from_engine(RuntimeError()).body())
        finally:
            run.cancel()


def _finished(output: Output) -> Output:
    """An output that was cancelled by no client of ours was ended by the server itself."""
    if output.finish_reason == "cancelled":
        raise ApiError(503, "the server is shutting down and has ended this request", "shutting_down")
    return output


def _says_something(choice: dict[str, Any], delta: Delta) -> bool:
    """Whether a chunk is worth sending: text may be held back."""
    return bool(
        choice.get("text") or choice.get("delta") or choice["finish_reason"] or (delta.tokens and choice["logprobs"])
    )


def _drafted(delta: Delta, options: StreamOptions) -> dict[str, Any]:
    """Elmoe's own field of a chunk: the text in the pieces of its tokens, and whether each was drafted."""
    return {"elmoe": {"pieces": delta.origins}} if options.include_drafted else {}
