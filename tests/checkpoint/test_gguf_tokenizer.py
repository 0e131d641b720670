"""Tokenizers from metadata: the ids and texts of the tokenizer that the metadata were made from.

The patterns of `gguf_pre_tokenizers.py` were held against ids of the original tokenizers for the 47 texts of
``models/ggml-vocab-*.gguf.inp`` in llama.cpp 0.3.36 (deepseek-coder, deepseek-llm, gpt-2, llama-bpe, llama-spm, qwen2,
refact, starcoder): all equal. The pieces here are theirs. The pattern `default` was held against llama.cpp itself, told
to use it, for the same texts with four of these vocabularies (deepseek-llm, gpt-2, qwen2, starcoder): all equal.
"""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from gguf_models import MODELS, random_tensors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.gguf_pre_tokenizers import PRE_TOKENIZERS
from elmoe.checkpoint.gguf_tokenizer import tokenizer_files
from elmoe.checkpoint.text import Tokenizer, stop_ids
from elmoe.errors import CheckpointError

Values = dict[str, Any]
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
TEXTS = (
    "",
    "Hello, world! It's 12345 o'clock; WE'LL see...",
    "  leading and   inner   spaces \n\n\t tabs\r\n",
    "naïve café über Straße, Ελληνικά, Русский, עברית, 日本語のテキスト, 한국어",
    "👩‍👩‍👧‍👦🙂 \u00a0 x\u2003y",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "def f(x):\n    return x**2  # comment\n",
)
TINY = json.loads(files("elmoe").joinpath("data", "tiny.elmoe", "tokenizer.json").read_text())


def byte_level(**changes: Any) -> Values:
    """Metadata of the built-in tokenizer, as the converter would write them."""
    vocab = TINY["model"]["vocab"]
    special = {token["id"] for token in TINY["added_tokens"]}
    fields: Values = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": sorted(vocab, key=vocab.__getitem__),
        "token_type": [CONTROL if number in special else NORMAL for number in range(len(vocab))],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in TINY["model"]["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "padding_token_id": 0,
    }
    return metadata(fields | changes)


SPM_PIECES = ["▁t", "▁a", "h", "e", "▁th", "▁the", "he", "in", "er", "▁in", "t", "i", "n", "r", "a", "▁", "s", "."]


def sentence_piece(**changes: Any) -> Values:
    """Metadata of a small SentencePiece vocabulary: earlier pieces are better, single characters worst."""
    head = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    tokens = [*head, *SPM_PIECES, "[TOOL]", "[PAD1]"]
    scores = [0.0] * len(head) + [-1.0 - rank for rank in range(len(SPM_PIECES))] + [-1000.0, -10000.0]
    types = [*head.values(), *[NORMAL] * len(SPM_PIECES), USER, UNUSED]
    return metadata({"model": "llama", "tokens": tokens, "scores": scores, "token_type": types} | changes)


def metadata(fields: Values) -> Values:
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


def made(values: Values, vocab_size: int = 1 << 20) -> dict[str, bytes]:
    return tokenizer_files(Path("x.gguf"), values, vocab_size).files


def notes(values: Values) -> str:
    return "\n".join(tokenizer_files(Path("x.gguf"), values, 1 << 20).notes)


def opened(values: Values) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(made(values)["tokenizer.json"].decode())


ORIGINAL, FOUND = tokenizers.Tokenizer.from_str(json.dumps(TINY)), opened(byte_level())


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_bpe_has_the_ids_of_the_original(text: str) -> None:
    ids = ORIGINAL.encode(text).ids
    assert FOUND.encode(text).ids == ids
    for skip in (True, False):
        assert FOUND.decode(ids, skip_special_tokens=skip) == ORIGINAL.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z"], max_codepoint=0x2FF)))
def test_any_text(text: str) -> None:
    ids = ORIGINAL.encode(text).ids
    assert FOUND.encode(text).ids == ids
    assert FOUND.decode(ids) == ORIGINAL.decode(ids)


