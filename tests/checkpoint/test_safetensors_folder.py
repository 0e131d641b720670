from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import DTYPES, MakeSource, Source

from elmoe.checkpoint.safetensors_folder import SafetensorsFolder
from elmoe.checkpoint.weight_source import FloatRows, Mxfp4Rows
from elmoe.errors import CheckpointError, StorageError, UnsupportedModelError
from elmoe.models.source_tensors import Part
from elmoe.quant import mxfp4

NAME = "model.layers.0.self_attn.q_proj.weight"
QUERY = Part(NAME, (64, 96), 64)
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shards", [1, 4])
def test_reads_rows_in_the_dtype_of_the_file(make_source: MakeSource, dtype: str, shards: int) -> None:
    source = make_source(dtype=dtype, shards=shards)
    folder = SafetensorsFolder.open(source.path)
    assert folder.config == source.config
    assert folder.tensors == tuple(sorted(source.tensors))
    weights = (
        ["model.safetensors"] if shards == 1 else [INDEX, *(f"model-0000{i}-of-00004.safetensors" for i in range(1, 5))]
    )
    assert folder.files == tuple(source.path / name for name in ("config.json", *weights))
    for name, tensor in source.tensors.items():
        part = Part(name, tensor.shape, tensor.shape[0])
        assert folder.check(part) == tensor.nbytes
        rows = folder.read(part, 1, 3)
        assert isinstance(rows, FloatRows)
        assert rows.values.dtype == DTYPES[dtype]
        np.testing.assert_array_equal(rows.values, tensor.reshape(len(tensor), -1)[1:3])


def test_reads_fused_tensors(source: Source) -> None:
    fused = np.arange(3 * 4 * 6, dtype=np.float32).reshape(3, 4, 6).astype(DTYPES["BF16"])
    bias = np.arange(3 * 6, dtype=np.float32).reshape(3, 6)
    source.tensors.update(fused=fused, bias=bias)
    source.save()
    folder = SafetensorsFolder.open(source.path)
    part = Part("fused", (3, 4, 6), 3, slab=2, slabs=3, first=1, step=2, transposed=True)
    assert folder.check(part) == 3 * 4 * 2
    assert "bias" in folder.unused([part])
    assert "fused" not in folder.unused([part])
    rows = folder.read(part, 1, 3)
    assert isinstance(rows, FloatRows)
    np.testing.assert_array_equal(rows.values, fused[2].T[[3, 5]])
    rows = folder.read(Part("bias", (3, 6), 3, slab=1, slabs=3, first=1, step=2), 0, 3)
    assert isinstance(rows, FloatRows)
    np.testing.assert_array_equal(rows.values, bias[1, 1::2, None])


def test_columns_of_a_fused_tensor_are_read_without_its_rest(source: Source) -> None:
    source.tensors["fused"] = np.ones((2, 1024, 1024), np.float32)
    source.save()
    folder = SafetensorsFolder.open(source.path)
    tracemalloc.start()
    try:
        folder.read(Part("fused", (2, 1024, 1024), 1024, slab=1, slabs=2, transposed=True), 32, 64)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_reads_tensors_at_odd_offsets(source: Source, odd: int) -> None:
    """Some writers do not align them."""
    tensors = {"a": np.linspace(-1, 1, 64, dtype=np.float32), "b": np.linspace(2, 3, 64).astype(DTYPES["BF16"])}
    entries = {
        "a": {"dtype": "F32", "shape": [2, 32], "data_offsets": [0, 256]},
        "b": {"dtype": "BF16", "shape": [64], "data_offsets": [256, 384]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (odd - len(header) % 4 + 4)
    content = len(header).to_bytes(8, "little") + header + b"".join(tensor.tobytes() for tensor in tensors.values())
    (source.path / "model.safetensors").write_bytes(content)
    folder = SafetensorsFolder.open(source.path)
    rows = [folder.read(Part("a", (2, 32), 2), 0, 2), folder.read(Part("b", (64,), 64), 0, 64)]
    for found, tensor in zip(rows, tensors.values(), strict=True):
        assert isinstance(found, FloatRows)
        np.testing.assert_array_equal(found.values.astype(np.float32).reshape(-1), tensor.astype(np.float32))


@pytest.fixture
def mxfp4_source(source: Source) -> Source:
    """With a tensor ``x.experts`` [3, 6, 64] in MXFP4."""
    weights = np.random.default_rng(0).standard_normal((3 * 6, 64), dtype=np.float32)
    codes, scales = mxfp4.quantize(weights)
    source.tensors["x.experts_blocks"] = mxfp4.pack(codes).reshape(3, 6, 2, 16)
    source.tensors["x.experts_scales"] = scales.reshape(3, 6, 2)
    source.config["quantization_config"] = {"quant_method": "mxfp4"}
    source.save()
    return source


def test_mxfp4_pairs_go_by_one_name(mxfp4_source: Source) -> None:
    folder = SafetensorsFolder.open(mxfp4_source.path)
    assert [name for name in folder.tensors if name.startswith("x.")] == ["x.experts"]
    part = Part("x.experts", (3, 6, 64), 3, slab=1, slabs=3, first=1, step=2)
    assert folder.check(part) == 3 * 64 // 2 + 3 * 2
    rows = folder.read(part, 1, 3)
    assert isinstance(rows, Mxfp4Rows)
    np.testing.assert_array_equal(mxfp4.pack(rows.codes), mxfp4_source.tensors["x.experts_blocks"][1, [3, 5]])
    np.testing.assert_array_equal(rows.scales, mxfp4_source.tensors["x.experts_scales"][1, [3, 5]])


def test_mxfp4_that_config_json_does_not_know_of(mxfp4_source: Source) -> None:
    mxfp4_source.config.pop("quantization_config")
    mxfp4_source.save()
    folder = SafetensorsFolder.open(mxfp4_source.path)
    with pytest.raises(CheckpointError, match=r"x\.experts is MXFP4, but config\.json has no quantization_config"):
        folder.check(Part("x.experts", (3, 6, 64), 6, slab=1, slabs=3))


def test_broken_mxfp4_pairs(mxfp4_source: Source) -> None:
    part = Part("x.experts", (3, 6, 64), 6, slab=1, slabs=3)
    scales = mxfp4_source.tensors["x.experts_scales"]
    mxfp4_source.tensors["x.experts_scales"] = scales.astype(np.float32)
    mxfp4_source.save()
    with pytest.raises(UnsupportedModelError, match=r"x\.experts_scales has dtype F32; .* as pairs of U8"):
        SafetensorsFolder.open(mxfp4_source.path).check(part)
    mxfp4_source.tensors["x.experts_scales"] = scales[:, :3].copy()
    mxfp4_source.save()
    with pytest.raises(CheckpointError, match=r"x\.experts_scales has shape \[3, 3, 2\], config.* for \[3, 6, 2\]"):
        SafetensorsFolder.open(mxfp4_source.path).check(part)
    del mxfp4_source.tensors["x.experts_scales"]
    mxfp4_source.save()
    folder = SafetensorsFolder.open(mxfp4_source.path)
    assert "x.experts_blocks" in folder.tensors
    with pytest.raises(CheckpointError, match=r"tensor x\.experts_scales is missing"):
        folder.check(part)


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.int8])
def test_other_dtypes_are_not_supported(source: Source, dtype: type) -> None:
    source.tensors[NAME] = source.tensors[NAME].astype(dtype)
    source.save()
    with pytest.raises(
        UnsupportedModelError, match=r"q_proj\.weight has dtype [IF]\d+; elmoe converts BF16, F16 and F32 checkpoints,"
    ):
        SafetensorsFolder.open(source.path).check(QUERY)


