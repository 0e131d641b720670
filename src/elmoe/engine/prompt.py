"""What may be given as a prompt, and its token ids. Knows nothing about requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

from elmoe.checkpoint.text import Tokenizer
from elmoe.errors import ConfigError, PromptError
from elmoe.models.shape import ModelShape

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages with `role` and `content`."""
NO_TOKENIZER = (
    "this model has no tokenizer.json; put the model's own into the source folder and convert again "
    "(or, for a GGUF file, into the .elmoe folder), or give and take token ids (on the command line --tokens 1,2,3)"
)
"""Why texts are refused, and the remedy."""


def tokens_of(prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    """Token ids of a prompt. Raises PromptError for a mixture of kinds, ConfigError for a text without a tokenizer."""
    messages: list[Mapping[str, str]] = []
    if not isinstance(prompt, str):
        messages = [item for item in prompt if isinstance(item, Mapping)]
        tokens = [int(item) for item in prompt if isinstance(item, Integral)]
        if len(tokens) == len(prompt):
            return tokens
        if len(messages) < len(prompt):
            raise PromptError("a prompt is a text, a list of token ids or a list of chat messages, not a mixture")
    if tokenizer is None:
        raise ConfigError(f"a text needs a tokenizer: {NO_TOKENIZER}")
    return tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.encode_chat(messages)


def check_tokens(tokens: Sequence[int], shape: ModelShape) -> None:
    """Raise PromptError for a prompt that is empty, too long, or holds unknown ids."""
    if not len(tokens):
        raise PromptError("the prompt is empty; give at least one token")
    longest = shape.max_context - 1
    if len(tokens) > longest:
        raise PromptError(f"the prompt has {len(tokens)} tokens; this model takes {longest} and one to answer")
    wrong = next((token for token in tokens if not 0 <= token < shape.vocab), None)
    if wrong is not None:
        raise PromptError(f"token {wrong} is not in the vocabulary of {shape.vocab}")
