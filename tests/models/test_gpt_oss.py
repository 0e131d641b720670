"""GPT-OSS: sinks, windows, biases, both storages of its experts, and what is refused."""

from __future__ import annotations

import math

import pytest

from elmoe.models import gpt_oss
from elmoe.models.program import ClampedSwiglu, Linear, Router, Storage, Yarn
from elmoe.models.source_tensors import Part
from models.checks import Values, assert_refused, grouped, mixture, parameters, published

NAME = "openai/gpt-oss-20b"
YARN = Yarn(32.0, 4096, 32.0, 1.0, truncate=False, attention_factor=0.1 * math.log(32) + 1)


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_gpt_oss_20b(values: Values) -> None:
    shape = gpt_oss.shape(values)
    assert (shape.layers, shape.moe_layers, shape.dense_hidden) == (24, tuple(range(24)), 0)
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2880, 64, 8, 64)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden) == (32, 4, 2880)
    assert (shape.window, shape.windowed_layers, shape.mxfp4_experts) == (128, tuple(range(0, 24, 2)), True)
    assert parameters(gpt_oss.program(values)) == 20_914_757_184


def test_layers_of_gpt_oss_20b(values: Values) -> None:
    program = gpt_oss.program(values)
    attention, block = grouped(program, 2), mixture(program, 2)
    assert attention.qkv == Linear("layers.2.attention.qkv", 5120, 2880, "layers.2.attention.qkv_bias")
    assert attention.out == Linear("layers.2.attention.out", 2880, 4096, "layers.2.attention.out_bias")
    assert (attention.sinks, attention.score_scale) == ("layers.2.attention.sinks", 0.125)
    assert (attention.rope.theta, attention.rope.yarn) == (150000.0, YARN)
    assert [layer.attention.window for layer in program.layers] == [128, None] * 12
    assert block.router == Router("layers.2.router", 2880, 32, 4, renormalize=True, bias="layers.2.router_bias")
    assert block.expert.clamped == ClampedSwiglu(1.702, 7.0)
    gate_up_bias, down_bias = "layers.2.expert.gate_up_bias", "layers.2.expert.down_bias"
    assert block.expert.gate_up == Linear("layers.2.expert.gate_up", 5760, 2880, gate_up_bias, Storage.MXFP4)
    assert block.expert.down == Linear("layers.2.expert.down", 2880, 2880, down_bias, Storage.MXFP4)
    assert program.vectors["layers.2.attention.sinks"] == (64,)
    assert program.vectors["layers.2.router_bias"] == (32,)
    assert program.vectors["layers.2.expert.gate_up_bias"] == (32, 5760)
    assert program.vectors["layers.2.expert.down_bias"] == (32, 2880)


def test_defaults(values: Values) -> None:
    """What transformers assumes when a config.json does not say."""
    for name in ("layer_types", "rope_scaling", "rope_theta", "swiglu_limit", "head_dim", "attention_bias"):
        del values[name]
    program = gpt_oss.program(values)
    assert [layer.attention.window for layer in program.layers] == [128, None] * 12
    attention = grouped(program)
    assert (attention.rope.theta, attention.rope.yarn, attention.head_dim) == (150000.0, YARN, 64)
    assert attention.qkv.bias is not None
    assert mixture(program).expert.clamped == ClampedSwiglu(1.702, 7.0)


def test_options(values: Values) -> None:
    values |= {"swiglu_alpha": 1.5, "swiglu_limit": 5, "attention_bias": False}
    values |= {"layer_types": ["full_attention"] * 24, "sliding_window": None}
    values["rope_scaling"] = {"rope_type": "default"}
    program = gpt_oss.program(values)
    assert mixture(program).expert.clamped == ClampedSwiglu(1.5, 5.0)
    assert (grouped(program).qkv.bias, grouped(program).rope.yarn) == (None, None)
    assert (gpt_oss.shape(values).window, gpt_oss.shape(values).windowed_layers) == (0, ())


def test_parts_of_mxfp4_experts(values: Values) -> None:
    """Gate and up rows alternate."""
    module = "model.layers.9.mlp.experts"
    fused = (f"{module}.gate_up_proj", (32, 5760, 2880), 2880, 5, 32)
    assert gpt_oss.expert_parts(values, 9, 5) == (
        Part(*fused, first=0, step=2),
        Part(*fused, first=1, step=2),
        Part(f"{module}.down_proj", (32, 2880, 2880), 2880, 5, 32),
    )


def test_parts_of_bf16_experts(values: Values) -> None:
    """Transposed."""
    del values["quantization_config"]
    values |= {"intermediate_size": 1440}
    module = "model.layers.9.mlp.experts"
    fused = (f"{module}.gate_up_proj", (32, 2880, 2880), 1440, 5, 32)
    assert gpt_oss.expert_parts(values, 9, 5) == (
        Part(*fused, first=0, step=2, transposed=True),
        Part(*fused, first=1, step=2, transposed=True),
        Part(f"{module}.down_proj", (32, 1440, 2880), 2880, 5, 32, transposed=True),
    )
    assert {linear.storage for linear in (mixture(gpt_oss.program(values)).expert.gate_up,)} == {Storage.INT8}


def test_parts_of_vectors(values: Values) -> None:
    module = "model.layers.9.mlp"
    biases = gpt_oss.parts(values, "layers.9.expert.gate_up_bias")
    fused = (f"{module}.experts.gate_up_proj_bias", (32, 5760), 2880)
    assert len(biases) == 64
    assert biases[:3] == tuple(Part(*fused, expert, 32, first, 2) for expert, first in ((0, 0), (0, 1), (1, 0)))
    biases = gpt_oss.parts(values, "layers.9.expert.down_bias")
    assert len(biases) == 32
    assert biases[7] == Part(f"{module}.experts.down_proj_bias", (32, 2880), 2880, 7, 32)
    assert gpt_oss.parts(values, "layers.9.router_bias") == (Part(f"{module}.router.bias", (32,), 32),)
    assert gpt_oss.parts(values, "layers.9.attention.sinks") == (Part("model.layers.9.self_attn.sinks", (64,), 64),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"sliding_window": None}, "sliding_window must be a positive integer, not None"),
        ({"swiglu_limit": 0}, "swiglu_limit must be a positive number, not 0"),
        ({"swiglu_alpha": None, "swiglu_limit": "7"}, "swiglu_limit must be a positive number, not '7'"),
        ({"attention_bias": None}, "attention_bias must be true or false, not None"),
        ({"intermediate_size": 2890}, "expert_hidden = 2890 is not a multiple of the quantisation group 32"),
        (
            {"layer_types": ["chunked_attention"] * 24, "num_hidden_layers": 2},
            "layer_types must be a list of 2 times 'sliding_attention' or 'full_attention', not "
            + repr(["chunked_attention"] * 24)[:80],
        ),
    ],
)
def test_what_is_refused(values: Values, change: Values, message: str) -> None:
    assert_refused(values | change, message)
