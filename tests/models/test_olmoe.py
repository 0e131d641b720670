"""OLMoE: norms over all heads, clipping, and what is refused."""

from __future__ import annotations

import pytest

from elmoe.models import olmoe
from elmoe.models.program import Linear, RmsNorm, Router
from elmoe.models.source_tensors import Part
from models.checks import Values, assert_refused, grouped, mixture, parameters, published

NAME = "allenai/OLMoE-1B-7B-0924"


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_olmoe_1b_7b(values: Values) -> None:
    shape = olmoe.shape(values)
    assert (shape.layers, shape.moe_layers, shape.dense_hidden) == (16, tuple(range(16)), 0)
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2048, 16, 16, 128)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden, shape.shared_hidden) == (64, 8, 1024, 0)
    assert parameters(olmoe.program(values)) == 6_919_161_856


def test_layers_of_olmoe_1b_7b(values: Values) -> None:
    program = olmoe.program(values)
    attention, block = grouped(program, 2), mixture(program, 2)
    assert attention.query_norm == RmsNorm("layers.2.attention.query_norm", 2048, 1e-5)
    assert attention.key_norm == RmsNorm("layers.2.attention.key_norm", 2048, 1e-5)
    assert attention.qkv == Linear("layers.2.attention.qkv", 6144, 2048)
    assert (attention.clip, attention.window, attention.score_scale) == (None, None, 128**-0.5)
    assert block.router == Router("layers.2.router", 2048, 64, 8, renormalize=False)
    assert (block.shared, block.shared_gate) == (None, None)
    assert program.final_norm.eps == 1e-5


def test_norms_of_fewer_key_value_heads(values: Values) -> None:
    values |= {"num_key_value_heads": 4}
    attention = grouped(olmoe.program(values))
    assert attention.query_norm is not None
    assert attention.key_norm is not None
    assert (attention.query_norm.size, attention.key_norm.size) == (2048, 512)
    module = "model.layers.0.self_attn"
    assert olmoe.parts(values, "layers.0.attention.query_norm") == (Part(f"{module}.q_norm.weight", (2048,), 2048),)
    assert olmoe.parts(values, "layers.0.attention.key_norm") == (Part(f"{module}.k_norm.weight", (512,), 512),)


def test_key_value_heads_default_to_all(values: Values) -> None:
    assert olmoe.shape(values | {"num_key_value_heads": None}).kv_heads == 16


def test_options(values: Values) -> None:
    program = olmoe.program(values | {"clip_qkv": 8, "attention_bias": True, "norm_topk_prob": True})
    attention = grouped(program, 1)
    assert attention.clip == 8.0
    assert (attention.qkv.bias, attention.out.bias) == ("layers.1.attention.qkv_bias", "layers.1.attention.out_bias")
    assert mixture(program).router.renormalize


def test_parts(values: Values) -> None:
    assert olmoe.parts(values, "final_norm") == (Part("model.norm.weight", (2048,), 2048),)
    assert len(olmoe.parts(values, "layers.0.attention.qkv")) == 3
    assert olmoe.expert_parts(values, 3, 63)[0] == Part(
        "model.layers.3.mlp.experts.63.gate_proj.weight", (1024, 2048), 1024
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"clip_qkv": 0}, "clip_qkv must be a positive number, not 0"),
        ({"head_dim": 64}, "head_dim = 64 is not supported; elmoe runs 128 or None"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is not supported; elmoe runs None"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false, not 'yes'"),
        ({"intermediate_size": None}, "intermediate_size must be a positive integer, not None"),
    ],
)
def test_what_is_refused(values: Values, change: Values, message: str) -> None:
    assert_refused(values | change, message)
