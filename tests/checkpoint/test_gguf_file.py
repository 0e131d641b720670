"""A model means the same as a GGUF file of any supported type and layout as it does as a Hugging Face folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import MODELS, Kind, Values, random_tensors, write_folder, write_gguf

from elmoe.backend.select import open_backend
from elmoe.bench import gguf_q8
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.gguf_file import GgufFile, gguf_model, read_gguf_config
from elmoe.checkpoint.gguf_header import read_header
from elmoe.checkpoint.manifest import MANIFEST_FILE
from elmoe.checkpoint.weight_source import FloatRows, Int8Rows, Mxfp4Rows
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation
from elmoe.errors import CheckpointError, TensorError, UnsupportedModelError
from elmoe.models.source_tensors import Part
from elmoe.quant import mxfp4

KINDS = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0)
WEIGHTS = ("dense.bin", "experts_msb.bin", "experts_lsb.bin")


def weights_of(source: Path) -> dict[str, bytes]:
    """The converted weights of a folder or file."""
    destination = source.parent / f"{source.stem}.elmoe"
    convert(source, destination)
    Checkpoint.open(destination).verify()
    return {name: (destination / name).read_bytes() for name in WEIGHTS}


@pytest.fixture
def qwen(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small Qwen3-MoE file with what a test changes about it."""

    def write(**changes: Any) -> Path:
        values = MODELS["qwen3_moe"]
        return write_gguf(tmp_path / "model.gguf", values, changes.pop("tensors", random_tensors(values)), **changes)

    return write


@pytest.mark.parametrize("name", MODELS)
def test_every_family_and_type_gives_the_weights_and_program_of_the_folder(name: str, tmp_path: Path) -> None:
    values, tensors = MODELS[name], random_tensors(MODELS[name])
    expected = weights_of(write_folder(tmp_path / "folder", values, tensors))
    program = Checkpoint.open(tmp_path / "folder.elmoe").program
    for kind in KINDS:
        path = write_gguf(tmp_path / f"{kind.name}.gguf", values, tensors, kind)
        assert weights_of(path) == expected, kind
        assert Checkpoint.open(tmp_path / f"{kind.name}.elmoe").program == program


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("deepseek_v2", "whole_latent"),
        ("glm4_moe_lite", "whole_latent"),
        ("mixtral", "single_experts"),
        ("qwen3_moe", "fused_experts"),
        ("glm4_moe_lite", "fused_experts"),
    ],
)
def test_older_and_other_layouts(name: str, layout: str, tmp_path: Path) -> None:
    values, tensors = MODELS[name], random_tensors(MODELS[name])
    old: Values = {}
    if layout == "whole_latent":  # such files count all heads, and know nothing of "mla" lengths
        head_dim = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
        old = {
            "attention.head_count_kv": values["num_attention_heads"],
            "attention.key_length": head_dim,
            "attention.value_length": values["v_head_dim"],
            "attention.key_length_mla": None,
            "attention.value_length_mla": None,
        }
    path = write_gguf(tmp_path / "old.gguf", values, tensors, metadata=old, **{layout: True})
    assert weights_of(path) == weights_of(write_folder(tmp_path / "folder", values, tensors))
    assert Checkpoint.open(tmp_path / "old.elmoe").program == Checkpoint.open(tmp_path / "folder.elmoe").program


def test_q8_0_rows_are_the_blocks_of_the_file(tmp_path: Path) -> None:
    values = MODELS["mixtral"]
    rng = np.random.default_rng(1)
    tensors = {name: rng.standard_normal(t.shape, dtype=np.float32) for name, t in random_tensors(values).items()}
    source = GgufFile.open(write_gguf(tmp_path / "model.gguf", values, tensors, Kind.Q8_0))
    for name, slab in (("lm_head.weight", None), ("model.layers.1.block_sparse_moe.experts.2.w3.weight", 2)):
        weights = tensors[name]
        rows = source.read(Part(name, weights.shape, len(weights)), 3, 30)
        blocks = gguf.quants.quantize(weights, Kind.Q8_0).reshape(*weights.shape[:1], -1, 34)[3:30]
        assert isinstance(rows, Int8Rows), slab
        np.testing.assert_array_equal(rows.codes, blocks[..., 2:].view(np.int8).reshape(27, -1))
        np.testing.assert_array_equal(rows.scales, blocks[..., :2].copy().view(np.float16)[..., 0])


