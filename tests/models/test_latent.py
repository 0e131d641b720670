"""Latent attention: matrices of the program, and the parts of the checkpoint that make them, by a small example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from elmoe.models import deepseek_v2
from elmoe.models.program import Linear, RmsNorm
from elmoe.models.source_tensors import Part, halves_order
from models.checks import Values, latent, published

MODULE = "model.layers.1.self_attn"


@pytest.fixture
def values() -> Values:
    """Two heads of 40 + 8, latents of 32, values of 16, queries through 64."""
    values = published("deepseek-ai/DeepSeek-V2-Lite")[1]
    return values | {
        "hidden_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 40,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    }


def test_program(values: Values) -> None:
    attention = latent(deepseek_v2.program(values), 1)
    prefix = "layers.1.attention"
    assert attention.down == Linear(f"{prefix}.down", 64 + 32 + 8, 96)
    assert attention.query_norm == RmsNorm(f"{prefix}.query_norm", 64, 1e-6)
    assert attention.query_up == Linear(f"{prefix}.query_up", 2 * 48, 64)
    assert attention.latent_norm == RmsNorm(f"{prefix}.latent_norm", 32, 1e-6)
    assert attention.key_up == Linear(f"{prefix}.key_up", 2 * 32, 64), "40 inputs padded to 64"
    assert attention.value_up == Linear(f"{prefix}.value_up", 2 * 16, 32)
    assert attention.out == Linear(f"{prefix}.out", 96, 2 * 16)
    assert (attention.query_part, attention.kv_elements) == (64, 40)


def test_norms_of_latents_have_an_epsilon_of_their_own(values: Values) -> None:
    program = deepseek_v2.program(values | {"rms_norm_eps": 1e-3})
    attention = latent(program, 1)
    assert attention.query_norm is not None
    assert (attention.query_norm.eps, attention.latent_norm.eps) == (1e-6, 1e-6)
    assert program.layers[1].attention_norm.eps == 1e-3


def test_without_compression_of_queries(values: Values) -> None:
    values["q_lora_rank"] = None
    attention = latent(deepseek_v2.program(values), 1)
    assert (attention.down.outputs, attention.query_part) == (96 + 40, 96)
    assert (attention.query_norm, attention.query_up) == (None, None)
    assert deepseek_v2.parts(values, "layers.1.attention.down")[0] == Part(
        f"{MODULE}.q_proj.weight", (96, 96), 96, order=halves_order(48, 8)
    )


def test_biases(values: Values) -> None:
    values["attention_bias"] = True
    program = deepseek_v2.program(values)
    assert latent(program, 1).down.bias == "layers.1.attention.down_bias"
    assert latent(program, 1).out.bias == "layers.1.attention.out_bias"
    assert program.vectors["layers.1.attention.down_bias"] == (104,)
    assert deepseek_v2.parts(values, "layers.1.attention.down_bias") == (
        Part(f"{MODULE}.q_a_proj.bias", (64,), 64),
        Part(f"{MODULE}.kv_a_proj_with_mqa.bias", (40,), 40, order=halves_order(40, 8)),
    )
    assert deepseek_v2.parts(values, "layers.1.attention.out_bias") == (Part(f"{MODULE}.o_proj.bias", (96,), 96),)


def test_single_parts(values: Values) -> None:
    expected = {
        "query_norm": Part(f"{MODULE}.q_a_layernorm.weight", (64,), 64),
        "latent_norm": Part(f"{MODULE}.kv_a_layernorm.weight", (32,), 32),
        "out": Part(f"{MODULE}.o_proj.weight", (96, 32), 96),
    }
    for piece, part in expected.items():
        assert deepseek_v2.parts(values, f"layers.1.attention.{piece}") == (part,)


def test_order_keeps_what_is_not_rotated() -> None:
    order = deepseek_v2.parts(published("deepseek-ai/DeepSeek-V2-Lite")[1], "layers.1.attention.down")[1].order
    assert order is not None
    assert order[:512] == tuple(range(512))
    assert order[512:] == (*range(512, 576, 2), *range(513, 576, 2))


def test_absorbed_matrices_compute_what_the_checkpoint_means(values: Values) -> None:
    """Scores and results through `key_up` and `value_up` are those through ``kv_b_proj``."""
    rng = np.random.default_rng(0)
    up = rng.standard_normal((2 * (40 + 16), 32))
    query, latents = rng.standard_normal((2, 40)), rng.standard_normal((5, 32))
    key_up, value_up = (stacked(values, piece, up) for piece in ("key_up", "value_up"))
    expanded = (latents @ up.T).reshape(5, 2, 56)  # transformers' way: keys and values of every head and token
    for head in range(2):
        carried = key_up[head * 32 : (head + 1) * 32] @ query[head]
        np.testing.assert_allclose(latents @ carried, expanded[:, head, :40] @ query[head])
        mixed = latents.mean(axis=0)
        ours = value_up[head * 16 : (head + 1) * 16] @ mixed
        np.testing.assert_allclose(ours, expanded[:, head, 40:].mean(axis=0))


def stacked(values: Values, piece: str, tensor: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """The stored matrix, unpadded, from the parts that say where its rows are."""
    rows = []
    for part in deepseek_v2.parts(values, f"layers.1.attention.{piece}"):
        assert part.tensor == f"{MODULE}.kv_b_proj.weight"
        assert part.shape == tensor.shape
        slab = tensor.reshape(part.view)[part.slab]
        slab = slab.T if part.transposed else slab
        rows.append(slab[part.first : part.first + part.rows, : part.inputs])
    return np.concatenate(rows)