def pieces(pre: str, text: str) -> list[str]:
    """The words that a text is cut into."""
    cut = PRE_TOKENIZERS[pre]
    empty = TINY | {"added_tokens": [], "model": TINY["model"] | {"vocab": {}, "merges": []}}
    steps = {"pre_tokenizer": cut.pre_tokenizer(), "normalizer": cut.normalizer()}
    core = tokenizers.Tokenizer.from_str(json.dumps(empty | steps))
    text = core.normalizer.normalize_str(text) if core.normalizer else text
    return [text[begin:end] for _, (begin, end) in core.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        (
            "default",
            "It's 12345 $5+x!\n y",
            ["It", "'", "s", " ", "123", "45", " ", "$", "5", "+", "x", "!", "\n", " y"],
        ),
        ("gpt-2", "It's  1234 IT'S\n\n x", ["It", "'s", " ", " 1234", " IT", "'", "S", "\n\n", " x"]),
        ("olmo", "cafe\u0301 12", ["café", " 12"]),
        ("starcoder", "a 1234's", ["a", " ", "1", "2", "3", "4", "'s"]),
        ("refact", "x12 y", ["x", "1", "2", " y"]),
        ("qwen2", "It'S  1234\n\n!?\nx", ["It", "'S", " ", " ", "1", "2", "3", "4", "\n\n", "!?\n", "x"]),
        ("llama-bpe", "It'S  12345 (x)", ["It", "'S", " ", " ", "123", "45", " (", "x", ")"]),
        ("glm4", "12345678", ["123", "456", "78"]),
        (
            "gpt-4o",
            "camelCase HTTPServer's 1234/5\n/",
            ["camel", "Case", " HTTPServer's", " ", "123", "4", "/", "5", "\n", "/"],
        ),
        ("deepseek-llm", "Hi 12\n日本 x!?", ["Hi", " ", "1", "2", "\n", "日本", " x", "!?"]),
        ("deepseek-coder", "Hi 12\n日本!?", ["Hi", " ", "1", "2", "\n", "日本", "!?"]),
        ("deepseek-v3", "Hi 12345日本 x!?\n", ["Hi", " ", "123", "45", "日本", " x", "!?\n"]),
    ],
)
def test_how_text_is_cut(pre: str, text: str, expected: list[str]) -> None:
    assert pieces(pre, text) == expected


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_no_text_is_lost(pre: str) -> None:
    for text in TEXTS:
        assert "".join(pieces(pre, text)) == text


def test_a_name_that_is_not_known() -> None:
    found = made(byte_level(pre="tekken") | {"tokenizer.chat_template": "{{ messages }}"})
    assert sorted(found) == ["chat_template.jinja", "generation_config.json", "tokenizer_config.json"]
    note = notes(byte_level(pre="tekken"))
    assert note.startswith("x.gguf: no tokenizer.json is made, so that prompts have to be token ids: ")
    assert "tokenizer.ggml.pre = 'tekken'" in note
    assert "which knows chatglm-bpe, " in note
    assert "put the original model's tokenizer.json into the .elmoe folder, or, if one of these is right, " in note
    assert "`gguf-new-metadata --pre-tokenizer NAME x.gguf NEW.gguf`" in note
    assert "\n" not in note
    assert notes(byte_level()) == notes(byte_level(pre="default")) == ""


def test_no_name_is_that_of_the_default() -> None:
    for pre in (None, ""):
        assert made(byte_level(pre=pre)) == made(byte_level(pre="default"))
        assert notes(byte_level(pre=pre)).startswith("x.gguf does not say how its tokenizer cuts text into words")
    assert opened(byte_level(pre=None)).decode(opened(byte_level(pre=None)).encode(TEXTS[1]).ids) == TEXTS[1]


@pytest.mark.parametrize("merges", [None, []])
def test_a_vocabulary_of_bytes(merges: list[str] | None) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    values = byte_level(tokens=alphabet, token_type=None, merges=merges, bos_token_id=None, eos_token_id=None)
    core = opened(values | {"tokenizer.ggml.padding_token_id": 0})
    ids = core.encode(TEXTS[3]).ids
    assert len(ids) == len(TEXTS[3].encode())
    assert core.decode(ids) == TEXTS[3]


def test_a_word_that_is_a_token_whatever_the_merges_say() -> None:
    tokens = [*byte_level()["tokenizer.ggml.tokens"], "Ġqzxqzxj"]
    types = [*byte_level()["tokenizer.ggml.token_type"], NORMAL]
    for pre, whole in (("qwen2", False), ("llama-bpe", True)):
        ids = opened(byte_level(pre=pre, tokens=tokens, token_type=types, add_bos_token=False)).encode(" qzxqzxj").ids
        assert (ids == [len(tokens) - 1]) is whole


def greedy_pairs(text: str) -> list[str]:
    """SentencePiece's BPE: the best-scored neighbours are joined, the first of equals, until none can be."""
    rank = {piece: place for place, piece in enumerate(SPM_PIECES)}
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in rank]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("then rais."), min_size=1, max_size=30))
def test_sentence_piece_joins_the_best_scored_neighbours(text: str) -> None:
    tokens = sentence_piece()["tokenizer.ggml.tokens"]
    found = SPM.encode(text, add_special_tokens=False).ids
    assert [tokens[number] for number in found] == greedy_pairs(text)
    assert SPM.decode(found) == text


