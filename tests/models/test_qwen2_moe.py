"""Qwen2-MoE: biases, the gated shared expert, windows, and what is refused."""

from __future__ import annotations

import pytest

from elmoe.models import qwen2_moe
from elmoe.models.program import GatedMlp, Linear, Router
from elmoe.models.source_tensors import Part
from models.checks import Values, assert_refused, grouped, mixture, parameters, published

NAME = "Qwen/Qwen1.5-MoE-A2.7B"


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_qwen1_5_moe(values: Values) -> None:
    shape = qwen2_moe.shape(values)
    assert (shape.layers, shape.moe_layers) == (24, tuple(range(24)))
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2048, 16, 16, 128)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden, shape.shared_hidden) == (60, 4, 1408, 5632)
    assert (shape.window, shape.windowed_layers) == (0, ())
    assert parameters(qwen2_moe.program(values)) == 14_315_784_192


def test_layers_of_qwen1_5_moe(values: Values) -> None:
    program = qwen2_moe.program(values)
    attention, block = grouped(program, 3), mixture(program, 3)
    assert attention.qkv == Linear("layers.3.attention.qkv", 6144, 2048, "layers.3.attention.qkv_bias")
    assert attention.out == Linear("layers.3.attention.out", 2048, 2048)
    assert (attention.query_norm, attention.key_norm, attention.clip, attention.sinks) == (None, None, None, None)
    assert attention.score_scale == 128**-0.5
    assert (attention.rope.theta, attention.rope.yarn) == (1e6, None)
    assert block.router == Router("layers.3.router", 2048, 60, 4, renormalize=False)
    assert block.shared == GatedMlp(
        Linear("layers.3.shared.gate_up", 11264, 2048), Linear("layers.3.shared.down", 2048, 5632)
    )
    assert block.shared_gate == "layers.3.shared_gate"
    assert program.vectors["layers.3.shared_gate"] == (2048,)
    assert program.final_norm.eps == 1e-6


def test_dense_layers_have_no_shared_expert(values: Values) -> None:
    program = qwen2_moe.program(values | {"mlp_only_layers": [0], "decoder_sparse_step": 2})
    assert [layer.dense_mlp is layer.ffn for layer in program.layers] == [i % 2 == 0 for i in range(24)]
    assert qwen2_moe.shape(values | {"mlp_only_layers": [1]}).dense_hidden == 5632


def test_bias_may_be_off(values: Values) -> None:
    assert grouped(qwen2_moe.program(values | {"qkv_bias": False})).qkv.bias is None


@pytest.mark.parametrize(
    ("change", "windowed"),
    [
        ({}, ()),
        ({"use_sliding_window": True}, (0, 2, 4)),
        ({"use_sliding_window": True, "max_window_layers": 3}, (0, 2)),
        ({"use_sliding_window": True, "max_window_layers": 0}, ()),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 4 + ["sliding_attention"] * 2}, (4, 5)),
        ({"layer_types": ["full_attention"] * 6}, ()),
    ],
)
def test_windows(values: Values, change: Values, windowed: tuple[int, ...]) -> None:
    """By layer_types, or every other of the first max_window_layers."""
    values |= {"num_hidden_layers": 6, "max_window_layers": 5} | change
    shape = qwen2_moe.shape(values)
    assert (shape.window, shape.windowed_layers) == (32768 if windowed else 0, windowed)
    windows = [layer.attention.window for layer in qwen2_moe.program(values).layers]
    assert windows == [32768 if i in windowed else None for i in range(6)]


def test_parts(values: Values) -> None:
    module = "model.layers.5.mlp"
    assert qwen2_moe.parts(values, "layers.5.shared.gate_up") == (
        Part(f"{module}.shared_expert.gate_proj.weight", (5632, 2048), 5632),
        Part(f"{module}.shared_expert.up_proj.weight", (5632, 2048), 5632),
    )
    assert qwen2_moe.parts(values, "layers.5.shared_gate") == (
        Part(f"{module}.shared_expert_gate.weight", (1, 2048), 1),
    )
    assert qwen2_moe.parts(values, "layers.5.router") == (Part(f"{module}.gate.weight", (60, 2048), 60),)
    assert qwen2_moe.expert_parts(values, 5, 7)[2] == Part(f"{module}.experts.7.down_proj.weight", (2048, 1408), 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"qkv_bias": None}, "qkv_bias must be true or false, not None"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size must be a positive integer, not 0"),
        (
            {"shared_expert_intermediate_size": 100},
            "shared_hidden = 100 is not a multiple of the quantisation group 32",
        ),
        ({"use_sliding_window": 1.5}, "use_sliding_window = 1.5 is not supported; elmoe runs False or True or None"),
        (
            {"use_sliding_window": True, "sliding_window": None},
            "sliding_window must be a positive integer, not None",
        ),
        (
            {"layer_types": ["sliding_attention"] * 24},
            "use_sliding_window = False is not supported; elmoe runs True",
        ),
        (
            {"layer_types": ["full_attention"]},
            "layer_types must be a list of 24 times 'sliding_attention' or 'full_attention', not ['full_attention']",
        ),
        ({"num_experts": None}, "num_experts must be a positive integer, not None"),
    ],
)
def test_what_is_refused(values: Values, change: Values, message: str) -> None:
    assert_refused(values | change, message)
