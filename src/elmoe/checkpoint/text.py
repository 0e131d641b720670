"""Text to token ids and back: the model's tokenizer, its chat template, its stop tokens, streaming.

Knows nothing about weights or engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from elmoe.checkpoint.chat import ChatTemplate
from elmoe.checkpoint.json_file import read_json_object
from elmoe.errors import CheckpointError, PromptError

TOKENIZER_FILE = "tokenizer.json"
FETCH = "fetch the model again and convert it"
REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a UTF-8 character."""


class Tokenizer:
    """A model's own tokenizer. Make one with `Tokenizer.open`."""

    def __init__(self, core: tokenizers.Tokenizer, template: ChatTemplate | None, origin: Path) -> None:
        self._core, self._template, self._origin = core, template, origin

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """The tokenizer of an `.elmoe` or Hugging Face folder.

        Raises CheckpointError when ``tokenizer.json`` is missing or broken, or the chat template is broken.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing; text needs it: put the model's {TOKENIZER_FILE} into the source folder "
                "and convert again, or give token ids"
            )
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer ({error}); {FETCH}") from None
        core.no_truncation()  # a prompt that is too long is an error of the engine's, never cut in silence
        core.no_padding()
        return cls(core, _read_template(folder), folder)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; the model's own vocabulary may be padded beyond it."""
        return self._core.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Special tokens spelled out in the text are parsed. `add_special_tokens` lets the tokenizer's own
        post-processor add its BOS where it has one. Raises PromptError for text that is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt is not valid Unicode: lone surrogate at character {error.start}") from None
        return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._core.decode(list(ids), skip_special_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` works."""
        return self._template is not None

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation by the model's chat template.

        Raises CheckpointError when the model has none, PromptError when it refuses the messages.
        """
        if self._template is None:
            raise CheckpointError(f"{self._origin} has no chat template; use raw prompts")
        return self._template.render(messages, add_generation_prompt)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation that the model is to continue; the template places all special tokens."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)


class Detokenizer:
    """Streams text: feed ids, get what they add. All deltas joined equal `Tokenizer.decode` of all ids.

    Text is held back while it ends in an incomplete UTF-8 character. Only a short tail is decoded at a time: the
    ids whose text was given out last are decoded again as context, because some decoders treat the first token
    of a text differently.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` add, perhaps empty."""
        self._pending.extend(ids)
        delta = self._delta()
        if not delta or delta.endswith(REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return delta

    def finish(self) -> str:
        """What was held back, broken characters as U+FFFD; the detokenizer is then empty."""
        delta = self._delta()
        self._context, self._pending = [], []
        return delta

    def _delta(self) -> str:
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(known) :]


def stop_ids(generation_config: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-text ids: ``eos_token_id`` of generation_config.json, else of config.json; ascending, maybe none."""
    for name, values in (("generation_config.json", generation_config), ("config.json", config)):
        found = values.get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise CheckpointError(f"{name}: eos_token_id must be a token id or a list of them, not {found!r}")
        return tuple(sorted(set(ids)))
    return ()


def _read_template(folder: Path) -> ChatTemplate | None:
    """``chat_template.jinja``, else the template in ``tokenizer_config.json``."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json_object(folder / name, FETCH)
    variables = {name: text for name in settings if name.endswith("_token") and (text := _token(settings[name]))}
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), variables, str(path))
        except UnicodeDecodeError:
            raise CheckpointError(f"{path} is not UTF-8 text; {FETCH}") from None
    text = _default_template(settings.get("chat_template"))
    return ChatTemplate(text, variables, str(folder / "tokenizer_config.json")) if text else None


def _token(value: object) -> str:
    """A special token is spelled as its text, or as an object that holds it; anything else is not one."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _default_template(value: object) -> str:
    """One template, or a list of named ones of which ``default`` is taken."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""