def test_float8_is_not_supported(source: Source) -> None:
    """The header alone decides: NumPy need not know the dtype."""
    header = json.dumps({NAME: {"dtype": "F8_E4M3", "shape": [2, 32], "data_offsets": [0, 64]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(64)
    (source.path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="has dtype F8_E4M3; elmoe converts BF16"):
        SafetensorsFolder.open(source.path).check(Part(NAME, (2, 32), 2))


def test_missing_and_misshapen_tensors(source: Source) -> None:
    folder = SafetensorsFolder.open(source.path)
    with pytest.raises(
        CheckpointError, match=r"source: tensor nope is missing, though config\.json calls for it; fetch"
    ):
        folder.check(Part("nope", (1,), 1))
    with pytest.raises(CheckpointError, match=r"has shape \[64, 96\], config\.json calls for \[64, 128\]"):
        folder.check(Part(NAME, (64, 128), 64))


def test_small_files(source: Source) -> None:
    (source.path / "tokenizer.json").write_text("{}")
    (source.path / "README.md").write_text("no")
    files = SafetensorsFolder.open(source.path).small_files()
    assert files == {"config.json": json.dumps(source.config).encode(), "tokenizer.json": b"{}"}


def test_small_files_that_cannot_be_read(source: Source) -> None:
    (source.path / "tokenizer.json").write_text("{}")
    folder = SafetensorsFolder.open(source.path)
    (source.path / "tokenizer.json").unlink()
    with pytest.raises(StorageError, match=r"tokenizer\.json cannot be read: No such file"):
        folder.small_files()


def test_missing_config(source: Source) -> None:
    (source.path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing; give the folder that holds it"):
        SafetensorsFolder.open(source.path)


@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_truncated_weights(source: Source, keep: int) -> None:
    file = source.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or not a safetensors file \(.*fetch"):
        SafetensorsFolder.open(source.path)


def test_missing_and_incomplete_shards(make_source: MakeSource) -> None:
    source = make_source(shards=3)
    second = source.path / "model-00002-of-00003.safetensors"
    save_file({"other": np.zeros(4, np.float32)}, second)
    with pytest.raises(
        CheckpointError, match=rf"model-00002-of-00003\.safetensors: tensor \S+, which {INDEX} lists, is missing"
    ):
        SafetensorsFolder.open(source.path)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"model-00002-of-00003\.safetensors, which {INDEX} lists, is missing"):
        SafetensorsFolder.open(source.path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "a is said to be in 3, which is not a file name"),
        (
            '{"weight_map": {"a": "../b.safetensors"}}',
            "a is said to be in '../b.safetensors', which is not a file name",
        ),
    ],
)
def test_broken_index(make_source: MakeSource, index: str, message: str) -> None:
    source = make_source(shards=2)
    (source.path / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFolder.open(source.path)


def test_no_weights_and_pickled_weights(source: Source, tmp_path: Path) -> None:
    (source.path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"source has neither model\.safetensors nor {INDEX}; fetch"):
        SafetensorsFolder.open(source.path)
    (source.path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"holds pickled weights \(pytorch_model\.bin\)"):
        SafetensorsFolder.open(source.path)
