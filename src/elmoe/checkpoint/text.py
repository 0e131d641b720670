"""Text to token ids and back: the model's tokenizer, its chat template, its stop tokens, streaming.

Knows nothing about weights or engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from elmoe.checkpoint.chat import DEFAULT, FETCH, ChatTemplate, read_chat_templates
from elmoe.checkpoint.json_file import json_object
from elmoe.errors import CheckpointError, PromptError, StorageError

TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation_config.json"
TOOL_USE = "tool_use"
"""Name of the template that is taken when tools are given."""
REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a UTF-8 character."""


class Tokenizer:
    """A model's own tokenizer. Make one with `Tokenizer.open`."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        templates: Mapping[str, ChatTemplate],
        origin: Path,
        broken: CheckpointError | None = None,
    ) -> None:
        """broken: what is wrong with the chat templates; raised when one of them is asked for."""
        self._core, self._templates, self._origin, self._broken = core, dict(templates), origin, broken

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """The tokenizer of an `.elmoe` or Hugging Face folder.

        Raises CheckpointError when ``tokenizer.json`` is missing or broken, StorageError when the operating system will
        not read it. A broken chat template is an error only where a chat is rendered.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing; text needs it: put the model's {TOKENIZER_FILE} into the source folder "
                "and convert again (or, for a GGUF file, put it there), or give token ids"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        core = _core(content, str(path))
        core.no_truncation()  # a prompt that is too long is an error of the engine's, never cut in silence
        core.no_padding()
        try:
            return cls(core, read_chat_templates(folder), folder)
        except CheckpointError as broken:
            return cls(core, {}, folder, broken)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included; the model's vocabulary may be padded beyond it."""
        return _vocab_size(self._core)

    def to_json(self) -> str:
        """The tokenizer as the content of a ``tokenizer.json``."""
        return str(self._core.to_str())

    def token_id(self, text: str) -> int | None:
        """Id of the token that is spelled so, None where there is none."""
        return self._core.token_to_id(text)

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

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._core.decode(list(ids), skip_special_tokens=skip_special_tokens))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a template for `render_chat`, though it may be broken."""
        return DEFAULT in self._templates or self._broken is not None

    @property
    def template_variables(self) -> frozenset[str]:
        """Names of the variables that a chat template of the model looks at; empty when it has none.

        Raises CheckpointError for a broken one.
        """
        if self._broken is not None:
            raise self._broken
        return frozenset().union(*(template.variables for template in self._templates.values()))

    def template_mentions(self, text: str) -> bool:
        """Whether the model's chat template has `text` in it."""
        return DEFAULT in self._templates and text in self._templates[DEFAULT].text

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation by the model's chat template; with ``tools`` by its one for tools if it has one.

        variables: what else the template looks at; see `ChatTemplate.render`. Raises CheckpointError when the model
        has no template or a broken one, PromptError when it refuses the messages.
        """
        if self._broken is not None:
            raise self._broken
        given = variables or {}
        name = TOOL_USE if given.get("tools") is not None and TOOL_USE in self._templates else DEFAULT
        if name not in self._templates:
            others = f" but {', '.join(sorted(self._templates))}" if self._templates else ""
            raise CheckpointError(f"{self._origin} has no chat template{others}; use raw prompts")
        return self._templates[name].render(messages, add_generation_prompt, given)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation that the model is to continue; the template places all special tokens."""
        return self.encode(self.render_chat(messages, variables=variables), add_special_tokens=False)


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

    def insert(self, text: str) -> str:
        """What was held back, then a text that no id stands for; what follows is not the start of a text."""
        delta = self._delta()
        if self._pending:
            self._context, self._pending = [] if delta.endswith(REPLACEMENT) else self._pending, []
        return delta + text

    def finish(self) -> str:
        """What was held back, broken characters as U+FFFD; the detokenizer is then empty."""
        delta = self._delta()
        self._context, self._pending = [], []
        return delta

    def _delta(self) -> str:
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(known) :]


def stop_ids(generation_config: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """End-of-text ids: ``eos_token_id`` of generation_config.json, else of config.json; ascending, maybe none.

    Ids beyond the vocabulary of config.json are left out, for the model never writes them. Raises CheckpointError for
    one that is no token id.
    """
    for name, values in ((GENERATION_FILE, generation_config), ("config.json", config)):
        found = values.get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise CheckpointError(f"{name}: eos_token_id must be a token id or a list of them, not {found!r}")
        vocab = config.get("vocab_size")
        return tuple(sorted(item for item in set(ids) if not isinstance(vocab, int) or item < vocab))
    return ()


def check_vocabulary(tokens: int, vocab: int, origin: str) -> None:
    """CheckpointError where a tokenizer has `tokens` token ids and its model, which `origin` names, fewer: `vocab`."""
    if tokens > vocab:
        raise CheckpointError(
            f"{origin}: the tokenizer has {tokens} tokens, the model {vocab}; {TOKENIZER_FILE} belongs to another model"
        )


def check_text_files(files: Mapping[str, bytes], config: Mapping[str, Any], vocab: int, source: Path) -> None:
    """Raise CheckpointError for what would keep a model from being opened: its tokenizer and its stop tokens.

    files: content of small files by name; those that are not there are not checked, nor are chat templates, without
    which a model still completes texts. `source`, a folder or one file, is what messages name.
    """

    def origin(name: str) -> str:
        return str(source / name if source.is_dir() else source)

    if TOKENIZER_FILE in files:
        where = origin(TOKENIZER_FILE)
        check_vocabulary(_vocab_size(_core(files[TOKENIZER_FILE], where)), vocab, where)
    generation: dict[str, Any] = {}
    if GENERATION_FILE in files:
        generation = json_object(files[GENERATION_FILE], origin(GENERATION_FILE), FETCH)
    try:
        stop_ids(generation, config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _core(content: bytes, origin: str) -> tokenizers.Tokenizer:
    """The tokenizer in the content of a ``tokenizer.json``."""
    try:  # not from_file: the library takes no path that is not UTF-8
        return tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{origin} is not a tokenizer ({error}); {FETCH}") from None


def _vocab_size(core: tokenizers.Tokenizer) -> int:
    return max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
