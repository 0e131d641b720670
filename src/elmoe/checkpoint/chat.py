"""Chat templates: rendered with jinja2 in a sandbox, set up the way transformers does.

A template is code from the checkpoint, so it runs in an immutable sandbox and sees plain JSON values only. Source
of the setup: ``chat_template_utils.py`` and ``tokenization_utils_base.py`` of transformers 5. Knows nothing about
tokens.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from elmoe.checkpoint.json_file import read_json_object
from elmoe.errors import CheckpointError, PromptError

FETCH = "fetch the model again and convert it"
DEFAULT = "default"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder in a Hugging Face folder for templates other than the default, as NAME.jinja."""
OWN_VARIABLES = ("messages", "add_generation_prompt")
"""What is set here, not by the caller."""
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message may carry its reasoning."""


def named_template_file(name: str) -> str:
    """Name of the file that holds a template other than the default in an `.elmoe` folder, which has no folders."""
    return f"chat_template.{name}.jinja"


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, text: str, special_tokens: Mapping[str, str], origin: str) -> None:
        """Compile `text`; `special_tokens` (bos_token, ...) are visible in it, `origin` names it in messages.

        Raises CheckpointError when it is not a jinja2 template.
        """
        self.text = text
        self._origin, self._special_tokens = origin, dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(text)
            looked_at = jinja2.meta.find_undeclared_variables(environment.parse(text))
            self.variables = frozenset(looked_at.difference(OWN_VARIABLES))
            """Names of the variables that it looks at, those that the caller may set."""
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(
                f"{origin}: the chat template is broken (line {error.lineno}: {error.message}); "
                "fetch the model again or use raw prompts"
            ) from None
        except (
            SyntaxError,
            ValueError,
            OverflowError,
        ) as error:  # Python's, about jinja2's code
            problem = error.msg if isinstance(error, SyntaxError) else str(error)
            raise CheckpointError(
                f"{origin}: the chat template is broken ({problem}); fetch the model again or use raw prompts"
            ) from None
        except (RecursionError, MemoryError):
            raise CheckpointError(f"{origin}: the chat template is nested too deeply; use raw prompts") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        messages: hold ``role`` and ``content``, perhaps ``reasoning_content``, ``tool_calls``, ...; fields that are
        None are left out. variables: more of what the template looks at: ``tools``, ``documents``,
        ``enable_thinking``, ``reasoning_effort``, ...; one that it does not know does nothing. Raises PromptError
        for messages and variables that are no plain JSON values or that the template refuses or cannot format,
        CheckpointError for a template that tries to leave the sandbox.
        """
        variables = _plain(variables or {}, "template variables")
        if wrong := [name for name in OWN_VARIABLES if name in variables]:
            raise PromptError(f"{wrong[0]} is not a variable to be set: it is what the template is rendered with")
        given: dict[str, Any] = {"tools": None, "documents": None, **self._special_tokens, **variables}
        for name in ("tools", "documents"):
            if given[name] is not None and not _is_list_of_objects(given[name]):
                raise PromptError(f"{name} must be a list of JSON objects")
        try:
            return self._template.render(
                messages=[_message(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **given,
            )
        except jinja2.exceptions.SecurityError as error:
            raise CheckpointError(f"{self._origin}: the chat template does what templates may not: {error}") from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from None
        except RecursionError:
            raise PromptError("the chat template refuses these messages: they are nested too deeply") from None
        except MemoryError:
            raise CheckpointError(
                f"{self._origin}: the chat template asks for more memory than there is; use raw prompts"
            ) from None


def read_chat_templates(folder: Path) -> dict[str, ChatTemplate]:
    """The chat templates of an `.elmoe` or Hugging Face folder by name; most have one, ``default``, or none.

    Files of their own go before entries of ``tokenizer_config.json``, as in transformers. Raises CheckpointError
    for a broken one.
    """
    settings = _read_object(folder / SETTINGS_FILE)
    special_tokens = _special_tokens(folder, settings)
    files = {path.name.removesuffix(".jinja"): path for path in (folder / NAMED_TEMPLATES).glob("*.jinja")}
    prefix, suffix = named_template_file("\0").split("\0")
    files |= {path.name[len(prefix) : -len(suffix)]: path for path in folder.glob(named_template_file("*"))}
    if (folder / TEMPLATE_FILE).is_file():
        files[DEFAULT] = folder / TEMPLATE_FILE
    if files:
        return {name: ChatTemplate(_read_text(path), special_tokens, str(path)) for name, path in sorted(files.items())}
    origin = str(folder / SETTINGS_FILE)
    named = _named_templates(settings.get("chat_template"))
    return {name: ChatTemplate(text, special_tokens, origin) for name, text in named.items()}


def _named_templates(value: object) -> dict[str, str]:
    """One template, an object of named ones, or a list of objects with ``name`` and ``template``."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        return {name: text for name, text in value.items() if isinstance(name, str) and isinstance(text, str)}
    return {DEFAULT: value} if isinstance(value, str) and value else {}


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens of ``tokenizer_config.json`` by name: ``bos_token``, ``eos_token``, ``image_token``, ...

    ``special_tokens_map.json`` goes before it, but only in folders of transformers 4.33 and older: later ones, told
    by their ``added_tokens_decoder``, have it for older readers.
    """
    if "added_tokens_decoder" not in settings:
        settings = {**settings, **_read_object(folder / "special_tokens_map.json")}
    more = settings.get("extra_special_tokens")
    named = settings | more if isinstance(more, dict) else settings
    found = {name: _token(value) for name, value in named.items() if name.endswith("_token")}
    return {name: text for name, text in found.items() if text is not None}


def _token(value: object) -> str | None:
    """A special token is spelled as its text, or as an object that holds it; anything else is not one."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path, FETCH) if path.is_file() else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text; {FETCH}") from None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: without fields that are None, its reasoning under the names they read."""
    made: dict[str, Any] = {name: value for name, value in _plain(message, "messages").items() if value is not None}
    reasoning = next((made[name] for name in REASONING_FIELDS if name in made), None)
    return made if reasoning is None else {"thinking": reasoning, **made, "reasoning_content": reasoning}


def _plain(value: Any, what: str) -> Any:
    """A copy of JSON values, made of nothing but Python's own types: subclasses may have methods that do harm."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, what): _plain(item, what) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, what) for item in value]
    raise PromptError(f"{what} hold texts, numbers, lists and objects, as JSON does, not {type(value).__name__}")


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it is only its contents.

    As in transformers the contents are a scope of their own: what is set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

    def _contents(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` without names that start with an underscore, by which Python's insides could be reached."""

    def __init__(self, /, *values: Any, **named: Any) -> None:  # `namespace(self=1)` is allowed
        made = dict(*values, **named)
        for name in made:
            _refuse_inner_name(name)
        super().__init__(made)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inner_name(name)
        super().__setitem__(name, value)


def _refuse_inner_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)` without the class itself, whose attributes lead out of the sandbox."""

    def __call__(self, /, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no prompt wants."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return _now().strftime(pattern)


def _now() -> datetime.datetime:
    """Local time, without a time zone as transformers has it."""
    return datetime.datetime.now()
