from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from synthetic import Array, MakeSource, Source

import elmoe.checkpoint.convert as convert_module
import elmoe.checkpoint.sources as sources_module
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.partial_folder import partial_folder
from elmoe.errors import CheckpointError, ConfigError, StorageError
from elmoe.quant.bitnested import dequantize, quantize
from elmoe.quant.tiles import plane_bytes, unpack

MOE_LAYERS = (0, 2)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def interleaved(gate: Array, up: Array) -> Array:
    """Spelled out row by row: blocks of 16 gate rows and 16 up rows in turn."""
    rows = []
    for block in range(0, len(gate), 16):
        rows += [*gate[block : block + 16], *up[block : block + 16]]
    return np.stack(rows)


def assert_holds(msb: Array, lsb: Array, weights: Array) -> None:
    codes, scales = quantize(weights)
    found_codes, found_scales = unpack(msb, lsb, *weights.shape)
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_array_equal(found_scales, scales)


@pytest.mark.parametrize(
    ("dtype", "shards", "tied", "bias"),
    [("BF16", 1, True, False), ("F16", 3, False, False), ("F32", 2, True, True)],
)
def test_round_trip(make_source: MakeSource, tmp_path: Path, dtype: str, shards: int, tied: bool, bias: bool) -> None:
    source = make_source(dtype=dtype, shards=shards, tie_word_embeddings=tied, attention_bias=bias)
    report = convert(source.path, tmp_path / "model.elmoe")
    checkpoint = Checkpoint.open(tmp_path / "model.elmoe")
    assert report.tensors == len(source.tensors)
    assert report.bytes == sum(len(content) for content in contents(tmp_path / "model.elmoe").values())
    assert report.source_sha256 == checkpoint.manifest["source"]["sha256"]
    assert_same_weights(checkpoint, source, tied, bias)


def assert_same_weights(checkpoint: Checkpoint, source: Source, tied: bool, bias: bool) -> None:
    weights = source.tensors
    assert_holds(*checkpoint.linear_planes("embedding"), weights["model.embed_tokens.weight"])
    assert ("head" in checkpoint.layout.linears) is not tied
    if not tied:
        assert_holds(*checkpoint.linear_planes("head"), weights["lm_head.weight"])
    for i in range(3):
        base, ours = f"model.layers.{i}", f"layers.{i}"
        qkv = np.concatenate([weights[f"{base}.self_attn.{part}_proj.weight"] for part in "qkv"])
        assert_holds(*checkpoint.linear_planes(f"{ours}.attention.qkv"), qkv)
        assert_holds(*checkpoint.linear_planes(f"{ours}.attention.out"), weights[f"{base}.self_attn.o_proj.weight"])
        vectors = {
            "attention_norm": "input_layernorm.weight",
            "ffn_norm": "post_attention_layernorm.weight",
            "attention.query_norm": "self_attn.q_norm.weight",
            "attention.key_norm": "self_attn.k_norm.weight",
            **({"attention.out_bias": "self_attn.o_proj.bias"} if bias else {}),
            **({"router": "mlp.gate.weight"} if i in MOE_LAYERS else {}),
        }
        for name, theirs in vectors.items():
            expected = weights[f"{base}.{theirs}"].astype(np.float32)
            np.testing.assert_array_equal(checkpoint.vector(f"{ours}.{name}"), expected)
        if bias:
            qkv_bias = np.concatenate([weights[f"{base}.self_attn.{part}_proj.bias"] for part in "qkv"])
            np.testing.assert_array_equal(checkpoint.vector(f"{ours}.attention.qkv_bias"), qkv_bias)
    dense = "model.layers.1.mlp"
    gate_up = interleaved(weights[f"{dense}.gate_proj.weight"], weights[f"{dense}.up_proj.weight"])
    assert_holds(*checkpoint.linear_planes("layers.1.mlp.gate_up"), gate_up)
    assert_holds(*checkpoint.linear_planes("layers.1.mlp.down"), weights[f"{dense}.down_proj.weight"])
    for block, layer in enumerate(MOE_LAYERS):
        for expert in range(3):
            base = f"model.layers.{layer}.mlp.experts.{expert}"
            gate_up = interleaved(weights[f"{base}.gate_proj.weight"], weights[f"{base}.up_proj.weight"])
            msb, lsb = checkpoint.expert_msb(block, expert), checkpoint.expert_lsb(block, expert)
            msb_split, lsb_split = plane_bytes(*gate_up.shape)
            assert_holds(msb[:msb_split], lsb[:lsb_split], gate_up)
            assert_holds(msb[msb_split:], lsb[lsb_split:], weights[f"{base}.down_proj.weight"])


