"""Requests of the API as the engine takes them: prompts, generation settings, grammars.

Whatever cannot be done is refused here, by name. Runs off the event loop: templates, tokenizers and grammars take time.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine
from elmoe.engine.grammar import json_text_grammar
from elmoe.engine.prompt import NO_TOKENIZER
from elmoe.engine.request import Generation
from elmoe.engine.sampler import MAX_SEED, Sampling
from elmoe.server.errors import ApiError, invalid, unsupported
from elmoe.server.options import ServerOptions
from elmoe.server.protocol import (
    MOST_VERIFIED,
    NOTHING,
    ChatRequest,
    CompletionRequest,
    GenerationFields,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    SpeculationFields,
    Tool,
)
from elmoe.server.structured import ANY_OBJECT, AnswerGrammars, CallableFunction, CallFormat, call_format


@dataclass(frozen=True)
class Ask:
    """One text to be generated."""

    prompt: list[int]
    generation: Generation


class Translator:
    """Turns documents into `Ask`s for one engine. Thread-safe."""

    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        self._engine, self._options = engine, options
        self._tokenizer = engine.tokenizer
        self._answers: AnswerGrammars | None = None
        self.calls = CallFormat.NONE
        """How the model writes tool calls."""
        if engine.tokenizer is not None and engine.grammars is not None and engine.tokenizer.has_chat_template:
            self._answers = AnswerGrammars(engine.tokenizer, engine.grammars)
            self.calls = call_format(engine.tokenizer)

    def chat(self, asked: ChatRequest) -> list[Ask]:
        """As many as ``n``."""
        self._check(asked)
        prompt = self.chat_tokens(asked.messages, self._variables(asked))
        if asked.top_logprobs and not asked.logprobs:
            raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
        generation = replace(
            self._generation(asked, len(prompt), asked.max_completion_tokens or asked.max_tokens),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            split_reasoning=True,
            grammar=self._chat_grammar(asked, prompt),
        )
        return self._choices(asked, prompt, generation)

    def completion(self, asked: CompletionRequest) -> list[Ask]:
        """As many as ``n`` for each prompt."""
        self._check(asked)
        given = asked.prompt
        prompts: Sequence[Any] = (
            given if isinstance(given, list) and not isinstance(next(iter(given), 0), int) else [given]
        )
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise invalid("prompt", "the prompt is empty; give at least one token")
        if len(prompts) * (asked.n or 1) > self._options.max_choices:
            raise invalid("prompt", f"this server writes at most {self._options.max_choices} texts per request")
        asks = []
        for prompt in prompts:
            tokens = self._engine.encode(prompt)
            generation = self._generation(asked, len(tokens), asked.max_tokens)
            generation = replace(generation, grammar=self._text_grammar(asked), logprobs=asked.logprobs)
            asks += self._choices(asked, tokens, generation)
        return asks

    def chat_tokens(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        """A chat as the model reads it."""
        if self._tokenizer is None:
            raise invalid("messages", f"chats need a tokenizer: {NO_TOKENIZER}")
        if not self._tokenizer.has_chat_template:
            raise unsupported("messages", "this model has no chat template; use /v1/completions")
        keeps_developer = self._tokenizer.template_mentions("developer")
        return self._tokenizer.encode_chat([_plain(message, keeps_developer) for message in messages], variables)

    def check_model(self, name: str | None) -> None:
        """Raise ApiError 404 for another model than the one that is served."""
        if name is not None and name != self._options.model_name:
            text = f"there is no model {name!r}; this is {self._options.model_name!r}"
            raise ApiError(404, text, "model_not_found", "model")

    def _check(self, asked: GenerationFields) -> None:
        """Refuse what is not done at all."""
        self.check_model(asked.model)
        for name, neutral in NOTHING.items():
            value = getattr(asked, name, None)
            if not any(value is one or (value == one and type(value) is type(one)) for one in neutral):
                raise unsupported(name, f"{name} is not supported by this server; leave it out")
        if (asked.n or 1) > self._options.max_choices:
            raise invalid("n", f"n must be at most {self._options.max_choices}, not {asked.n}")
        if asked.stream_options is not None and not asked.stream:
            raise invalid("stream_options", "stream_options needs stream: true")
        if asked.stream_options is not None and asked.stream_options.include_obfuscation:
            raise unsupported("stream_options", "streams are not obfuscated by this server; leave it out")

    def _choices(self, asked: GenerationFields, prompt: list[int], generation: Generation) -> list[Ask]:
        """The texts of one prompt differ in their seeds."""
        sampling = generation.sampling
        seeds = [(sampling.seed + index) & MAX_SEED for index in range(asked.n or 1)]
        return [Ask(prompt, replace(generation, sampling=replace(sampling, seed=seed))) for seed in seeds]

    def _generation(self, asked: GenerationFields, prompt_length: int, max_tokens: int | None) -> Generation:
        most = self._options.max_tokens
        if max_tokens is not None and max_tokens > most:
            raise invalid("max_tokens", f"max_tokens must be at most {most}, not {max_tokens}")
        speculation = self._speculation(asked.speculation)
        room = self._engine.room(prompt_length, speculation)
        if max_tokens is not None and max_tokens > room:
            raise invalid(
                "max_tokens",
                f"{prompt_length} prompt and {max_tokens} new tokens exceed the model's context or the memory; "
                f"{room} new tokens are possible",
            )
        stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        return Generation(
            max_tokens=max_tokens or max(1, min(most, room)),
            sampling=_sampling(asked),
            stop=stop,
            ignore_eos=asked.ignore_eos,
            speculation=speculation,
        )

    def _speculation(self, asked: SpeculationFields | None) -> Speculation | None:
        if asked is None or asked == SpeculationFields():
            return None
        base = self._engine.speculation
        width, depth = asked.width or base.width, base.depth if asked.depth is None else asked.depth
        same_tree = (width, depth) == (base.width, base.depth)
        verify = asked.verify or (base.verify if same_tree else max(1, min(width * depth, MOST_VERIFIED)))
        return replace(base, mode=Mode(asked.mode or base.mode.value), width=width, depth=depth, verify=verify)

    def _variables(self, asked: ChatRequest) -> dict[str, Any]:
        """What the chat template is rendered with."""
        known = self._tokenizer.template_variables if self._tokenizer is not None else frozenset()
        given = dict(asked.chat_template_kwargs or {})
        if asked.reasoning_effort is not None:
            given["reasoning_effort"] = asked.reasoning_effort
        for name in given:
            if name not in known:
                param = "reasoning_effort" if name == "reasoning_effort" else "chat_template_kwargs"
                raise unsupported(param, f"the model's chat template knows no variable {name!r}")
        if asked.tools and asked.tool_choice != "none":
            if self.calls is CallFormat.NONE:
                raise unsupported("tools", "this model's chat template has no tools, or none in a format known here")
            given["tools"] = [
                tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in asked.tools
            ]
        return given

    def _chat_grammar(self, asked: ChatRequest, prompt: list[int]) -> str | None:
        """What the answer must follow; compiled here, so that it is refused here."""
        grammar = self._call_grammar(asked, prompt)
        if isinstance(asked.response_format, (JsonObjectFormat, JsonSchemaFormat)):
            if asked.tools and asked.tool_choice != "none":
                raise unsupported("response_format", "a JSON answer and tools at once are not supported; choose one")
            assert self._answers is not None, "it has a chat template"
            grammar = self._answers.json_answer(_schema_of(asked.response_format), prompt)
        if grammar is not None:
            assert self._engine.grammars is not None
            self._engine.grammars.compile(grammar)
        return grammar

    def _call_grammar(self, asked: ChatRequest, prompt: list[int]) -> str | None:
        choice = asked.tool_choice
        if not asked.tools:
            if choice not in (None, "none", "auto"):
                raise invalid("tool_choice", "tool_choice needs tools")
            return None
        if choice == "none":
            return None
        strict = any(tool.function.strict for tool in asked.tools)
        if choice in (None, "auto") and not strict and asked.parallel_tool_calls is not False:
            return None
        assert self._answers is not None, "it has a chat template with tools"
        functions = [_function(tool) for tool in asked.tools]
        if isinstance(choice, NamedTool):
            functions = [function for function in functions if function.name == choice.function.name]
            if not functions:
                raise invalid("tool_choice", f"there is no tool {choice.function.name!r} among the tools")
        parallel = asked.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
        return self._answers.calls(functions, prompt, parallel, required=choice not in (None, "auto"))

    def _text_grammar(self, asked: CompletionRequest) -> str | None:
        """What a raw completion must follow; compiled here, so that it is refused here."""
        if not isinstance(asked.response_format, (JsonObjectFormat, JsonSchemaFormat)):
            return None
        if self._engine.grammars is None:
            raise invalid("response_format", f"structured output is about text: {NO_TOKENIZER}")
        grammar = json_text_grammar(_schema_of(asked.response_format))
        self._engine.grammars.compile(grammar)
        return grammar


def _sampling(asked: GenerationFields) -> Sampling:
    """The API's defaults: temperature 1, nothing cut off; -1 is an old way to switch top_k off."""
    biases = []
    for name, bias in (asked.logit_bias or {}).items():
        if not name.isdecimal() or len(name) > 9:
            raise invalid("logit_bias", f"logit_bias: {name!r} is not a token id")
        biases.append((int(name), bias))
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=max(asked.top_k or 0, 0),
        min_p=asked.min_p or 0.0,
        seed=secrets.randbits(63) if asked.seed is None else asked.seed & MAX_SEED,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        logit_bias=tuple(sorted(biases)),
    )


def _schema_of(form: JsonObjectFormat | JsonSchemaFormat) -> Mapping[str, Any]:
    if isinstance(form, JsonObjectFormat):
        return ANY_OBJECT
    return ANY_OBJECT if form.json_schema.schema_ is None else form.json_schema.schema_


def _function(tool: Tool) -> CallableFunction:
    return CallableFunction(tool.function.name, tool.function.parameters or ANY_OBJECT)


def _plain(message: Message, keeps_developer: bool) -> dict[str, Any]:
    """A message as chat templates read it: one text, arguments as objects."""
    made = message.model_dump(exclude_none=True, exclude={"refusal"})
    if isinstance(message.content, list):
        made["content"] = "".join(part.text for part in message.content)
    made.setdefault("content", "")
    if message.role == "developer" and not keeps_developer:
        made["role"] = "system"
    for call in made.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            continue  # the template gets it as it was written
        if isinstance(arguments, dict):
            call["function"]["arguments"] = arguments
    return made
