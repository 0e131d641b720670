from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import Source

import elmoe.checkpoint.sources as sources_module
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.safetensors_folder import SafetensorsFolder
from elmoe.checkpoint.sources import MatrixSource, model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.checkpoint.weight_source import Int8Rows, Mxfp4Rows, RowIndex, Rows, floats, select
from elmoe.errors import CheckpointError, InternalError, TensorError
from elmoe.models.program import Linear
from elmoe.models.registry import family_of
from elmoe.models.source_tensors import Part
from elmoe.quant import mxfp4
from elmoe.quant.bitnested import quantize
from elmoe.quant.tiles import unpack


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("tensor", ["model.layers.2.mlp.experts.1.up_proj.weight", "model.layers.0.mlp.gate.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_named_and_nothing_is_left(source: Source, tmp_path: Path, tensor: str, value: float) -> None:
    source.tensors[tensor][1, 5] = value
    source.save()
    with pytest.raises(TensorError, match=rf"^{tensor}: NaN or Inf.*the checkpoint is damaged, fetch it again"):
        convert(source.path, tmp_path / "d")
    assert names(tmp_path) == ["source"]


def test_the_row_of_a_nan_is_found_in_later_blocks(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "BLOCK_WEIGHTS", 32 * 96)
    source.tensors["model.embed_tokens.weight"][67, 5] = np.nan
    source.save()
    with pytest.raises(TensorError, match=r"embed_tokens\.weight \(counted from row 64\): NaN or Inf in row 3;"):
        convert(source.path, tmp_path / "d")


def test_missing_and_unexpected_tensors(source: Source, tmp_path: Path) -> None:
    tensor = source.tensors.pop("model.layers.1.mlp.up_proj.weight")
    source.save()
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        convert(source.path, tmp_path / "d")
    source.tensors["model.layers.1.mlp.up_proj.weight"] = tensor
    source.tensors["model.layers.3.input_layernorm.weight"] = np.zeros(96, np.float32)
    source.save()
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.3\.input_layernorm\.weight has no place in the"):
        convert(source.path, tmp_path / "d")
    assert names(tmp_path) == ["source"]


def test_a_redundant_head_and_rotary_buffers_are_passed_over(source: Source, tmp_path: Path) -> None:
    source.tensors["lm_head.weight"] = source.tensors["model.embed_tokens.weight"].copy()
    source.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(16, np.float32)
    source.save()
    assert convert(source.path, tmp_path / "d").tensors == len(source.tensors) - 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 101}, r"embed_tokens\.weight has shape \[100, 96\], config\.json calls for \[101, 96\]"),
        ({"num_attention_heads": 4}, r"q_proj\.weight has shape \[64, 96\], config\.json calls for \[128, 96\]"),
        ({"num_experts": 4}, r"experts\.3\.gate_proj\.weight is missing"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2\.\S+ has no place"),
    ],
)
def test_config_of_another_model(source: Source, tmp_path: Path, changes: dict[str, int], message: str) -> None:
    (source.path / "config.json").write_text(json.dumps(source.config | changes))
    with pytest.raises(CheckpointError, match=message):
        convert(source.path, tmp_path / "d")


class Quantised(SafetensorsFolder):
    """A source whose only tensor, [64, 96], is quantised already; nothing is opened."""

    def __init__(self, kind: str) -> None:
        weights = np.random.default_rng(0).standard_normal((64, 96), dtype=np.float32)
        self.codes, self.scales = quantize(weights) if kind == "int8" else mxfp4.quantize(weights)

    def read(self, part: Part, first: int, last: int) -> Rows:
        return select(part, first, last, self.rows)

    def rows(self, index: RowIndex) -> Rows:
        if self.codes.dtype == np.int8:
            return Int8Rows(self.codes[index], self.scales[index])
        return Mxfp4Rows(self.codes[index], self.scales[index])


def test_int8_goes_into_int8_bit_for_bit() -> None:
    """Codes that no quantisation of their values would give back, too: a group's largest is not always 127."""
    source, part = Quantised("int8"), Part("t", (64, 96), 64)
    source.codes //= 2
    matrix = MatrixSource(Linear("m", 64, 96), (part,))
    codes, scales = unpack(*matrix.planes(source, 16, 48), 32, 96)
    np.testing.assert_array_equal(codes, source.codes[16:48])
    np.testing.assert_array_equal(scales, source.scales[16:48])


def test_int8_that_is_padded_by_whole_groups_stays_as_it_is() -> None:
    source, part = Quantised("int8"), Part("t", (64, 96), 64, inputs=64)
    source.codes //= 2
    matrix = MatrixSource(Linear("m", 64, 128), (part,))
    codes, scales = unpack(*matrix.planes(source, 0, 64), 64, 128)
    np.testing.assert_array_equal(codes, np.pad(source.codes[:, :64], ((0, 0), (0, 64))))
    np.testing.assert_array_equal(scales, np.pad(source.scales[:, :2], ((0, 0), (0, 2))))


@pytest.mark.parametrize(
    ("kind", "part", "inputs"),
    [
        ("int8", Part("t", (64, 96), 96, transposed=True), 64),
        ("int8", Part("t", (64, 96), 64, inputs=80), 96),
        ("mxfp4", Part("t", (64, 96), 64), 96),
        ("mxfp4", Part("t", (64, 96), 96, transposed=True, inputs=50), 64),
    ],
)
def test_what_cannot_stay_is_quantised_anew(kind: str, part: Part, inputs: int) -> None:
    source = Quantised(kind)
    matrix = MatrixSource(Linear("m", part.rows, inputs), (part,))
    values = floats(source.read(part, 0, part.rows), "t")
    expected = quantize(np.pad(values, ((0, 0), (0, inputs - part.width))))
    codes, scales = unpack(*matrix.planes(source, 0, part.rows), part.rows, inputs)
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales, expected[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_int8_scales(value: float) -> None:
    source, part = Quantised("int8"), Part("t", (64, 96), 64)
    source.scales[37, 2] = value
    matrix = MatrixSource(Linear("m", 64, 96), (part,))
    with pytest.raises(TensorError, match=r"^t \(counted from row 32\): NaN or Inf scale in row 5; the checkpoint is"):
        matrix.planes(source, 32, 64)


def test_parts_that_do_not_fit_the_program_are_a_bug_of_ours(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(source.config)
    monkeypatch.setattr(family, "parts", lambda values, name: (Part("t", (7, 96), 7),))
    with pytest.raises(InternalError, match=r"name='embedding'.*: its parts have 7 rows of \[96\]"):
        model_sources(family, source.config, *supported_model(source.config))
