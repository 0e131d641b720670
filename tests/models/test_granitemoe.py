"""Granite-MoE: its multipliers, fused experts, and what is refused."""

from __future__ import annotations

import pytest

from elmoe.models import granitemoe
from elmoe.models.program import Router
from elmoe.models.source_tensors import Part
from models.checks import Values, assert_refused, grouped, mixture, parameters, published

NAME = "ibm-granite/granite-3.0-1b-a400m-base"
MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_granite_1b_a400m(values: Values) -> None:
    shape = granitemoe.shape(values)
    assert (shape.layers, shape.moe_layers, shape.dense_hidden) == (24, tuple(range(24)), 0)
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (1024, 16, 8, 64)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden) == (32, 8, 512)
    assert parameters(granitemoe.program(values)) == 1_334_628_352


def test_layers_of_granite_1b_a400m(values: Values) -> None:
    program = granitemoe.program(values)
    attention, block = grouped(program, 2), mixture(program, 2)
    assert (attention.score_scale, attention.qkv.bias, attention.query_norm) == (0.015625, None, None)
    assert block.router == Router("layers.2.router", 1024, 32, 8, renormalize=True)
    assert (program.embedding_scale, program.residual_scale, program.logit_divisor) == (12.0, 0.22, 6.0)
    assert program.head is program.embedding
    assert program.final_norm.eps == 1e-6


def test_multipliers_default_to_one(values: Values) -> None:
    """Also that of the scores: transformers does not fall back to head_dim."""
    for name in MULTIPLIERS:
        del values[name]
    program = granitemoe.program(values)
    assert (program.embedding_scale, program.residual_scale, program.logit_divisor) == (1.0, 1.0, 1.0)
    assert grouped(program).score_scale == 1.0


def test_bias(values: Values) -> None:
    attention = grouped(granitemoe.program(values | {"attention_bias": True}))
    assert (attention.qkv.bias, attention.out.bias) == ("layers.0.attention.qkv_bias", "layers.0.attention.out_bias")


def test_parts(values: Values) -> None:
    """Gate rows come before up rows in one tensor of all experts."""
    module = "model.layers.9.block_sparse_moe"
    fused = (f"{module}.input_linear.weight", (32, 1024, 1024), 512, 5, 32)
    assert granitemoe.expert_parts(values, 9, 5) == (
        Part(*fused),
        Part(*fused, first=512),
        Part(f"{module}.output_linear.weight", (32, 1024, 512), 1024, 5, 32),
    )
    assert granitemoe.parts(values, "layers.9.router") == (Part(f"{module}.router.layer.weight", (32, 1024), 32),)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_multipliers_are_positive_numbers(values: Values, name: str) -> None:
    for value in (0, -1.0, "1", True, float("inf")):
        assert_refused(values | {name: value}, f"{name} must be a positive number, not {value!r}")


def test_other_activations_are_refused(values: Values) -> None:
    assert_refused(values | {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'")
