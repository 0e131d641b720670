from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import Source

import elmoe.checkpoint.sources as sources_module
from elmoe.checkpoint.convert import convert
from elmoe.errors import CheckpointError, TensorError


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