def test_mxfp4_rows_mean_what_the_gguf_package_says(tmp_path: Path) -> None:
    values = MODELS["gpt_oss in MXFP4"]
    path = write_gguf(tmp_path / "model.gguf", values, random_tensors(values))
    blocks = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}["blk.0.ffn_up_exps.weight"]
    part = Part("model.layers.0.mlp.experts.gate_up_proj", (3, 64, 64), 32, slab=1, slabs=3, first=1, step=2)
    rows = GgufFile.open(path).read(part, 0, 32)
    assert isinstance(rows, Mxfp4Rows)
    expected = gguf.quants.dequantize(blocks[1], Kind.MXFP4)
    np.testing.assert_array_equal(mxfp4.dequantize(rows.codes, rows.scales), expected)


def test_a_vector_may_be_of_any_type(tmp_path: Path) -> None:
    values = MODELS["qwen3_moe"]
    tensors = {name: random_tensors(values)[name] for name in ("model.norm.weight", "model.embed_tokens.weight")}
    norm = gguf.quants.quantize(tensors["model.norm.weight"], Kind.Q8_0)
    path = write_gguf(tmp_path / "model.gguf", values, tensors, encoded={"output_norm.weight": (norm, Kind.Q8_0)})
    rows = GgufFile.open(path).read(Part("model.norm.weight", (64,), 64), 8, 64)
    assert isinstance(rows, FloatRows)
    np.testing.assert_array_equal(rows.values[:, 0], gguf.quants.dequantize(norm, Kind.Q8_0)[8:])


def test_a_model_in_several_files(tmp_path: Path) -> None:
    values, tensors = MODELS["qwen3_moe"], random_tensors(MODELS["qwen3_moe"])
    expected = weights_of(write_gguf(tmp_path / "whole.gguf", values, tensors, Kind.Q8_0))
    (tmp_path / "parts").mkdir()
    first = write_gguf(tmp_path / "parts" / "model.gguf", values, tensors, Kind.Q8_0, split=10)
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 3
    assert first == parts[0]
    assert weights_of(first) == expected
    assert read_gguf_config(parts[2]) == read_gguf_config(tmp_path / "whole.gguf")
    assert gguf_model(tmp_path / "parts") is not None
    manifest = Checkpoint.open(first.with_suffix(".elmoe")).manifest
    assert sorted(manifest["source"]["files"]) == [part.name for part in parts]
    parts[1].rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.gguf, part of .*, is missing; fetch the file"):
        GgufFile.open(first)
    parts[0].rename(tmp_path / "parts" / "only.gguf")
    with pytest.raises(CheckpointError, match=r"only\.gguf says that it is one of 3 files, its name that of 1"):
        GgufFile.open(tmp_path / "parts" / "only.gguf")


def test_the_same_tensor_in_two_files(tmp_path: Path) -> None:
    values, tensors = MODELS["qwen3_moe"], random_tensors(MODELS["qwen3_moe"])
    first = write_gguf(tmp_path / "model.gguf", values, tensors, split=16)
    second = tmp_path / first.name.replace("00001-of", "00002-of")
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.gguf: tensor .* is in two of the files"):
        GgufFile.open(first)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_1, Kind.Q4_K, Kind.IQ4_XS])
def test_other_types_are_refused_before_anything_is_written(
    kind: Kind, qwen: Callable[..., Path], tmp_path: Path
) -> None:
    path = qwen(kind=Kind.Q8_0)
    content = bytearray(path.read_bytes())
    name = b"blk.1.ffn_down_exps.weight"
    at = content.index(name) + len(name) + 4 + 3 * 8
    content[at : at + 4] = int(kind).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError) as error:
        convert(path, tmp_path / "model.elmoe")
    assert f"blk.1.ffn_down_exps.weight is of type {kind.name}; elmoe reads F32, F16, Q8_0, BF16, MXFP4" in str(
        error.value
    )
    assert "`convert_hf_to_gguf.py FOLDER --outtype q8_0`" in str(error.value)
    assert "`llama-quantize --allow-requantize model.gguf model-q8_0.gguf q8_0`" in str(error.value)
    assert not (tmp_path / "model.elmoe").exists()
    assert read_gguf_config(path)["model_type"] == "qwen3_moe"


def test_a_type_that_nobody_knows(qwen: Callable[..., Path]) -> None:
    path = qwen()
    content = bytearray(path.read_bytes())
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    content[at : at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=r"output_norm\.weight is of type 99, which is newer than the gguf"):
        GgufFile.open(path).check(Part("model.norm.weight", (64,), 64))


