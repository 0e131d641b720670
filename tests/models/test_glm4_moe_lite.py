"""GLM-4.7-Flash: its router, dense layers, latent attention, and what is refused."""

from __future__ import annotations

import pytest

from elmoe.models import glm4_moe_lite
from elmoe.models.program import GatedMlp, GroupScore, Linear, RmsNorm, Router, Scoring
from elmoe.models.source_tensors import Part, halves_order
from models.checks import Values, assert_refused, latent, mixture, parameters, published

NAME = "zai-org/GLM-4.7-Flash"


@pytest.fixture
def values() -> Values:
    return published(NAME)[1]


def test_sizes_of_glm_4_7_flash(values: Values) -> None:
    shape = glm4_moe_lite.shape(values)
    assert (shape.layers, shape.moe_layers, shape.dense_hidden) == (47, tuple(range(1, 47)), 10240)
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2048, 20, 20, 256)
    assert (shape.latent_dim, shape.query_latent_dim, shape.value_dim) == (512, 768, 256)
    assert (shape.nope_dim, shape.rope_dim) == (192, 64)
    assert (shape.experts, shape.experts_per_tok, shape.expert_hidden, shape.shared_hidden) == (64, 4, 1536, 1536)
    assert shape.kv_elements_per_token == 47 * 576
    assert parameters(glm4_moe_lite.program(values)) == 29_943_393_920


def test_layers_of_glm_4_7_flash(values: Values) -> None:
    program = glm4_moe_lite.program(values)
    assert isinstance(program.layers[0].ffn, GatedMlp)
    attention, block = latent(program, 2), mixture(program, 2)
    assert attention.score_scale == 256**-0.5
    assert (attention.rope.theta, attention.rope.head_dim, attention.rope.yarn) == (1e6, 64, None)
    assert attention.query_norm == RmsNorm("layers.2.attention.query_norm", 768, 1e-6)
    assert block.layer == 1
    assert block.router == Router(
        weight="layers.2.router",
        inputs=2048,
        experts=64,
        experts_per_tok=4,
        renormalize=True,
        scoring=Scoring.SIGMOID,
        correction="layers.2.router_correction",
        groups=1,
        groups_kept=1,
        group_score=GroupScore.BEST_TWO,
        scale=1.8,
    )
    assert block.shared == GatedMlp(
        Linear("layers.2.shared.gate_up", 3072, 2048), Linear("layers.2.shared.down", 2048, 1536)
    )
    assert block.shared_gate is None
    assert program.layers[2].ffn_norm.eps == 1e-5


def test_defaults(values: Values) -> None:
    """What transformers assumes when a config.json does not say."""
    for name in ("first_k_dense_replace", "norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group"):
        del values[name]
    router = mixture(glm4_moe_lite.program(values), 1).router
    assert glm4_moe_lite.shape(values).moe_layers == tuple(range(1, 47))
    assert (router.renormalize, router.scale, router.groups, router.groups_kept) == (True, 1.8, 1, 1)


def test_groups(values: Values) -> None:
    router = mixture(glm4_moe_lite.program(values | {"n_group": 8, "topk_group": 3}), 1).router
    assert (router.groups, router.groups_kept) == (8, 3)


@pytest.mark.parametrize(
    ("change", "moe_layers"),
    [
        ({"first_k_dense_replace": 0}, (0, 1, 2, 3)),
        ({"first_k_dense_replace": 3}, (3,)),
        ({"mlp_layer_types": ["sparse", "dense", "sparse", "dense"]}, (0, 2)),
    ],
)
def test_dense_layers(values: Values, change: Values, moe_layers: tuple[int, ...]) -> None:
    assert glm4_moe_lite.shape(values | {"num_hidden_layers": 4} | change).moe_layers == moe_layers


def test_parts(values: Values) -> None:
    module = "model.layers.3"
    assert glm4_moe_lite.parts(values, "layers.3.router_correction") == (
        Part(f"{module}.mlp.gate.e_score_correction_bias", (64,), 64),
    )
    assert glm4_moe_lite.parts(values, "layers.3.shared.down") == (
        Part(f"{module}.mlp.shared_experts.down_proj.weight", (2048, 1536), 2048),
    )
    queries = glm4_moe_lite.parts(values, "layers.3.attention.query_up")
    assert queries == (Part(f"{module}.self_attn.q_b_proj.weight", (5120, 768), 5120, order=halves_order(256, 64)),)
    in_halves = values | {"rope_interleave": False}
    assert glm4_moe_lite.parts(in_halves, "layers.3.attention.query_up")[0].order is None
    assert glm4_moe_lite.ignored(values, "model.layers.47.eh_proj.weight")
    assert not glm4_moe_lite.ignored(values, "model.layers.46.eh_proj.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax' is not supported; elmoe runs 'sigmoid' or None"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy' is not supported; elmoe runs 'noaux_tc' or None"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4 is not supported; elmoe runs 20 or None"),
        ({"n_group": 5}, "64 experts cannot be split into n_group = 5"),
        ({"n_group": 64, "topk_group": 8}, "n_group = 64 leaves fewer than two experts to rank a group by"),
        (
            {"n_group": 32},
            "topk_group = 1 groups of 2 experts, of which 4 are to be chosen, out of 32 groups",
        ),
        (
            {"n_group": 2, "topk_group": 3},
            "topk_group = 3 groups of 32 experts, of which 4 are to be chosen, out of 2 groups",
        ),
        ({"norm_topk_prob": None}, "norm_topk_prob must be true or false, not None"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor must be a positive number, not 0"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace must be an integer from 0 on, not -1"),
        ({"n_shared_experts": None}, "n_shared_experts must be a positive integer, not None"),
        ({"q_lora_rank": 100}, "query_latent_dim = 100 is not a multiple of the quantisation group 32"),
        ({"kv_lora_rank": 500}, "latent_dim = 500 is not a multiple of the quantisation group 32"),
        (
            {"q_lora_rank": None, "attention_bias": True},
            "attention_bias = True is not supported; elmoe runs False",
        ),
        (
            {"mlp_layer_types": ["dense"]},
            "mlp_layer_types must be a list of 47 times 'dense' or 'sparse', not ['dense']",
        ),
    ],
)
def test_what_is_refused(values: Values, change: Values, message: str) -> None:
    assert_refused(values | change, message)


def test_compression_of_queries_must_be_said(values: Values) -> None:
    del values["q_lora_rank"]
    assert_refused(values, "q_lora_rank is missing; it must be a positive integer or null")
