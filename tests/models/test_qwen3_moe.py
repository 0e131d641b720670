"""Qwen3-MoE: sizes, layer program and tensor names from a config.json, and every field that is refused."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import pytest

from elmoe.errors import UnsupportedModelError
from elmoe.models import qwen3_moe
from elmoe.models.program import GatedMlp, Linear, MixtureOfExperts, Program, RmsNorm, Rope, Router

REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "moe_intermediate_size",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "vocab_size",
)
Values = dict[str, Any]


def parameters(program: Program) -> int:
    """Weights of a program: dense matrices, vectors, experts."""
    matrices = sum(linear.outputs * linear.inputs for linear in program.linears)
    vectors = sum(prod(dims) for dims in program.vectors.values())
    experts = sum(
        block.router.experts * (linear.outputs * linear.inputs)
        for block in program.moe_blocks
        for linear in (block.expert.gate_up, block.expert.down)
    )
    return matrices + vectors + experts


def assert_refused(values: Values, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        qwen3_moe.program(values)


def test_sizes_of_qwen3_30b_a3b(qwen3_30b_a3b: Values) -> None:
    assert qwen3_moe.shape(qwen3_30b_a3b).as_dict() == {
        "family": "qwen3_moe",
        "layers": 48,
        "moe_layers": tuple(range(48)),
        "hidden": 2048,
        "heads": 32,
        "kv_heads": 4,
        "head_dim": 128,
        "experts": 128,
        "experts_per_tok": 8,
        "expert_hidden": 768,
        "dense_hidden": 6144,
        "vocab": 151936,
        "max_context": 40960,
        "tied_head": False,
    }


def test_parameters_of_qwen3_30b_a3b(qwen3_30b_a3b: Values) -> None:
    """30.5 B, as its model card says; to the last weight."""
    assert parameters(qwen3_moe.program(qwen3_30b_a3b)) == 30_532_122_624


def test_layers_of_qwen3_30b_a3b(qwen3_30b_a3b: Values) -> None:
    program = qwen3_moe.program(qwen3_30b_a3b)
    assert len(program.layers) == 48
    layer = program.layers[5]
    assert layer.attention_norm == RmsNorm("layers.5.attention_norm", 2048, 1e-6)
    assert layer.ffn_norm == RmsNorm("layers.5.ffn_norm", 2048, 1e-6)
    attention = layer.attention
    assert attention.qkv == Linear("layers.5.attention.qkv", (32 + 4 + 4) * 128, 2048)
    assert attention.out == Linear("layers.5.attention.out", 2048, 4096)
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (32, 4, 128)
    assert attention.rope == Rope(1e6, 128)
    assert attention.query_norm == RmsNorm("layers.5.attention.query_norm", 128, 1e-6)
    assert attention.key_norm == RmsNorm("layers.5.attention.key_norm", 128, 1e-6)
    assert isinstance(layer.ffn, MixtureOfExperts)
    assert layer.ffn.layer == 5
    assert layer.ffn.router == Router("layers.5.router", 2048, 128, 8, renormalize=True)
    assert layer.ffn.expert == GatedMlp(
        Linear("layers.5.expert.gate_up", 1536, 2048), Linear("layers.5.expert.down", 2048, 768)
    )
    assert program.final_norm == RmsNorm("final_norm", 2048, 1e-6)
    assert program.embedding == Linear("embedding", 151936, 2048)
    assert program.head == Linear("head", 151936, 2048)


def test_a_tied_head_is_the_embedding_stored_once(small: Values) -> None:
    program = qwen3_moe.program(small | {"tie_word_embeddings": True})
    assert program.head is program.embedding
    names = [linear.name for linear in program.linears]
    assert len(names) == len(set(names))
    assert "head" not in names


def test_stored_tensors_of_a_small_model(small: Values) -> None:
    """Order and shapes of everything that a checkpoint holds beside the experts."""
    program = qwen3_moe.program(small | {"num_hidden_layers": 2})
    assert [(linear.name, linear.outputs, linear.inputs) for linear in program.linears] == [
        ("embedding", 300, 96),
        ("layers.0.attention.qkv", 96, 96),
        ("layers.0.attention.out", 96, 64),
        ("layers.1.attention.qkv", 96, 96),
        ("layers.1.attention.out", 96, 64),
        ("layers.1.mlp.gate_up", 320, 96),
        ("layers.1.mlp.down", 96, 160),
        ("head", 300, 96),
    ]
    assert list(program.vectors.items()) == [
        ("layers.0.attention_norm", (96,)),
        ("layers.0.attention.query_norm", (8,)),
        ("layers.0.attention.key_norm", (8,)),
        ("layers.0.ffn_norm", (96,)),
        ("layers.0.router", (6, 96)),
        ("layers.1.attention_norm", (96,)),
        ("layers.1.attention.query_norm", (8,)),
        ("layers.1.attention.key_norm", (8,)),
        ("layers.1.ffn_norm", (96,)),
        ("final_norm", (96,)),
    ]


@pytest.mark.parametrize(
    ("change", "moe_layers"),
    [
        ({}, (0, 2, 3)),
        ({"mlp_only_layers": []}, (0, 1, 2, 3)),
        ({"mlp_only_layers": None}, (0, 1, 2, 3)),
        ({"mlp_only_layers": [0, 3]}, (1, 2)),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, (1, 3)),
        ({"mlp_only_layers": [], "decoder_sparse_step": 3}, (2,)),
        ({"mlp_only_layers": [3], "decoder_sparse_step": 2}, (1,)),
        ({"mlp_only_layers": [17], "decoder_sparse_step": None}, (0, 1, 2, 3)),
    ],
)
def test_dense_layers(small: Values, change: Values, moe_layers: tuple[int, ...]) -> None:
    """Layer i is a MoE block when (i + 1) % decoder_sparse_step == 0 and it is not in mlp_only_layers."""
    values = small | change
    assert qwen3_moe.shape(values).moe_layers == moe_layers
    program = qwen3_moe.program(values)
    for index, layer in enumerate(program.layers):
        if index in moe_layers:
            assert isinstance(layer.ffn, MixtureOfExperts)
            assert layer.ffn.router.weight == f"layers.{index}.router"
        else:
            assert layer.ffn == GatedMlp(
                Linear(f"layers.{index}.mlp.gate_up", 320, 96), Linear(f"layers.{index}.mlp.down", 96, 160)
            )
    assert [block.layer for block in program.moe_blocks] == list(range(len(moe_layers)))


def test_defaults(small: Values) -> None:
    """What transformers assumes when a config.json does not say."""
    del small["head_dim"], small["num_key_value_heads"], small["decoder_sparse_step"], small["mlp_only_layers"]
    shape, program = qwen3_moe.shape(small), qwen3_moe.program(small)
    assert (shape.head_dim, shape.kv_heads, shape.tied_head) == (12, 8, False)
    assert shape.moe_layers == (0, 1, 2, 3)
    assert program.final_norm.eps == 1e-6
    assert program.layers[0].attention.rope.theta == 10000.0
    assert program.layers[0].attention.qkv.bias is None
    assert not program.moe_blocks[0].router.renormalize


def test_the_expert_count_under_its_new_name(small: Values) -> None:
    """Transformers 5 saves num_experts as num_local_experts."""
    small["num_local_experts"] = small.pop("num_experts")
    assert qwen3_moe.shape(small).experts == 6


def test_attention_bias(small: Values) -> None:
    program = qwen3_moe.program(small | {"attention_bias": True, "num_hidden_layers": 1})
    assert program.layers[0].attention.qkv.bias == "layers.0.attention.qkv_bias"
    assert program.layers[0].attention.out.bias == "layers.0.attention.out_bias"
    assert program.vectors["layers.0.attention.qkv_bias"] == (96,)
    assert program.vectors["layers.0.attention.out_bias"] == (96,)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 500000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": None},
    ],
)
def test_spellings_of_rope(small: Values, change: Values) -> None:
    assert qwen3_moe.program(small | change).layers[0].attention.rope == Rope(5e5, 8)


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3", "longrope", None])
@pytest.mark.parametrize(
    ("field", "key"), [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")]
)
def test_rope_scaling_is_refused(small: Values, field: str, key: str, kind: str | None) -> None:
    small[field] = {key: kind, "factor": 4.0}
    assert_refused(small, f"config.json: {field}: {key} = {kind!r} is not supported; elmoe runs 'default'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported; elmoe runs False or None"),
        ({"hidden_size": 100}, "hidden = 100 is not a multiple of the quantisation group 32"),
        ({"moe_intermediate_size": 16}, "expert_hidden = 16 is not a multiple of the quantisation group 32"),
        ({"intermediate_size": 150}, "dense_hidden = 150 is not a multiple of the quantisation group 32"),
        ({"head_dim": 10}, "heads * head_dim = 80 is not a multiple of the quantisation group 32"),
        ({"num_key_value_heads": 3}, "8 attention heads cannot share 3 key-value heads"),
        ({"num_experts_per_tok": 7}, "7 experts per token out of 6 experts"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, not 0"),
        ({"rope_theta": -1.0}, "rope_theta must be a positive number, not -1.0"),
        ({"rope_theta": True}, "rope_theta must be a positive number, not True"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object, not [1]"),
        ({"rope_parameters": "yarn"}, "rope_parameters must be an object, not 'yarn'"),
        ({"rope_parameters": {"rope_theta": "a"}}, "rope_parameters: rope_theta must be a positive number, not 'a'"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor = 0.5 is not supported; elmoe runs 1 or None",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, not 'yes'"),
        ({"attention_bias": 1}, "attention_bias must be true or false, not 1"),
        ({"norm_topk_prob": 0}, "norm_topk_prob must be true or false, not 0"),
        ({"mlp_only_layers": ["0"]}, "mlp_only_layers must be a list of integers, not ['0']"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must be a positive integer, not 0"),
        ({"num_key_value_heads": True}, "num_key_value_heads must be a positive integer, not True"),
        ({"head_dim": 8.0}, "head_dim must be a positive integer, not 8.0"),
    ],
)
def test_what_elmoe_does_not_run_is_refused(small: Values, change: Values, message: str) -> None:
    assert_refused(small | change, f"config.json: {message}")


@pytest.mark.parametrize("field", REQUIRED)
def test_sizes_are_required_positive_integers(small: Values, field: str) -> None:
    for value in (None, -4, 0, True, "8", 2.5):
        assert_refused(small | {field: value}, f"config.json: {field} must be a positive integer, not {value!r}")
    del small[field]
    assert_refused(small, f"config.json: {field} must be a positive integer, not None")


def test_a_sliding_window_that_is_off_is_fine(small: Values) -> None:
    qwen3_moe.program(small | {"use_sliding_window": False, "sliding_window": 4096})


def test_every_stored_tensor_has_hf_names(small: Values) -> None:
    """Taken together they are the dense tensors of the checkpoint, each once."""
    program = qwen3_moe.program(small | {"attention_bias": True, "num_hidden_layers": 2})
    stored = [linear.name for linear in program.linears] + list(program.vectors)
    attention = {"q_norm.weight", "k_norm.weight"}
    attention |= {f"{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")}
    layer = {"input_layernorm.weight", "post_attention_layernorm.weight"} | {f"self_attn.{a}" for a in attention}
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight"}
    expected |= {f"model.layers.{i}.{tail}" for i in range(2) for tail in layer}
    expected |= {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    found = [name for tensor in stored for name in qwen3_moe.hf_names(tensor)]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_order_of_stacked_rows() -> None:
    base = "model.layers.11"
    assert qwen3_moe.hf_names("layers.11.attention.qkv") == tuple(
        f"{base}.self_attn.{part}_proj.weight" for part in ("q", "k", "v")
    )
    assert qwen3_moe.hf_names("layers.11.attention.qkv_bias") == tuple(
        f"{base}.self_attn.{part}_proj.bias" for part in ("q", "k", "v")
    )
    assert qwen3_moe.hf_names("layers.11.mlp.gate_up") == (
        f"{base}.mlp.gate_proj.weight",
        f"{base}.mlp.up_proj.weight",
    )
    assert qwen3_moe.hf_expert_names(11, 3) == tuple(
        f"{base}.mlp.experts.3.{part}_proj.weight" for part in ("gate", "up", "down")
    )