def test_converting_twice_gives_the_same_bytes(source: Source, tmp_path: Path) -> None:
    convert(source.path, tmp_path / "a")
    convert(source.path, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_bytes_do_not_depend_on_blocks_or_shards(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, sharded = make_source("single/m"), make_source("sharded/m", shards=3)
    convert(single.path, tmp_path / "a")
    monkeypatch.setattr(sources_module, "BLOCK_WEIGHTS", 32 * 96)  # one block per 32 rows
    convert(sharded.path, tmp_path / "b")
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name: a[name] for name in a if name != "manifest.json"} == {
        name: b[name] for name in b if name != "manifest.json"
    }


def test_manifest_names_the_source_without_paths(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.path)
    convert(Path(), tmp_path / "model.elmoe")
    text = (tmp_path / "model.elmoe" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    manifest = json.loads(text)
    assert manifest["source"]["name"] == "source"
    assert sorted(manifest["source"]["files"]) == ["config.json", "model.safetensors"]
    assert (manifest["format"], manifest["version"], manifest["msb_bits"]) == ("elmoe", 1, 4)


def test_copies_what_text_needs_and_nothing_else(source: Source, tmp_path: Path) -> None:
    for name in ("chat_template.jinja", "README.md", "LICENSE"):
        (source.path / name).write_text(name)
    write_tokenizer(source.path, 9)
    convert(source.path, tmp_path / "d")
    bins = ["dense.bin", "experts_lsb.bin", "experts_msb.bin"]
    assert names(tmp_path / "d") == sorted(
        ["config.json", "tokenizer.json", "chat_template.jinja", "manifest.json", *bins]
    )
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "d" / name).read_bytes() == (source.path / name).read_bytes()


def write_tokenizer(folder: Path, tokens: int) -> None:
    words = {f"w{number}": number for number in range(tokens)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, r"source/tokenizer\.json: the tokenizer has 9999 tokens, the model \d+; tokenizer"),
        ("tokenizer.json", "{}", r"source/tokenizer\.json is not a tokenizer \(.*\); fetch the model again"),
        ("generation_config.json", "{", r"source/generation_config\.json is not valid JSON"),
        ("generation_config.json", "[]", r"source/generation_config\.json holds a JSON list, not an object"),
        ("generation_config.json", '{"eos_token_id": "x"}', r"source: generation_config\.json: eos_token_id must be"),
    ],
)
def test_what_cannot_be_opened_is_found_before_weights_are_written(
    source: Source, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    if content is None:
        write_tokenizer(source.path, 9999)
    else:
        (source.path / file).write_text(content)
    before, seen = names(tmp_path), list[int]()
    with pytest.raises(CheckpointError, match=message):
        convert(source.path, tmp_path / "d", lambda done, total: seen.append(done))
    assert (names(tmp_path), seen) == (before, [])


def test_a_broken_chat_template_is_no_obstacle(source: Source, tmp_path: Path) -> None:
    (source.path / "chat_template.jinja").write_text("{% if %}")
    convert(source.path, tmp_path / "d")
    assert (tmp_path / "d" / "chat_template.jinja").read_text() == "{% if %}"


def test_copies_named_chat_templates(source: Source, tmp_path: Path) -> None:
    named = source.path / "additional_chat_templates"
    named.mkdir()
    for name in ("tool_use.jinja", "chat_template.jinja", "notes.txt"):
        (named / name).write_text(name)
    convert(source.path, tmp_path / "d")
    assert (tmp_path / "d" / "chat_template.tool_use.jinja").read_text() == "tool_use.jinja"
    assert [name for name in names(tmp_path / "d") if name.startswith("chat")] == [
        "chat_template.chat_template.jinja",
        "chat_template.tool_use.jinja",
    ]
    Checkpoint.open(tmp_path / "d")


def test_progress_rises_to_its_total(source: Source, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(source.path, tmp_path / "d", lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {seen[-1][0]}


def test_memory_stays_at_a_few_blocks(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "MAX_THREADS", 2)
    source = make_source(
        hidden_size=256, num_experts=96, moe_intermediate_size=128, vocab_size=16384, mlp_only_layers=[]
    ).path
    weights_bytes = (source / "model.safetensors").stat().st_size
    tracemalloc.start()
    try:
        convert(source, tmp_path / "d")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weights_bytes > 60e6
    assert peak < 30e6  # threads x 1 MiB blocks x the temporaries of quantize and pack


def test_sources_that_are_none(source: Source, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; give a Hugging Face folder"):
        convert(tmp_path / "nowhere", tmp_path / "d")
    with pytest.raises(CheckpointError, match=r"config\.json is not a folder; give a Hugging Face folder"):
        convert(source.path / "config.json", tmp_path / "d")
    with pytest.raises(ConfigError, match=r"model\.elmoe is an \.elmoe folder already; use it as it is"):
        convert(converted, tmp_path / "d")
    with pytest.raises(CheckpointError, match=r"m\.gguf does not exist; give a Hugging Face folder or a GGUF file"):
        convert(tmp_path / "m.gguf", tmp_path / "d")
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "q8.gguf").write_bytes(b"")
    for path in ("ggufs", "ggufs/q8.gguf"):
        with pytest.raises(CheckpointError, match=r"q8\.gguf is not a GGUF file"):
            convert(tmp_path / path, tmp_path / "d")


def test_destinations_that_are_none(source: Source, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.elmoe exists already; remove it or choose another destination"):
        convert(source.path, converted)
    with pytest.raises(ConfigError, match="source exists already"):
        convert(source.path, source.path)
    with pytest.raises(ConfigError, match=r"out\.elmoe lies inside the source .*source; choose a destination outside"):
        convert(source.path, source.path / "out.elmoe")
    with pytest.raises(ConfigError, match="nowhere is not a folder; create it or choose another destination"):
        convert(source.path, tmp_path / "nowhere" / "d")
    assert names(source.path) == ["config.json", "model.safetensors"]


def test_a_second_conversion_to_the_same_destination(source: Source, tmp_path: Path) -> None:
    with (
        partial_folder(tmp_path / "d"),
        pytest.raises(StorageError, match="d is being written by another conversion"),
    ):
        convert(source.path, tmp_path / "d")


def test_ctrl_c_leaves_nothing(source: Source, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source.path, tmp_path / "d", interrupt)
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("share", [0.1, 0.8, 1.0])
def test_a_killed_conversion_starts_again_cleanly(source: Source, tmp_path: Path, share: float) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from elmoe.checkpoint.convert import convert
def kill(done, total):
    if done >= float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)
convert(Path(sys.argv[1]), Path(sys.argv[2]), kill)
"""
    command = [sys.executable, "-c", script, source.path, tmp_path / "d", str(share)]
    killed = subprocess.run(command, check=False, timeout=60)
    assert killed.returncode == -9
    assert names(tmp_path) == [".d.partial", "source"]
    convert(source.path, tmp_path / "d")
    assert names(tmp_path) == ["d", "source"]
    Checkpoint.open(tmp_path / "d").verify()
    convert(source.path, tmp_path / "e")
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_too_little_space_is_refused_before_the_start(source: Source, small_disk: Path) -> None:
    with pytest.raises(
        StorageError, match=r"d: the disk is full: \d+ bytes are needed, 98304 are free; free some space"
    ):
        convert(source.path, small_disk / "d", lambda done, total: pytest.fail("started"))
    assert names(small_disk) == []


@pytest.mark.parametrize("full", ["when files are laid out", "when a file is copied"])
def test_a_disk_that_fills_up(source: Source, small_disk: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    if full == "when a file is copied":
        (source.path / "chat_template.jinja").write_bytes(bytes(400_000))
    real = convert_module.free_bytes
    answers = iter([1 << 40])
    monkeypatch.setattr(convert_module, "free_bytes", lambda folder: next(answers, None) or real(folder))
    with pytest.raises(StorageError, match=r"d: the disk is full: \d+ bytes are needed, \d+ are free") as caught:
        convert(source.path, small_disk / "d")
    assert isinstance(caught.value.__cause__, OSError)
    assert names(small_disk) == []


def test_a_folder_that_cannot_be_written(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)  # root, as which tests may run, may write anywhere
    with pytest.raises(StorageError, match=r"\.d\.partial: Permission denied, while \S+/d was written"):
        convert(source.path, tmp_path / "d")


def test_codes_are_close_to_the_weights(source: Source, tmp_path: Path) -> None:
    """A closed-form bound that needs none of our quantisation code: half a step of amax / 127."""
    convert(source.path, tmp_path / "d")
    weights = source.tensors["model.layers.0.self_attn.o_proj.weight"].astype(np.float32)
    planes = Checkpoint.open(tmp_path / "d").linear_planes("layers.0.attention.out")
    error = np.abs(dequantize(*unpack(*planes, *weights.shape)) - weights).reshape(-1, 32)
    step = np.abs(weights).reshape(-1, 32).max(axis=1, keepdims=True) / 127
    assert (error <= 0.57 * step).all()  # half a step, and the FP16 rounding of the scale at |q| = 127
