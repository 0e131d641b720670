from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import Detokenizer, Tokenizer, check_text_files, stop_ids
from elmoe.errors import CheckpointError, PromptError

TEXTS = [
    "hello world",
    " two  spaces\n\n",
    "naïve café",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦🙂🏳️‍🌈",
    "a\u0301\u0302",
    "\ufffd",
    "\x00\x7f",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(resolve("tiny"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in tokenizer that a test may spoil."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve("tiny") / name, tmp_path / name)
    return tmp_path


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("text", ["", *TEXTS])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_parsed_in_prompts_and_left_out_of_output(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.decode([1, *tokenizer.encode("user"), 2, 0]) == "user"


def test_no_bos_is_added_unless_the_post_processor_does(tokenizer: Tokenizer, folder: Path) -> None:
    plain = tokenizer.encode("hello")
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    core.save(str(folder / "tokenizer.json"))
    with_bos = Tokenizer.open(folder)
    assert with_bos.encode("hello") == [0, *plain]
    assert with_bos.encode("hello", add_special_tokens=False) == plain
    messages = [{"role": "user", "content": "hello"}]
    assert with_bos.encode_chat(messages) == tokenizer.encode_chat(messages)


def test_truncation_and_padding_of_the_file_are_off(tokenizer: Tokenizer, folder: Path) -> None:
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_truncation(2)
    core.enable_padding(length=100)
    core.save(str(folder / "tokenizer.json"))
    assert Tokenizer.open(folder).encode("a longer text") == tokenizer.encode("a longer text")


def test_lone_surrogates(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="the prompt is not valid Unicode: lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")


def test_chat_of_the_built_in_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.has_chat_template
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    turns = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == turns
    assert tokenizer.render_chat(messages) == turns + "<|im_start|>assistant\n"
    assert tokenizer.encode_chat(messages) == tokenizer.encode(turns + "<|im_start|>assistant\n")


def test_where_the_template_comes_from(folder: Path) -> None:
    settings_path = folder / "tokenizer_config.json"
    change(settings_path, chat_template=[{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}])
    assert Tokenizer.open(folder).render_chat([]) == "d"
    change(settings_path, bos_token={"content": "<b>", "lstrip": False}, eos_token=None, unk_token="<u>")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ unk_token }}{{ eos_token }}é", encoding="utf-8")
    assert Tokenizer.open(folder).render_chat([]) == "<b><u>é"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8 text; fetch the model again"):
        Tokenizer.open(folder).render_chat([])


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.tool_use.jinja", "tokenizer_config.json"])
def test_a_broken_template_is_an_error_where_a_chat_is_rendered(folder: Path, tokenizer: Tokenizer, file: str) -> None:
    (folder / file).write_text("{% if %}")
    broken = Tokenizer.open(folder)
    assert broken.encode("hello") == tokenizer.encode("hello")
    assert broken.has_chat_template
    assert not broken.template_mentions("if")
    with pytest.raises(CheckpointError, match=file):
        broken.encode_chat([])
    with pytest.raises(CheckpointError, match=file):
        _ = broken.template_variables


def test_a_folder_whose_name_is_not_utf_8(folder: Path, tmp_path: Path) -> None:
    other = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    shutil.copytree(folder, other)
    assert Tokenizer.open(other).encode("hello") == Tokenizer.open(folder).encode("hello")


def test_no_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.open(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(CheckpointError, match="has no chat template; use raw prompts"):
        tokenizer.render_chat([])


def test_the_template_for_tools(folder: Path) -> None:
    named = {"default": "d{{ tools }}", "tool_use": "t{{ tools | length }}{{ x }}"}
    change(folder / "tokenizer_config.json", chat_template=named)
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.render_chat([]) == "dNone"
    assert tokenizer.render_chat([], variables={"tools": [{}, {}], "x": "é"}) == "t2é"
    assert tokenizer.encode_chat([], {"tools": []}) == tokenizer.encode("t0")
    assert tokenizer.template_variables == {"tools", "x"}
    assert tokenizer.template_mentions("d{{")
    assert not tokenizer.template_mentions("length")


def test_no_default_template(folder: Path) -> None:
    change(folder / "tokenizer_config.json", chat_template={"tool_use": "t", "rag": "r"})
    tokenizer = Tokenizer.open(folder)
    assert not tokenizer.has_chat_template
    assert tokenizer.render_chat([], variables={"tools": []}) == "t"
    with pytest.raises(CheckpointError, match="has no chat template but rag, tool_use; use raw prompts"):
        tokenizer.render_chat([])


def test_the_size_of_a_vocabulary_with_gaps(folder: Path) -> None:
    """A model needs a row for the largest id, however many tokens there are."""
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"] = {"a": 0, "b": 700}
    values["model"]["merges"], values["added_tokens"] = [], []
    (folder / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.vocab_size == 701
    assert (tokenizer.token_id("b"), tokenizer.token_id("c")) == (700, None)


def test_missing_and_broken_tokenizer(folder: Path, converted: Path) -> None:
    Checkpoint.open(converted)  # has none, and needs none to be opened
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; text needs it: put .* or give token ids"):
        Tokenizer.open(converted)
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer \(.*\); fetch the model again"):
        Tokenizer.open(folder)


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        ({"eos_token_id": [2, 0]}, {"eos_token_id": 5}, (0, 2)),
        ({"eos_token_id": 0}, {"eos_token_id": 5}, (0,)),
        ({}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": None}, {"eos_token_id": [5, 5]}, (5,)),
        ({}, {"eos_token_id": None}, ()),
        ({"eos_token_id": []}, {"eos_token_id": 5}, ()),
    ],
)
def test_stop_ids(generation_config: dict[str, Any], config: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert stop_ids(generation_config, config) == expected


@pytest.mark.parametrize(
    ("vocab", "generation", "config"),
    [
        (151936, [151645, 151643], 151645),  # Qwen3-30B-A3B
        (151936, None, 151643),  # Qwen1.5-MoE-A2.7B
        (154880, [154820, 154827, 154829], [154820, 154827, 154829]),  # GLM-4.7-Flash
        (102400, 100001, 100001),  # DeepSeek-V2-Lite
        (201088, [200002, 199999, 200012], 200002),  # GPT-OSS-20B
        (32000, 2, 2),  # Mixtral-8x7B
        (50304, 50279, 50279),  # OLMoE-1B-7B
        (49155, 0, 0),  # Granite-3.0-1B-A400M
    ],
)
def test_stop_ids_of_the_families(vocab: int, generation: Any, config: Any) -> None:
    ids = stop_ids({"eos_token_id": generation}, {"eos_token_id": config, "vocab_size": vocab})
    assert ids == tuple(sorted(generation if isinstance(generation, list) else [generation or config]))


def test_stop_ids_beyond_the_vocabulary_are_left_out() -> None:
    """The model can never write them: OLMoE's default is 50279 however small the vocabulary."""
    assert stop_ids({"eos_token_id": [1, 9, 8]}, {"vocab_size": 9}) == (1, 8)
    assert stop_ids({}, {"eos_token_id": 50279, "vocab_size": 99}) == ()


def test_what_is_checked_before_a_conversion(folder: Path, tmp_path: Path) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    check_text_files({}, {}, 10, tmp_path)
    check_text_files({"tokenizer.json": content}, {"eos_token_id": 1}, 8192, tmp_path)
    with pytest.raises(CheckpointError, match=r"/x\.gguf: the tokenizer has 8192 tokens, the model 8191; tokenizer"):
        check_text_files({"tokenizer.json": content}, {}, 8191, tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"/x\.gguf: config\.json: eos_token_id must be a token id"):
        check_text_files({}, {"eos_token_id": "x"}, 8192, tmp_path / "x.gguf")


@pytest.mark.parametrize("value", ["2", True, [1, "2"], -1, 2.0])
def test_stop_ids_that_are_none(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: eos_token_id must be a token id or a list of them, not"):
        stop_ids({}, {"eos_token_id": value})


def stream(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """Feed `ids` in pieces of the given sizes, then one by one."""
    detokenizer, deltas, start = Detokenizer(tokenizer), [], 0
    for size in [*cuts, *[1] * len(ids)]:
        deltas.append(detokenizer.feed(ids[start : start + size]))
        start += size
    return [*deltas, detokenizer.finish()]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.sampled_from(TEXTS), cuts=st.lists(st.integers(0, 4), max_size=6))
def test_deltas_are_the_text_and_never_half_a_character(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    deltas = stream(tokenizer, tokenizer.encode(text), cuts)
    assert "".join(deltas) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in delta for delta in deltas)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 8191) | st.integers(0, 300), max_size=40))
def test_deltas_of_any_ids_are_their_decoding(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Random ids are mostly broken UTF-8, with special tokens between the bytes."""
    assert "".join(stream(tokenizer, ids, [])) == tokenizer.decode(ids)


def test_text_comes_out_as_soon_as_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab🙂c")
    emoji = tokenizer.encode("🙂")
    assert len(emoji) > 1
    detokenizer = Detokenizer(tokenizer)
    deltas = [detokenizer.feed([token]) for token in ids]
    assert "".join(deltas) == "ab🙂c"
    assert deltas[-1] == "c"
    assert "🙂" in deltas
    assert detokenizer.finish() == ""


def test_finish_gives_out_broken_characters_and_starts_afresh(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("🙂")[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.feed(half) == ""
    assert detokenizer.finish() == tokenizer.decode(half) == "\ufffd"
    assert detokenizer.feed(tokenizer.encode("ok")) == "ok"


def test_decoders_that_strip_the_first_blank(tmp_path: Path) -> None:
    """Sentencepiece-like tokenizers treat the first token of a text differently."""
    model = tokenizers.models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?")
    core = tokenizers.Tokenizer(model)
    core.decoder = tokenizers.decoders.Metaspace()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert stream(tokenizer, [0, 1, 0], [])[:3] == ["one", " two", " one"]
