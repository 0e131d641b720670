from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import DTYPES, MakeSource, Source

from elmoe.checkpoint.safetensors_folder import SafetensorsFolder
from elmoe.errors import CheckpointError, UnsupportedModelError

NAME = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shards", [1, 4])
def test_reads_rows_in_the_dtype_of_the_file(make_source: MakeSource, dtype: str, shards: int) -> None:
    source = make_source(dtype=dtype, shards=shards)
    folder = SafetensorsFolder.open(source.path)
    assert folder.config == source.config
    assert folder.tensors == tuple(sorted(source.tensors))
    assert len(folder.files) == (1 if shards == 1 else shards + 1)
    for name, tensor in source.tensors.items():
        assert folder.check(name, tensor.shape) == tensor.nbytes
        rows = folder.rows(name, 1, 3)
        assert rows.dtype == DTYPES[dtype]
        np.testing.assert_array_equal(rows, tensor[1:3])


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.int8])
def test_other_dtypes_are_not_supported(source: Source, dtype: type) -> None:
    source.tensors[NAME] = source.tensors[NAME].astype(dtype)
    source.save()
    with pytest.raises(
        UnsupportedModelError, match=r"q_proj\.weight has dtype [IF]\d+; elmoe converts BF16, F16 and F32 checkpoints"
    ):
        SafetensorsFolder.open(source.path).check(NAME, (64, 96))


def test_float8_is_not_supported(source: Source) -> None:
    """The header alone decides: NumPy need not know the dtype."""
    header = json.dumps({NAME: {"dtype": "F8_E4M3", "shape": [2, 32], "data_offsets": [0, 64]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(64)
    (source.path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="has dtype F8_E4M3; elmoe converts BF16"):
        SafetensorsFolder.open(source.path).check(NAME, (2, 32))


def test_missing_and_misshapen_tensors(source: Source) -> None:
    folder = SafetensorsFolder.open(source.path)
    with pytest.raises(
        CheckpointError, match=r"source: tensor nope is missing, though config\.json calls for it; fetch"
    ):
        folder.check("nope", (1,))
    with pytest.raises(CheckpointError, match=r"has shape \[64, 96\], config\.json calls for \[64, 128\]"):
        folder.check(NAME, (64, 128))


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