def test_truncated_weights(qwen: Callable[..., Path]) -> None:
    path = qwen()
    config = read_gguf_config(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.gguf is truncated: it has \d+ bytes, .* ends at \d+; fetch"):
        GgufFile.open(path)
    assert read_gguf_config(path) == config


def test_tensors_that_are_missing_misshapen_or_unexpected(qwen: Callable[..., Path], tmp_path: Path) -> None:
    def refused(message: str, **changes: Any) -> None:
        (tmp_path / "model.gguf").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=message):
            convert(qwen(**changes), tmp_path / "model.elmoe")

    tensors = random_tensors(MODELS["qwen3_moe"])
    name = "model.layers.1.self_attn.o_proj.weight"
    refused(
        rf"tensor blk\.1\.attn_output\.weight \({re.escape(name)}\) is missing, though the metadata",
        tensors={key: value for key, value in tensors.items() if key != name},
    )
    refused(
        r"attn_output\.weight has shape \[64, 96\], the metadata call for",
        tensors=tensors | {name: tensors[name][:, :96]},
    )
    extra = {"model.layers.0.self_attn.o_proj.bias": np.zeros(64, np.float32)}
    refused(r"tensor blk\.0\.attn_output\.bias has no place in the qwen3_moe model", tensors=tensors | extra)


def test_layers_that_predict_several_tokens_are_left_out(tmp_path: Path) -> None:
    values = MODELS["glm4_moe_lite"]
    more = values | {"num_hidden_layers": 3}
    path = write_gguf(tmp_path / "model.gguf", more, random_tensors(more), metadata={"nextn_predict_layers": 1})
    expected = {name: tensor for name, tensor in random_tensors(more).items() if ".layers.2." not in name}
    assert weights_of(path) == weights_of(write_folder(tmp_path / "folder", values, expected))


def test_damaged_scales(qwen: Callable[..., Path], tmp_path: Path) -> None:
    path = qwen(kind=Kind.Q8_0)
    content = bytearray(path.read_bytes())
    start = read_header(path).tensors["blk.0.attn_v.weight"].offset
    content[start : start + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(content)
    with pytest.raises(TensorError, match=r"self_attn\.v_proj\.weight: NaN or Inf scale in row 0"):
        convert(path, tmp_path / "model.elmoe")
    assert not (tmp_path / "model.elmoe").exists()


def test_what_a_path_means(qwen: Callable[..., Path], tmp_path: Path) -> None:
    path = qwen()
    assert gguf_model(path) == path
    assert gguf_model(tmp_path) == path
    assert gguf_model(tmp_path / "config.json") is None
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds several models \(model\.gguf, other\.gguf\); give one"):
        gguf_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf_model(tmp_path) is None


def test_the_folder_says_where_it_comes_from(qwen: Callable[..., Path], tmp_path: Path) -> None:
    path = qwen(metadata={"tokenizer.chat_template": "{{ messages }}"})
    report = convert(path, tmp_path / "model.elmoe")
    checkpoint = Checkpoint.open(tmp_path / "model.elmoe")
    assert checkpoint.manifest["source"]["name"] == "model.gguf"
    assert report.source_sha256 == checkpoint.manifest["source"]["sha256"]
    assert (tmp_path / "model.elmoe" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert checkpoint.config == read_gguf_config(path)
    assert MANIFEST_FILE not in checkpoint.manifest["copied"]


def test_the_built_in_model_written_for_the_peer_and_read_back(tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_q8.write_gguf(tiny, path)
    assert weights_of(path) == {name: (tiny.path / name).read_bytes() for name in WEIGHTS}
    assert Checkpoint.open(tmp_path / "tiny.elmoe").program == tiny.program


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["gpt_oss in MXFP4", "glm4_moe_lite", "mixtral"])
def test_tokens_are_those_of_the_folder(name: str, backend: str, tmp_path: Path) -> None:
    values, tensors = MODELS[name], random_tensors(MODELS[name])

    def tokens(source: Path, mode: Mode) -> list[int]:
        destination = tmp_path / f"{source.stem}-{mode.value}.elmoe"
        convert(source, destination)
        options = EngineOptions(speculation=Speculation(mode, width=2, depth=3, verify=4))
        engine = Engine(open_backend(backend, Checkpoint.open(destination)), options=options)
        request = engine.submit([5, 17, 60, 3], Generation(24, ignore_eos=True))
        while request.finish_reason is None:
            engine.step()
        return request.output().token_ids

    expected = tokens(write_folder(tmp_path / "folder", values, tensors), Mode.AR)
    path = write_gguf(tmp_path / "model.gguf", values, tensors, Kind.Q8_0)
    assert tokens(path, Mode.AR) == tokens(path, Mode.SD) == expected
    assert len(set(expected)) > 3
