"""Mixtral: the window, the names of its experts, and what is refused."""

from __future__ import annotations

import pytest

from elmoe.models import mixtral
from elmoe.models.program import Linear, Router
from elmoe.models.source_tensors import Part
from models.checks import Values, assert_refused, grouped, mixture, parameters, published

NAME = "mistralai/Mixtral-8x7B-v0.1"


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_mixtral_8x7b(values: Values) -> None:
    shape = mixtral.shape(values)
    assert (shape.layers, shape.moe_layers, shape.dense_hidden) == (32, tuple(range(32)), 0)
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (4096, 32, 8, 128)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden) == (8, 2, 14336)
    assert parameters(mixtral.program(values)) == 46_702_792_704


def test_layers_of_mixtral_8x7b(values: Values) -> None:
    program = mixtral.program(values)
    attention, block = grouped(program, 2), mixture(program, 2)
    assert attention.qkv == Linear("layers.2.attention.qkv", 6144, 4096)
    assert (attention.query_norm, attention.window, attention.score_scale) == (None, None, 128**-0.5)
    assert attention.rope.theta == 1e6
    assert block.router == Router("layers.2.router", 4096, 8, 2, renormalize=True)
    assert block.expert.gate_up == Linear("layers.2.expert.gate_up", 28672, 4096)
    assert program.final_norm.eps == 1e-5


def test_defaults(values: Values) -> None:
    """What transformers assumes when a config.json does not say."""
    del values["rope_theta"], values["sliding_window"], values["rms_norm_eps"]
    program = mixtral.program(values)
    assert (grouped(program).rope.theta, grouped(program).window, program.final_norm.eps) == (1e6, None, 1e-5)


def test_a_window_is_in_all_layers(values: Values) -> None:
    values |= {"sliding_window": 4096}
    assert {layer.attention.window for layer in mixtral.program(values).layers} == {4096}
    assert mixtral.shape(values).windowed_layers == tuple(range(32))


def test_parts(values: Values) -> None:
    module = "model.layers.9.block_sparse_moe"
    assert mixtral.parts(values, "layers.9.router") == (Part(f"{module}.gate.weight", (8, 4096), 8),)
    assert mixtral.expert_parts(values, 9, 5) == (
        Part(f"{module}.experts.5.w1.weight", (14336, 4096), 14336),
        Part(f"{module}.experts.5.w3.weight", (14336, 4096), 14336),
        Part(f"{module}.experts.5.w2.weight", (4096, 14336), 4096),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported; elmoe runs 'silu'"),
        ({"sliding_window": 0}, "sliding_window must be a positive integer, not 0"),
        ({"num_local_experts": 1}, "2 experts per token out of 1 experts"),
        ({"num_local_experts": None}, "num_local_experts must be a positive integer, not None"),
        ({"num_local_experts": 1 << 20}, "num_local_experts = 1048576 is beyond any model; the file is damaged"),
    ],
)
def test_what_is_refused(values: Values, change: Values, message: str) -> None:
    assert_refused(values | change, message)
