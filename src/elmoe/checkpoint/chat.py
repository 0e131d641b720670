"""Chat templates: rendered with jinja2 in a sandbox, set up the way transformers does.

A template is code from the checkpoint, so it runs in an immutable sandbox. Knows nothing about tokens.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from elmoe.errors import CheckpointError, PromptError


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, text: str, variables: Mapping[str, str], origin: str) -> None:
        """Compile `text`; `variables` (bos_token, ...) are visible in it, `origin` names it in messages.

        Raises CheckpointError when it is not a jinja2 template.
        """
        self._origin, self._variables = origin, dict(variables)
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"{origin}: the chat template is broken (line {error.lineno}: {error.message}); "
                "fetch the model again or use raw prompts"
            ) from None

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """The text of a conversation: `messages` hold ``role`` and ``content``.

        Raises PromptError for messages that the template refuses or cannot format, CheckpointError for a
        template that tries to leave the sandbox.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._variables,
            )
        except jinja2.exceptions.SecurityError as error:
            raise CheckpointError(f"{self._origin}: the chat template does what templates may not: {error}") from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from None


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """jinja2's own filter escapes HTML, which no prompt wants."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)
