"""Qwen3-MoE: sizes, layer program and tensor names from a config.json, and every field that is refused."""

from __future__ import annotations

import pytest

from elmoe.models import qwen3_moe
from elmoe.models.program import GatedMlp, Linear, MixtureOfExperts, RmsNorm, Rope, Router
from elmoe.models.source_tensors import Part
from models.checks import Values, assert_refused, grouped, parameters

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
        "latent_dim": 0,
        "query_latent_dim": 0,
        "nope_dim": 0,
        "rope_dim": 0,
        "value_dim": 0,
        "shared_hidden": 0,
        "window": 0,
        "windowed_layers": (),
        "mxfp4_experts": False,
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
    attention = grouped(program, 5)
    assert attention.qkv == Linear("layers.5.attention.qkv", (32 + 4 + 4) * 128, 2048)
    assert attention.out == Linear("layers.5.attention.out", 2048, 4096)
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (32, 4, 128)
    assert attention.rope == Rope(1e6, 128)
    assert attention.score_scale == 128**-0.5
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
    assert (shape.head_dim, shape.kv_heads, shape.tied_head) == (12, 4, False)
    assert shape.moe_layers == (0, 1, 2, 3)
    assert program.final_norm.eps == 1e-6
    assert grouped(program).rope.theta == 10000.0
    assert grouped(program).qkv.bias is None
    assert not program.moe_blocks[0].router.renormalize


def test_the_expert_count_under_its_new_name(small: Values) -> None:
    """Transformers 5 saves num_experts as num_local_experts."""
    small["num_local_experts"] = small.pop("num_experts")
    assert qwen3_moe.shape(small).experts == 6


def test_attention_bias(small: Values) -> None:
    program = qwen3_moe.program(small | {"attention_bias": True, "num_hidden_layers": 1})
    assert grouped(program).qkv.bias == "layers.0.attention.qkv_bias"
    assert grouped(program).out.bias == "layers.0.attention.out_bias"
    assert program.vectors["layers.0.attention.qkv_bias"] == (96,)
    assert program.vectors["layers.0.attention.out_bias"] == (96,)


@pytest.mark.parametrize(
    "change", [{"rope_theta": 5e5, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 5e5}}]
)
def test_spellings_of_rope(small: Values, change: Values) -> None:
    assert grouped(qwen3_moe.program(small | change)).rope == Rope(5e5, 8)


def test_yarn(small: Values) -> None:
    small["rope_scaling"] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    yarn = grouped(qwen3_moe.program(small)).rope.yarn
    assert yarn is not None
    assert (yarn.factor, yarn.original_context) == (4.0, 64)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope"])
def test_other_rope_scaling_is_refused(small: Values, kind: str) -> None:
    small["rope_scaling"] = {"type": kind, "factor": 4.0}
    assert_refused(small, f"rope_scaling: type = {kind!r} is not supported; elmoe runs 'default' or 'yarn'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; elmoe runs 'silu'"),
        ({"use_sliding_window": "no"}, "use_sliding_window = 'no' is not supported; elmoe runs False or True or None"),
        ({"use_sliding_window": True}, "sliding_window must be a positive integer, not None"),
        ({"hidden_size": 100}, "hidden = 100 is not a multiple of the quantisation group 32"),
        ({"moe_intermediate_size": 16}, "expert_hidden = 16 is not a multiple of the quantisation group 32"),
        ({"intermediate_size": 150}, "dense_hidden = 150 is not a multiple of the quantisation group 32"),
        ({"head_dim": 10}, "heads * head_dim = 80 is not a multiple of the quantisation group 32"),
        ({"num_key_value_heads": 3}, "8 attention heads cannot share 3 key-value heads"),
        ({"num_experts_per_tok": 7}, "7 experts per token out of 6 experts"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, not 0"),
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
    assert_refused(small | change, message)


@pytest.mark.parametrize("field", REQUIRED)
def test_sizes_are_required_positive_integers(small: Values, field: str) -> None:
    for value in (None, -4, 0, True, "8", 2.5):
        assert_refused(small | {field: value}, f"{field} must be a positive integer, not {value!r}")
    del small[field]
    assert_refused(small, f"{field} must be a positive integer, not None")


def test_a_sliding_window_is_in_all_layers_or_off(small: Values) -> None:
    off = qwen3_moe.program(small | {"use_sliding_window": False, "sliding_window": 4096})
    assert {layer.attention.window for layer in off.layers} == {None}
    on = small | {"use_sliding_window": True, "sliding_window": 4096}
    assert {layer.attention.window for layer in qwen3_moe.program(on).layers} == {4096}
    assert (qwen3_moe.shape(on).window, qwen3_moe.shape(on).windowed_layers) == (4096, (0, 1, 2, 3))


def test_order_of_stacked_rows(small: Values) -> None:
    module = "model.layers.11.self_attn"
    assert qwen3_moe.parts(small, "layers.11.attention.qkv") == (
        Part(f"{module}.q_proj.weight", (64, 96), 64),
        Part(f"{module}.k_proj.weight", (16, 96), 16),
        Part(f"{module}.v_proj.weight", (16, 96), 16),
    )
    assert qwen3_moe.parts(small, "layers.11.attention.qkv_bias") == (
        Part(f"{module}.q_proj.bias", (64,), 64),
        Part(f"{module}.k_proj.bias", (16,), 16),
        Part(f"{module}.v_proj.bias", (16,), 16),
    )
    module = "model.layers.11.mlp"
    assert qwen3_moe.parts(small, "layers.11.mlp.gate_up") == (
        Part(f"{module}.gate_proj.weight", (160, 96), 160),
        Part(f"{module}.up_proj.weight", (160, 96), 160),
    )
    assert qwen3_moe.expert_parts(small, 11, 3) == (
        Part(f"{module}.experts.3.gate_proj.weight", (32, 96), 32),
        Part(f"{module}.experts.3.up_proj.weight", (32, 96), 32),
        Part(f"{module}.experts.3.down_proj.weight", (96, 32), 96),
    )
