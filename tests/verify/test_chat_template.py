"""Rendered conversations of tiny's template, and their tokens, against transformers."""

from __future__ import annotations

import pytest

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.text import Tokenizer
from verify.prompts import CONVERSATIONS

transformers = pytest.importorskip("transformers", reason="make verify installs torch and transformers")


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_chat_equals_transformers(tiny: Checkpoint, number: int) -> None:
    ours, messages = Tokenizer.open(tiny.path), CONVERSATIONS[number]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tiny.path)
    for prompted in (True, False):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
        assert ours.render_chat(messages, add_generation_prompt=prompted) == text
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == ids
