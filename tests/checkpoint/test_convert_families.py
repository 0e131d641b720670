"""What is stored for the tensors of every family, spelled out where rows are reordered, transposed or padded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import elmoe.checkpoint.sources as sources_module
from backend.family_models import mxfp4_pair
from checkpoint.gguf_models import LATENT, MXFP4, SIZES
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.manifest import canonical_sha256
from elmoe.checkpoint.sources import model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import CheckpointError, TensorError
from elmoe.models.program import GatedMlp, Linear, Storage
from elmoe.models.registry import FAMILIES, family_of
from elmoe.quant import mxfp4
from elmoe.quant.bitnested import Float32, UInt8, dequantize, quantize
from elmoe.quant.tiles import unpack, unpack_mxfp4

Values = dict[str, Any]
Array = npt.NDArray[Any]

GPT_OSS: Values = {
    "model_type": "gpt_oss",
    "head_dim": 16,
    "num_local_experts": 3,
    "intermediate_size": 32,
    "sliding_window": 8,
}
CONFIGS: dict[str, Values] = {
    "deepseek_v2": {"model_type": "deepseek_v2", "q_lora_rank": None, **LATENT},
    "glm4_moe_lite": {"model_type": "glm4_moe_lite", "q_lora_rank": 32, "attention_bias": True, **LATENT},
    "gpt_oss in BF16": GPT_OSS,
    "gpt_oss in MXFP4": GPT_OSS | MXFP4,
    "granitemoe": {"model_type": "granitemoe", "num_local_experts": 3, "intermediate_size": 32},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 3, "intermediate_size": 32},
    "olmoe": {"model_type": "olmoe", "num_experts": 3, "intermediate_size": 32},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "num_experts": 3,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 3,
        "head_dim": 16,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
    },
}


def write(folder: Path, values: Values) -> dict[str, Array]:
    """A random checkpoint of a ``config.json`` in BF16 (experts in MXFP4 where it says so), and its tensors.

    MXFP4 tensors are also there under their common name, dequantised.
    """
    rng = np.random.default_rng(0)
    sources = model_sources(family_of(values), values, *supported_model(values))
    packed = {
        part.tensor for matrix in sources.matrices() if matrix.linear.storage is Storage.MXFP4 for part in matrix.parts
    }
    tensors: dict[str, Array] = {}
    dequantised: dict[str, Array] = {}
    for part in sources.parts():
        if part.tensor in tensors or part.tensor in dequantised:
            continue
        weights = rng.standard_normal(part.shape, dtype=np.float32)
        if part.tensor not in packed:
            tensors[part.tensor] = weights.astype(ml_dtypes.bfloat16)
            continue
        codes, scales = mxfp4.quantize(weights.reshape(-1, part.shape[-1]))
        dequantised[part.tensor] = mxfp4.dequantize(codes, scales).reshape(part.shape)
        tensors |= mxfp4_pair(part.tensor, weights)
    save(folder, values, tensors)
    return {name: tensor.astype(np.float32) for name, tensor in (tensors | dequantised).items()}


def save(folder: Path, values: Values, tensors: dict[str, Array]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors")


def matrix(linear: Linear, msb: UInt8, lsb: UInt8) -> Float32:
    if linear.storage is Storage.MXFP4:
        assert not lsb.size
        return mxfp4.dequantize(*unpack_mxfp4(msb, linear.outputs, linear.inputs))
    return dequantize(*unpack(msb, lsb, linear.outputs, linear.inputs))


def expert(checkpoint: Checkpoint, block: int, number: int) -> tuple[Float32, Float32]:
    """(gate_up, down)."""
    spec: GatedMlp = checkpoint.program.moe_blocks[block].expert
    msb, lsb = checkpoint.expert_msb(block, number), checkpoint.expert_lsb(block, number)
    msb_split, lsb_split = spec.gate_up.plane_bytes
    return matrix(spec.gate_up, msb[:msb_split], lsb[:lsb_split]), matrix(spec.down, msb[msb_split:], lsb[lsb_split:])


def linear(checkpoint: Checkpoint, name: str) -> Float32:
    spec = {found.name: found for found in checkpoint.program.linears}[name]
    return matrix(spec, *checkpoint.linear_planes(name))


def stored(weights: Array) -> Float32:
    return dequantize(*quantize(weights))


def interleaved(gate: Array, up: Array) -> Array:
    rows = []
    for block in range(0, len(gate), 16):
        rows += [*gate[block : block + 16], *up[block : block + 16]]
    return np.stack(rows)


def test_every_family_is_here() -> None:
    assert {values["model_type"] for values in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_of_the_source_is_read_and_all_of_the_folder_written(name: str, tmp_path: Path) -> None:
    values = SIZES | CONFIGS[name]
    tensors = write(tmp_path / "source", values)
    seen: list[tuple[int, int]] = []
    report = convert(tmp_path / "source", tmp_path / "d", lambda done, total: seen.append((done, total)))
    assert report.tensors == len([tensor for tensor in tensors if not tensor.endswith(("_blocks", "_scales"))])
    weights_bytes = (tmp_path / "source" / "model.safetensors").stat().st_size
    assert 2 * weights_bytes > seen[-1][0] == seen[-1][1] > 1.8 * weights_bytes  # hashed, converted; not the header
    checkpoint = Checkpoint.open(tmp_path / "d")
    checkpoint.verify()
    for spec in checkpoint.program.linears:
        assert np.abs(linear(checkpoint, spec.name)).max(axis=1).all()
    for title in checkpoint.program.vectors:
        assert checkpoint.vector(title).all()
    for block, number in checkpoint.layout.experts:
        for weights in expert(checkpoint, block, number):
            assert np.abs(weights).max(axis=1).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_do_not_depend_on_blocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "source", SIZES | CONFIGS[name])
    convert(tmp_path / "source", tmp_path / "a")
    monkeypatch.setattr(sources_module, "BLOCK_WEIGHTS", 1)  # blocks of 32 rows
    convert(tmp_path / "source", tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", ["deepseek_v2", "glm4_moe_lite"])
def test_latent_attention(name: str, tmp_path: Path) -> None:
    values = SIZES | CONFIGS[name]
    tensors = write(tmp_path / "source", values)
    convert(tmp_path / "source", tmp_path / "d")
    checkpoint = Checkpoint.open(tmp_path / "d")
    base, halves = "model.layers.1.self_attn", [0, 2, 4, 6, 1, 3, 5, 7]
    of_head = [*range(24), *(24 + place for place in halves)]
    of_query = [head * 32 + place for head in range(4) for place in of_head]
    of_latent = [*range(32), *(32 + place for place in halves)]
    kept = tensors[f"{base}.kv_a_proj_with_mqa.weight"][of_latent]
    if name == "deepseek_v2":
        query = tensors[f"{base}.q_proj.weight"][of_query]
    else:
        query = tensors[f"{base}.q_a_proj.weight"]
        query_up = stored(tensors[f"{base}.q_b_proj.weight"][of_query])
        np.testing.assert_array_equal(linear(checkpoint, "layers.1.attention.query_up"), query_up)
        biases = [tensors[f"{base}.q_a_proj.bias"], tensors[f"{base}.kv_a_proj_with_mqa.bias"][of_latent]]
        np.testing.assert_array_equal(checkpoint.vector("layers.1.attention.down_bias"), np.concatenate(biases))
    down = stored(np.concatenate([query, kept]))
    np.testing.assert_array_equal(linear(checkpoint, "layers.1.attention.down"), down)
    heads = tensors[f"{base}.kv_b_proj.weight"].reshape(4, 24 + 16, 32)
    keys = [stored(np.pad(head[:24].T, ((0, 0), (0, 8)))) for head in heads]
    np.testing.assert_array_equal(linear(checkpoint, "layers.1.attention.key_up"), np.concatenate(keys))
    values_up = stored(np.concatenate([head[24:] for head in heads]))
    np.testing.assert_array_equal(linear(checkpoint, "layers.1.attention.value_up"), values_up)
    module = "model.layers.1.mlp.shared_experts"
    shared = interleaved(tensors[f"{module}.gate_proj.weight"], tensors[f"{module}.up_proj.weight"])
    np.testing.assert_array_equal(linear(checkpoint, "layers.1.shared.gate_up"), stored(shared))


@pytest.mark.parametrize("name", ["gpt_oss in BF16", "gpt_oss in MXFP4"])
def test_gpt_oss_experts(name: str, tmp_path: Path) -> None:
    values = SIZES | CONFIGS[name]
    tensors = write(tmp_path / "source", values)
    convert(tmp_path / "source", tmp_path / "d")
    checkpoint = Checkpoint.open(tmp_path / "d")
    packed = name == "gpt_oss in MXFP4"
    for number in range(3):
        base = "model.layers.1.mlp.experts"
        gate_up, down = tensors[f"{base}.gate_up_proj"][number], tensors[f"{base}.down_proj"][number]
        if not packed:
            gate_up, down = gate_up.T, down.T
        found = expert(checkpoint, 1, number)
        expected = interleaved(gate_up[::2], gate_up[1::2])
        np.testing.assert_array_equal(found[0], expected if packed else stored(expected))
        np.testing.assert_array_equal(found[1], down if packed else stored(down))
        biases = tensors[f"{base}.gate_up_proj_bias"][number]
        bias = checkpoint.vector("layers.1.expert.gate_up_bias")[number]
        np.testing.assert_array_equal(bias, interleaved(biases[::2], biases[1::2]))
        down_bias = checkpoint.vector("layers.1.expert.down_bias")[number]
        np.testing.assert_array_equal(down_bias, tensors[f"{base}.down_proj_bias"][number])


def test_granite_experts(tmp_path: Path) -> None:
    tensors = write(tmp_path / "source", SIZES | CONFIGS["granitemoe"])
    convert(tmp_path / "source", tmp_path / "d")
    checkpoint = Checkpoint.open(tmp_path / "d")
    for number in range(3):
        base = "model.layers.1.block_sparse_moe"
        fused, down = tensors[f"{base}.input_linear.weight"][number], tensors[f"{base}.output_linear.weight"][number]
        found = expert(checkpoint, 1, number)
        np.testing.assert_array_equal(found[0], stored(interleaved(fused[:32], fused[32:])))
        np.testing.assert_array_equal(found[1], stored(down))


def test_mxfp4_experts_have_no_lsb_records(tmp_path: Path) -> None:
    values = SIZES | CONFIGS["gpt_oss in MXFP4"]
    write(tmp_path / "source", values)
    convert(tmp_path / "source", tmp_path / "d")
    assert (tmp_path / "d" / "experts_lsb.bin").read_bytes() == b""
    checkpoint = Checkpoint.open(tmp_path / "d")
    assert checkpoint.manifest["experts"]["storage"] == "mxfp4"
    assert checkpoint.manifest["experts"]["lsb_stride"] == 0
    assert not any("storage" in entry for entry in checkpoint.manifest["linears"].values())
    assert checkpoint.expert_lsb(1, 2).size == 0
    assert checkpoint.mapped("experts_lsb.bin").size == 0
    manifest = tmp_path / "d" / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["experts"]["storage"]
    manifest.write_text(json.dumps(fields | {"sha256": canonical_sha256(fields)}))
    with pytest.raises(CheckpointError, match=r"experts\.storage = None, not 'mxfp4' as config\.json says"):
        Checkpoint.open(tmp_path / "d")


def test_damaged_and_missing_mxfp4(tmp_path: Path) -> None:
    values = SIZES | CONFIGS["gpt_oss in MXFP4"]
    tensors = write(tmp_path / "source", values)
    bytes_of = {name: np.uint8 for name in tensors if name.endswith(("_blocks", "_scales"))}
    kept = {name: tensor.astype(bytes_of.get(name, np.float32)) for name, tensor in tensors.items()}
    base = "model.layers.1.mlp.experts"
    for name in [name for name in kept if f"{name}_blocks" in kept]:
        del kept[name]
    kept[f"{base}.down_proj_scales"][2, 5, 0] = 255
    save(tmp_path / "source", values, kept)
    with pytest.raises(TensorError, match=rf"^{base}\.down_proj\[2\]: NaN block scale in row 5"):
        convert(tmp_path / "source", tmp_path / "d")
    del kept[f"{base}.down_proj_blocks"], kept[f"{base}.down_proj_scales"]
    kept[f"{base}.down_proj"] = tensors[f"{base}.down_proj"]
    save(tmp_path / "source", values, kept)
    with pytest.raises(CheckpointError, match=rf"{base}\.down_proj is not MXFP4, though quantization_config"):
        convert(tmp_path / "source", tmp_path / "d")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]


def test_errors_count_rows_of_fused_tensors(tmp_path: Path) -> None:
    values = SIZES | CONFIGS["gpt_oss in BF16"]
    tensors = write(tmp_path / "source", values)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors[name][1, 7, 9] = np.nan
    save(tmp_path / "source", values, tensors)
    with pytest.raises(
        TensorError, match=rf"^{name}\[1\] \(rows as elmoe orders them, .* row 0\): NaN or Inf in row 4"
    ):
        convert(tmp_path / "source", tmp_path / "d")


def test_layers_that_predict_several_tokens_are_passed_over(tmp_path: Path) -> None:
    values = SIZES | CONFIGS["glm4_moe_lite"] | {"num_nextn_predict_layers": 1}
    tensors = write(tmp_path / "source", values)
    tensors["model.layers.2.eh_proj.weight"] = np.ones((64, 128), np.float32)
    save(tmp_path / "source", values, tensors)
    assert convert(tmp_path / "source", tmp_path / "d").tensors == len(tensors) - 1
    tensors["model.layers.3.eh_proj.weight"] = np.ones((64, 128), np.float32)
    save(tmp_path / "source", values, tensors)
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.3\.eh_proj\.weight has no place"):
        convert(tmp_path / "source", tmp_path / "e")