SPM = opened(sentence_piece())


def test_sentence_piece_bytes_prefix_and_special_tokens() -> None:
    core = opened(sentence_piece())
    tokens = sentence_piece()["tokenizer.ggml.tokens"]

    def names(text: str, values: Values | None = None) -> list[str]:
        return [tokens[number] for number in (opened(values) if values else core).encode(text).ids]

    assert names("the") == ["<s>", "▁the"]
    assert names("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert core.decode(core.encode("the é\n🙂 in").ids) == "the é\n🙂 in"
    assert names("in[TOOL]in</s>") == ["<s>", "▁in", "[TOOL]", "▁in", "</s>"]
    assert names("the in", sentence_piece(add_space_prefix=False)) == ["<s>", "t", "he", "▁in"]
    assert names("the", sentence_piece(add_bos_token=False)) == ["▁the"]
    assert names("the", sentence_piece(add_eos_token=True)) == ["<s>", "▁the", "</s>"]
    added = {
        token["content"]: token["special"]
        for token in json.loads(made(sentence_piece())["tokenizer.json"])["added_tokens"]
    }
    assert added == {"<unk>": True, "<s>": True, "</s>": True, "[TOOL]": False}


def test_bos_where_the_file_or_the_kind_says_so() -> None:
    plain = opened(byte_level()).encode("hi").ids
    assert opened(byte_level(add_bos_token=True)).encode("hi").ids == [0, *plain]
    begun = opened(byte_level(pre="llama-bpe"))
    assert begun.encode("hi").ids[0] == 0
    assert 0 not in begun.encode("hi", add_special_tokens=False).ids
    assert opened(byte_level(pre="llama-bpe", add_bos_token=False)).encode("hi").ids[0] != 0
    assert opened(byte_level(add_bos_token=True, bos_token_id=None)).encode("hi").ids == plain


def test_special_tokens_and_stop_tokens() -> None:
    found = made(byte_level(eot_token_id=5, eom_token_id=7))
    assert json.loads(found["tokenizer_config.json"]) == {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    generation = json.loads(found["generation_config.json"])
    assert generation == {"bos_token_id": 0, "eos_token_id": [0, 2, 5, 7]}  # <|endoftext|> ends a turn by its name
    assert stop_ids(generation, {}) == (0, 2, 5, 7)
    assert json.loads(made(sentence_piece())["tokenizer_config.json"]) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    assert json.loads(made(sentence_piece())["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": [2]}


def test_a_name_alone_does_not_end_a_turn() -> None:
    types = [NORMAL] * len(byte_level()["tokenizer.ggml.tokens"])
    assert json.loads(made(byte_level(token_type=types))["generation_config.json"])["eos_token_id"] == [2]


def test_tokens_that_are_not_used_are_not_in_the_vocabulary() -> None:
    tokens = [*byte_level()["tokenizer.ggml.tokens"], "[PAD8192]", "<tool>"]
    types = [*byte_level()["tokenizer.ggml.token_type"], UNUSED, USER]
    core = opened(byte_level(tokens=tokens, token_type=types))
    assert core.token_to_id("[PAD8192]") is None
    assert core.encode("a<tool>").ids[-1] == 8193
    assert core.decode([8193]) == "<tool>"


def test_merges_of_pieces_that_are_no_tokens_are_left_out() -> None:
    merges = ["Ġ nonsense", "! ☃", *byte_level()["tokenizer.ggml.merges"]]
    core = opened(byte_level(merges=merges))
    assert core.encode(TEXTS[1]).ids == ORIGINAL.encode(TEXTS[1]).ids


def test_template_and_files_without_a_vocabulary() -> None:
    assert made({}) == {}
    assert made({"tokenizer.ggml.model": "none", "tokenizer.chat_template": "é{{ x }}"}) == {
        "chat_template.jinja": "é{{ x }}".encode()
    }
    assert "chat_template.jinja" not in made(byte_level())
    named = {"tokenizer.chat_template.tool_use": "t", "tokenizer.chat_template.../../x": "no name for a file"}
    assert made({"tokenizer.ggml.model": "none"} | named) == {"chat_template.tool_use.jinja": b"t"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (byte_level(tokens=None), r"tokenizer\.ggml\.tokens is no list of str"),
        (byte_level(tokens=[1, 2]), r"tokenizer\.ggml\.tokens is no list of str"),
        (byte_level(merges="a b"), r"tokenizer\.ggml\.merges is no list of str"),
        (byte_level(pre=["qwen2"]), r"tokenizer\.ggml\.pre is no string"),
        (byte_level(model=["gpt2"]), r"tokenizer\.ggml\.model is no string"),
        (byte_level(token_type=[1]), "8192 tokens have 1 types"),
        (byte_level(eos_token_id=8192), r"tokenizer\.ggml\.eos_token_id = 8192 is no token"),
        (byte_level(eos_token_id=-1), r"tokenizer\.ggml\.eos_token_id = -1 is no token"),
        (sentence_piece(scores=["a"]), r"tokenizer\.ggml\.scores is no list of float"),
        (sentence_piece(scores=[1.0]), "279 tokens have 1 scores"),
    ],
)
def test_damage(values: Values, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.gguf: the tokenizer is damaged \({message}\); fetch the file"):
        made(values)


ANYTHING = ([], ["a"], [1], [1.5], [True], "", "x", 1, -1, 2.5, float("nan"), True, 1 << 40)


@pytest.mark.parametrize("value", ANYTHING, ids=repr)
def test_fields_of_any_type(value: Any) -> None:
    """Taken, or refused as bad input."""
    vocabulary = {"model": "gpt2", "pre": "qwen2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "bos_token_id": 0}
    pieces = {"model": "llama", "tokens": ["<unk>", "a", "b", "ab"], "scores": [0.0, -3.0, -2.0, -1.0]}
    for fields in (vocabulary, pieces):
        for name in (*vocabulary, "scores", "token_type", "eot_token_id", "add_bos_token", "add_space_prefix"):
            with suppress(CheckpointError):
                assert len(made(metadata(fields | {name: value}))) >= 2
        chat = {"tokenizer.chat_template": value, "tokenizer.chat_template.x": value}
        assert "tokenizer.json" in made(metadata(fields) | chat)


@pytest.mark.parametrize("scores", [None, [], [-1000.0] * len(sentence_piece()["tokenizer.ggml.tokens"])])
def test_scores_that_say_nothing(scores: list[float] | None) -> None:
    found = made(sentence_piece(scores=scores))
    assert "tokenizer.json" not in found
    assert json.loads(found["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": [2]}
    assert "token ids: its tokens have no scores, or all the same" in notes(sentence_piece(scores=scores))


def test_special_tokens_by_default_are_those_that_there_are() -> None:
    few = metadata(
        {"model": "llama", "tokens": ["<unk>", "<s>"], "scores": [0.0, -1.0], "token_type": [UNKNOWN, CONTROL]}
    )
    assert json.loads(made(few)["generation_config.json"]) == {"bos_token_id": 1}


def test_other_kinds_and_a_vocabulary_larger_than_the_model() -> None:
    assert "tokenizer.json" not in made(byte_level(model="bert"))
    assert "tokenizer.ggml.model = 'bert' is not supported, elmoe reads gpt2" in notes(byte_level(model="bert"))
    with pytest.raises(CheckpointError, match=r"x\.gguf: the tokenizer has 8192 tokens, the embedding 100 rows"):
        made(byte_level(), vocab_size=100)


def test_a_model_without_a_tokenizer_is_converted_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = MODELS["qwen3_moe"] | {"vocab_size": 8192}
    extra = byte_level(pre="tekken")
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), gguf.GGMLQuantizationType.Q8_0, extra)
    report = convert(path, tmp_path / "model.elmoe")
    assert [record.getMessage() for record in caplog.records] == list(report.notes)
    assert "'tekken'" in report.notes[0]
    assert stop_ids(Checkpoint.open(tmp_path / "model.elmoe").generation_config, {}) == (0, 2)
    (tmp_path / "model.elmoe" / "tokenizer.json").write_text(json.dumps(TINY))  # the remedy that the note gives
    Checkpoint.open(tmp_path / "model.elmoe").verify()
    assert Tokenizer.open(tmp_path / "model.elmoe").encode(TEXTS[1]) == ORIGINAL.encode(TEXTS[1]).ids


def test_through_a_file(tmp_path: Path) -> None:
    values = MODELS["qwen3_moe"] | {"vocab_size": 8192}
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}{% endfor %}"
    extra = byte_level() | {"tokenizer.chat_template": template}
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values), gguf.GGMLQuantizationType.Q8_0, extra)
    convert(path, tmp_path / "model.elmoe")
    tokenizer = Tokenizer.open(tmp_path / "model.elmoe")
    assert [tokenizer.encode(text) for text in TEXTS] == [ORIGINAL.encode(text).ids for text in TEXTS]
    rendered = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>"
    assert stop_ids(Checkpoint.open(tmp_path / "model.elmoe").generation_config, {}) == (0, 2)
