"""Rendered conversations, and their tokens, against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from elmoe.checkpoint import chat
from elmoe.checkpoint.chat import ChatTemplate
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.text import Tokenizer
from elmoe.errors import PromptError
from verify.prompts import CONVERSATIONS, FAMILY_CONVERSATIONS, FAMILY_VARIABLES

transformers = pytest.importorskip("transformers", reason="make verify installs torch and transformers")
golden = pytest.importorskip("verify.make_chat_golden", reason="make verify installs torch and transformers")

TEMPLATES = sorted((Path(__file__).parents[1] / "golden" / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_chat_equals_transformers(tiny: Checkpoint, number: int) -> None:
    ours, messages = Tokenizer.open(tiny.path), CONVERSATIONS[number]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tiny.path)
    for prompted in (True, False):
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
        assert ours.render_chat(messages, add_generation_prompt=prompted) == text
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == ids


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_families_equal_transformers(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(chat, "_now", lambda: golden.NOW)
    text = path.read_text(encoding="utf-8")
    template = ChatTemplate(text, golden.TOKENS, path.name)
    for messages in FAMILY_CONVERSATIONS.values():
        for variables in FAMILY_VARIABLES.values():
            for prompted in (True, False):
                wanted = golden.rendered_by_transformers(text, messages, variables, prompted)
                try:
                    assert template.render(messages, prompted, variables) == wanted
                except PromptError:
                    assert wanted is None


SHOW = (
    "{{ bos_token }},{{ eos_token if eos_token is defined else '-' }},{{ image_token }},{{ tools | length if tools }}"
)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": None, "image_token": "<i>"}},
        {"tokenizer_config.json": {"bos_token": "<s>", "extra_special_tokens": {"image_token": "<i>"}}},
        {"tokenizer_config.json": {"bos_token": "<s>"}, "special_tokens_map.json": {"bos_token": "<x>"}},
        {
            "tokenizer_config.json": {"bos_token": "<s>", "added_tokens_decoder": {}},
            "special_tokens_map.json": {"bos_token": "<x>", "eos_token": "<e>"},
        },
        {"tokenizer_config.json": {"bos_token": {"__type": "AddedToken", "content": "<s>"}}},
        {"tokenizer_config.json": {"chat_template": "config"}, "chat_template.jinja": SHOW + "file"},
        {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "d"}]}},
        {
            "tokenizer_config.json": {
                "chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
            }
        },
        {"chat_template.jinja": "d", "additional_chat_templates/tool_use.jinja": SHOW + "t"},
        {"tokenizer_config.json": {"chat_template": "c"}, "additional_chat_templates/default.jinja": "d"},
    ],
)
def test_folders_are_read_as_transformers_reads_them(tiny: Checkpoint, tmp_path: Path, files: dict[str, Any]) -> None:
    shutil.copy(tiny.path / "tokenizer.json", tmp_path)
    names = {name.split("/")[0] for name in files}
    if not any("template" in name for name in names) and "chat_template" not in files["tokenizer_config.json"]:
        files = {**files, "chat_template.jinja": SHOW}
    for name, content in {"tokenizer_config.json": {}, **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    theirs, ours = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path), Tokenizer.open(tmp_path)
    for tools in (None, [{"name": "f"}]):
        wanted = theirs.apply_chat_template(CONVERSATIONS[0], tools=tools, tokenize=False)
        assert ours.render_chat(CONVERSATIONS[0], False, {"tools": tools}) == wanted
