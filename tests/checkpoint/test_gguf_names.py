"""Where parts lie in a GGUF file. That the rows are right is `test_gguf_file.py`'s business."""

from __future__ import annotations

import gguf
import pytest
from gguf_models import ARCHS, MODELS, describe, laid_out, random_tensors

from elmoe.checkpoint.gguf_names import GgufNames
from elmoe.checkpoint.sources import model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import InternalError
from elmoe.models.registry import family_of
from elmoe.models.source_tensors import Part, halves_order


def names(arch: str, *present: str) -> GgufNames:
    return GgufNames(arch, blocks=4, experts=8, head_dim=6, present=present)


@pytest.mark.parametrize("name", MODELS)
def test_all_names_are_the_converters(name: str) -> None:
    values = MODELS[name]
    expected = laid_out(values, random_tensors(values))
    arch, experts = ARCHS[values["model_type"]], describe(values)["expert_count"]
    place = GgufNames(arch, values["num_hidden_layers"], experts, 16, expected.keys()).place
    parts = list(model_sources(family_of(values), values, *supported_model(values)).parts())
    assert {place(part).tensor for part in parts} == set(expected)
    assert all(place(part).rows == part.rows for part in parts)
    known = gguf.MODEL_TENSORS[next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == arch)]
    bases = {gguf.TENSOR_NAMES[tensor] for tensor in known}
    assert {_base(tensor) for tensor in expected} <= bases


def _base(name: str) -> str:
    """``blk.{bid}.attn_q`` of ``blk.3.attn_q.weight``."""
    parts = name.split(".")[:-1]
    return ".".join(["blk", "{bid}", *parts[2:]] if parts[0] == "blk" else parts)


def test_rows_of_queries_and_keys_where_the_converter_pairs_them() -> None:
    for piece in ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"):
        part = Part(f"model.layers.1.self_attn.{piece}", (12, 64), 12)
        assert names("granitemoe").place(part).order == halves_order(6)
        assert names("llama").place(part).order == halves_order(6)
        assert names("qwen2moe").place(part).order is None
    value = Part("model.layers.1.self_attn.v_proj.weight", (12, 64), 12)
    assert names("llama").place(value).order is None
    latent = Part("model.layers.1.self_attn.q_b_proj.weight", (12, 64), 12, order=halves_order(6, 2))
    assert names("deepseek2").place(latent).order == halves_order(6, 2)


def test_one_expert_in_every_layout() -> None:
    up = Part("model.layers.2.mlp.experts.5.up_proj.weight", (32, 64), 32)
    fused = "blk.2.ffn_gate_up_exps.weight"
    assert names("qwen3moe").place(up) == Part("blk.2.ffn_up_exps.weight", (8, 32, 64), 32, 5, 8)
    assert names("qwen3moe", fused).place(up) == Part(fused, (8, 64, 64), 32, 5, 8, first=32)
    assert names("qwen3moe", "blk.2.ffn_up.5.weight").place(up) == Part("blk.2.ffn_up.5.weight", (32, 64), 32)
    down = Part("model.layers.2.block_sparse_moe.experts.5.w2.weight", (64, 32), 64)
    assert names("llama", fused).place(down) == Part("blk.2.ffn_down_exps.weight", (8, 64, 32), 64, 5, 8)


def test_experts_that_the_checkpoint_has_fused() -> None:
    module = "model.layers.0.mlp.experts"
    up = Part(f"{module}.gate_up_proj", (8, 64, 96), 48, 3, 8, first=1, step=2, transposed=True)
    assert names("gpt-oss").place(up) == Part("blk.0.ffn_up_exps.weight", (8, 48, 64), 48, 3, 8)
    bias = Part(f"{module}.gate_up_proj_bias", (8, 96), 48, 3, 8, step=2)
    assert names("gpt-oss").place(bias) == Part("blk.0.ffn_gate_exps.bias", (8, 48), 48, 3, 8)
    down = Part(f"{module}.down_proj_bias", (8, 64), 64, 3, 8)
    assert names("gpt-oss").place(down) == Part("blk.0.ffn_down_exps.bias", (8, 64), 64, 3, 8)
    granite = Part("model.layers.0.block_sparse_moe.input_linear.weight", (8, 96, 64), 48, 3, 8, first=48)
    assert names("granitemoe").place(granite) == Part("blk.0.ffn_up_exps.weight", (8, 48, 64), 48, 3, 8)


def test_shared_experts_are_not_taken_for_fused_ones() -> None:
    part = Part("model.layers.1.mlp.shared_experts.down_proj.weight", (64, 32), 64)
    assert names("deepseek2").place(part) == Part("blk.1.ffn_down_shexp.weight", (64, 32), 64)


def test_latent_up_projection() -> None:
    name = "model.layers.3.self_attn.kv_b_proj.weight"
    key = Part(name, (2 * 40, 64), 64, 1, 2, transposed=True, inputs=24)
    value = Part(name, (2 * 40, 64), 16, 1, 2, first=24)
    split = names("deepseek2", "blk.3.attn_k_b.weight")
    assert split.place(key) == Part("blk.3.attn_k_b.weight", (2, 64, 24), 64, 1, 2)
    assert split.place(value) == Part("blk.3.attn_v_b.weight", (2, 16, 64), 16, 1, 2)
    whole = names("deepseek2").place(key)
    assert (whole.tensor, whole.transposed, whole.inputs) == ("blk.3.attn_kv_b.weight", True, 24)


def test_a_name_that_the_arch_lacks() -> None:
    with pytest.raises(InternalError, match=r"GGUF's olmoe has no name for the tensor model\.layers\.0\.something"):
        names("olmoe").place(Part("model.layers.0.something.weight", (4,), 4))
