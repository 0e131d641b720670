"""`elmoe chat`: a conversation in the terminal, with a local model or with a server."""

from __future__ import annotations

import json as jsonlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import typer

from elmoe.cli import options as opt
from elmoe.cli.console import Json, emit_json, err, out, say
from elmoe.engine.controller import Mode
from elmoe.engine.engine import Engine
from elmoe.engine.request import Generation
from elmoe.errors import ConfigError, PromptError, StorageError

KEY_VARIABLE = "ELMOE_API_KEY"
PREFIX_TOKENS = 1 << 16
"""KV cells kept from turn to turn."""
HELP = "/new starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer"
Piece = tuple[str, str]
"""(reasoning, answer)."""


class Partner(Protocol):
    """Whoever answers."""

    def answer(self, messages: list[dict[str, str]]) -> Iterator[Piece]:
        """What is added to reasoning and answer, as it comes."""

    def facts(self) -> dict[str, Any]:
        """About the last answer; names as in a server's usage."""


def chat(
    model: Annotated[str, typer.Argument(help="A model as for `run`, or a server's http://HOST:PORT.")] = "tiny",
    prompt: Annotated[list[str] | None, typer.Option("-p", "--prompt", help="A turn; may be repeated.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: opt.MaxTokens = 512,
    temperature: opt.Temperature = 0.7,
    top_p: opt.TopP = 0.95,
    seed: opt.Seed = None,
    mode: opt.ModeOption = Mode.AUTO,
    width: opt.Width = 2,
    depth: opt.Depth = 4,
    backend: opt.BackendName = "cpu",
    json: Json = False,
) -> None:
    """Chat in the terminal; the turns given with -p, else those typed in. A server's key: $ELMOE_API_KEY."""
    sampling = opt.sampling(temperature, top_p, 0, 0.0, seed)
    speculation = opt.speculation(mode, width, depth, None, 4, None)
    generation = Generation(max_tokens=max_tokens, sampling=sampling, split_reasoning=True)
    partner: Partner
    if model.startswith(("http://", "https://")):
        partner = ServerPartner(model.rstrip("/"), generation, {"mode": mode.value, "width": width, "depth": depth})
    else:
        options = replace(opt.engine_options(speculation, None, None, 1, backend), prefix_cache_tokens=PREFIX_TOKENS)
        partner = LocalPartner(opt.open_engine(model, options), generation)
    talk = Talk(partner, system, quiet=json)
    if prompt is None and sys.stdin.isatty() and not json:
        say(HELP, err, style="dim")
    for turn in prompt if prompt is not None else typed_turns(show=not json):
        talk.take(turn)
    if json:
        emit_json({"messages": talk.messages, "answers": talk.answers, "seed": sampling.seed})


@dataclass
class Talk:
    """A conversation so far."""

    partner: Partner
    system: str | None
    quiet: bool
    messages: list[dict[str, str]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start over."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def take(self, turn: str) -> None:
        """Answer a turn, or obey a command."""
        if turn.strip() == "/new":
            self.begin()
            return
        if not turn.strip():
            raise PromptError("the prompt is empty; give at least one word")
        self.messages.append({"role": "user", "content": turn})
        text = ""
        pieces = self.partner.answer(self.messages)
        try:
            for reasoning, piece in pieces:
                text += piece
                if not self.quiet:
                    err.print(reasoning, end="", style="dim", markup=False, highlight=False, soft_wrap=True)
                    out.print(piece, end="", markup=False, highlight=False, soft_wrap=True, emoji=False)
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]  # they are generators: this ends the request
            if self.quiet:
                raise
        self.messages.append({"role": "assistant", "content": text})
        facts = self.partner.facts()
        self.answers.append(facts)
        if not self.quiet:
            out.print()
            say(_shown(facts), err, style="dim")


def typed_turns(show: bool) -> Iterator[str]:
    """Lines from standard input until its end or /exit; blank ones are skipped."""
    asks = show and sys.stdin.isatty()
    while True:
        try:
            line = input("> ") if asks else sys.stdin.readline()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not asks:
                raise
            say("", err)
            return
        if (not asks and not line) or line.strip() == "/exit":
            return
        if line.strip():
            yield line.strip()


class LocalPartner:
    """A model in this process."""

    def __init__(self, engine: Engine, generation: Generation) -> None:
        """Raises ConfigError for a model that has no chat template."""
        if engine.tokenizer is None or not engine.tokenizer.has_chat_template:
            raise ConfigError("this model has no chat template; use elmoe run --raw")
        self._engine, self._generation, self._facts = engine, generation, dict[str, Any]()

    def answer(self, messages: list[dict[str, str]]) -> Iterator[Piece]:
        """See `Partner`."""
        engine = self._engine
        request = engine.submit(engine.encode(messages), self._generation)
        try:
            while request.finish_reason is None:
                engine.step()
                parts = request.new_parts()
                if parts.reasoning or parts.answer:
                    yield parts.reasoning, parts.answer
        finally:
            engine.cancel(request)
            output = request.output()
            counters, made = output.acceptance, len(output.token_ids)
            after_first = output.seconds - output.ttft_seconds
            self._facts = {
                "completion_tokens": made,
                "cached_tokens": output.cached_tokens,
                "tokens_by_draft": sum(output.drafted),
                "acceptance_rate": counters.acceptance_rate,
                "ttft_seconds": output.ttft_seconds,
                "tpot_seconds": after_first / (made - 1) if made > 1 else None,
            }

    def facts(self) -> dict[str, Any]:
        """See `Partner`."""
        return self._facts


class ServerPartner:
    """A server of ours."""

    def __init__(self, url: str, generation: Generation, speculation: dict[str, Any]) -> None:
        self._url, self._facts = url.removesuffix("/v1"), dict[str, Any]()
        sampling = generation.sampling
        self._asked = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": generation.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "speculation": speculation,
        }

    def answer(self, messages: list[dict[str, str]]) -> Iterator[Piece]:
        """See `Partner`. Raises StorageError where there is no server, ConfigError with what one refuses."""
        key = os.environ.get(KEY_VARIABLE)
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        body = jsonlib.dumps(self._asked | {"messages": messages}).encode()
        self._facts = {}
        try:
            request = urllib.request.Request(f"{self._url}/v1/chat/completions", body, headers)
            with urllib.request.urlopen(request) as response:
                for line in response:
                    if line.startswith(b"data: {"):
                        yield from self._read(jsonlib.loads(line[6:]))
        except urllib.error.HTTPError as error:
            with error:
                raise ConfigError(f"{self._url}: {_message(error.read()) or error.reason}") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise StorageError(f"{self._url}: no elmoe server answers there: {error}") from None

    def _read(self, event: dict[str, Any]) -> Iterator[Piece]:
        if "error" in event:
            raise ConfigError(f"{self._url}: {event['error']['message']}")
        for choice in event["choices"]:
            delta = choice["delta"]
            yield delta.get("reasoning_content", ""), delta.get("content", "")
        if usage := event.get("usage"):
            self._facts = {
                "completion_tokens": usage["completion_tokens"],
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                **{
                    name: usage["elmoe"][name]
                    for name in ("tokens_by_draft", "acceptance_rate", "ttft_seconds", "tpot_seconds")
                },
            }

    def facts(self) -> dict[str, Any]:
        """See `Partner`."""
        return self._facts


def _message(body: bytes) -> str | None:
    try:
        return str(jsonlib.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None


def _shown(facts: dict[str, Any]) -> str:
    if not facts:
        return "stopped"
    rate = f", {1 / facts['tpot_seconds']:.0f} tokens/s" if facts["tpot_seconds"] else ""
    return f"{facts['completion_tokens']} tokens, {facts['tokens_by_draft']} of them drafted{rate}"
