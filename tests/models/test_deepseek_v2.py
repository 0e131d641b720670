"""DeepSeek-V2: its router, latent attention with YaRN, and what is refused."""

from __future__ import annotations

import math

import pytest

from elmoe.models import deepseek_v2
from elmoe.models.program import GatedMlp, GroupScore, Router, Yarn
from elmoe.models.source_tensors import Part, halves_order
from models.checks import Values, assert_refused, latent, mixture, parameters, published

NAME = "deepseek-ai/DeepSeek-V2-Lite"
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "routed_scaling_factor": 16.0}
"""As in the large DeepSeek-V2, but for its 160 experts."""


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_deepseek_v2_lite(values: Values) -> None:
    shape = deepseek_v2.shape(values)
    assert (shape.layers, shape.moe_layers, shape.dense_hidden) == (27, tuple(range(1, 27)), 10944)
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2048, 16, 16, 192)
    assert (shape.latent_dim, shape.query_latent_dim, shape.value_dim) == (512, 0, 128)
    assert (shape.nope_dim, shape.rope_dim) == (128, 64)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden, shape.shared_hidden) == (64, 6, 1408, 2816)
    assert shape.kv_elements_per_token == 27 * 576
    assert parameters(deepseek_v2.program(values)) == 15_706_484_224


def test_layers_of_deepseek_v2_lite(values: Values) -> None:
    program = deepseek_v2.program(values)
    assert isinstance(program.layers[0].ffn, GatedMlp)
    attention, block = latent(program, 2), mixture(program, 2)
    assert attention.rope.yarn == Yarn(40.0, 4096, 32.0, 1.0, truncate=True, attention_factor=1.0)
    assert attention.score_scale == 192**-0.5 * (0.1 * 0.707 * math.log(40) + 1) ** 2
    assert (attention.query_norm, attention.query_up, attention.down.bias) == (None, None, None)
    assert block.router == Router("layers.2.router", 2048, 64, 6, renormalize=False)
    assert block.shared is not None
    assert (block.shared.gate_up.outputs, block.shared_gate) == (5632, None)


def test_groups(values: Values) -> None:
    router = mixture(deepseek_v2.program(values | GROUPED), 1).router
    assert (router.groups, router.groups_kept, router.group_score, router.scale) == (8, 3, GroupScore.BEST, 16.0)
    ungrouped = mixture(deepseek_v2.program(values | GROUPED | {"topk_method": "greedy"}), 1).router
    assert (ungrouped.groups, ungrouped.groups_kept) == (1, 1)


def test_defaults(values: Values) -> None:
    """What transformers assumes when a config.json does not say."""
    for name in ("first_k_dense_replace", "topk_method", "n_group", "topk_group", "routed_scaling_factor"):
        del values[name]
    del values["norm_topk_prob"], values["scoring_func"], values["moe_layer_freq"], values["rope_scaling"]
    program = deepseek_v2.program(values)
    assert deepseek_v2.shape(values).moe_layers == tuple(range(27))
    assert mixture(program).router.scale == 1.0
    assert latent(program).rope.yarn is None
    assert latent(program).score_scale == 192**-0.5


def test_rotary_pairs_are_reordered(values: Values) -> None:
    module = "model.layers.3.self_attn"
    assert deepseek_v2.parts(values, "layers.3.attention.down") == (
        Part(f"{module}.q_proj.weight", (3072, 2048), 3072, order=halves_order(192, 64)),
        Part(f"{module}.kv_a_proj_with_mqa.weight", (576, 2048), 576, order=halves_order(576, 64)),
    )
    assert deepseek_v2.parts(values, "layers.3.shared.gate_up")[0] == Part(
        "model.layers.3.mlp.shared_experts.gate_proj.weight", (2816, 2048), 2816
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported; elmoe runs False or None"),
        ({"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid' is not supported; elmoe runs 'softmax' or None"),
        (
            {"topk_method": "noaux_tc"},
            "topk_method = 'noaux_tc' is not supported; elmoe runs 'greedy' or 'group_limited_greedy'",
        ),
        ({"norm_topk_prob": True}, "norm_topk_prob = True is not supported; elmoe runs False or None"),
        ({"moe_layer_freq": 2}, "moe_layer_freq = 2 is not supported; elmoe runs 1 or None"),
        ({"num_key_value_heads": 8}, "num_key_value_heads = 8 is not supported; elmoe runs 16 or None"),
        (GROUPED | {"n_group": 7}, "64 experts cannot be split into n_group = 7"),
        (
            GROUPED | {"n_group": 64},
            "topk_group = 3 groups of 1 experts, of which 6 are to be chosen, out of 64 groups",
        ),
        ({"attention_bias": True}, "attention_bias = True is not supported; elmoe runs False"),
        ({"qk_rope_head_dim": 63}, "rope_dim = 63 is odd; rotary embeddings turn pairs"),
        ({"n_routed_experts": None}, "n_routed_experts must be a positive integer, not None"),
    ],
)
def test_what_is_refused(values: Values, change: Values, message: str) -> None:
    assert_refused(values | change, message)
