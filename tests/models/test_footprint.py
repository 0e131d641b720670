"""Bytes by part, against hand computation and against planes that were really packed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from elmoe.models import qwen3_moe
from elmoe.models.footprint import Footprint, footprint
from elmoe.models.program import Linear, expert_plane_bytes
from elmoe.quant import tiles
from models.checks import published

Values = dict[str, Any]


def size_of(values: Values) -> Footprint:
    return footprint(qwen3_moe.shape(values), qwen3_moe.program(values))


def packed_bytes(linear: Linear) -> tuple[int, int]:
    """Sizes of planes that `pack` made of a zero matrix."""
    codes = np.zeros((linear.outputs, linear.inputs), dtype=np.int8)
    msb, lsb = tiles.pack(codes, np.zeros((linear.outputs, linear.inputs // 32), dtype=np.float16))
    return msb.nbytes, lsb.nbytes


def packed_scale_bytes(linear: Linear) -> int:
    """Bytes of an MSB plane that are not nibbles: a zero code makes 0x88 of them, a zero scale makes 0."""
    codes = np.zeros((linear.outputs, linear.inputs), dtype=np.int8)
    msb, _ = tiles.pack(codes, np.zeros((linear.outputs, linear.inputs // 32), dtype=np.float16))
    return int((msb != 0x88).sum())


def test_qwen3_30b_a3b_by_hand(qwen3_30b_a3b: Values) -> None:
    """Every matrix fills whole tiles: 4.5 bits per weight in the MSB plane (scales 0.5), 4 in the LSB plane."""
    expert = 3 * 2048 * 768
    attention = 2048 * 5120 + 4096 * 2048
    dense = 48 * attention + 2 * 151936 * 2048
    vectors = 4 * (48 * (2 * 2048 + 2 * 128 + 128 * 2048) + 2048)
    experts = 48 * 128
    size = size_of(qwen3_30b_a3b)
    assert size.expert_msb == 2_654_208 == expert * 9 // 16
    assert size.expert_lsb == 2_359_296 == expert // 2
    assert size.experts_msb == experts * size.expert_msb
    assert size.experts_lsb == experts * size.expert_lsb
    assert size.dense_msb == dense * 9 // 16 + vectors
    assert size.dense == 1_674_993_664 == dense * 17 // 16 + vectors
    assert size.scales == (dense + experts * expert) // 16
    assert size.kv_per_token == 98_304 == 2 * 48 * 4 * 128 * 2
    assert size.total == 32_477_962_240
    assert (size.moe_layers, size.experts, size.experts_per_tok) == (48, 128, 8)


def test_pool_of_qwen3_30b_a3b(qwen3_30b_a3b: Values) -> None:
    """In 8 GB: (8e9 - dense - KV) / (48 layers of 2.65 MB records)."""
    size = size_of(qwen3_30b_a3b)
    slot = 48 * 2_654_208
    assert size.pool_slots(8 * 10**9, 0) == 49 == (8 * 10**9 - 1_674_993_664) // slot
    assert size.pool_slots(8 * 10**9, 16 * 1024) == 37 == (8 * 10**9 - 1_674_993_664 - 16384 * 98_304) // slot
    assert size.pool_slots(4 * 10**9, 0) == 18
    assert size.fast_bytes_needed(1000) == 1_674_993_664 + 98_304_000 + 8 * slot


def test_gpt_oss_20b_by_hand() -> None:
    """MXFP4 experts have one plane: per 16 rows 45 tiles of 512 bytes, then 90 groups' scales, padded to 64 bytes."""
    family, values = published("openai/gpt-oss-20b")
    size = footprint(family.shape(values), family.program(values))
    block = 45 * 512 + 1472
    assert size.expert_msb == (5760 + 2880) // 16 * block
    assert size.expert_lsb == size.experts_lsb == 0
    assert size.experts_msb == 24 * 32 * size.expert_msb
    attention = 2880 * 5120 + 4096 * 2880
    dense = 24 * attention + 2 * 201088 * 2880
    of_expert = 5760 + 2880
    vectors = 24 * (2 * 2880 + 64 + 32 * (2880 + 1 + of_expert) + 5120 + 2880) + 2880
    assert size.dense_msb == dense * 9 // 16 + 4 * vectors
    assert size.scales == dense // 16 + 24 * 32 * (5760 + 2880) // 16 * 1472
    assert size.kv_per_token == 24 * 2 * 8 * 64 * 2
    assert size.windows == ((128, 12 * 2 * 8 * 64 * 2),)


def test_glm_4_7_flash_by_hand() -> None:
    """Latent attention: 576 elements per token and layer; shared experts and the dense layer are dense weights."""
    family, values = published("zai-org/GLM-4.7-Flash")
    size = footprint(family.shape(values), family.program(values))
    attention = 2048 * (768 + 576) + 768 * 5120 + 512 * 20 * (192 + 256) + 5120 * 2048
    shared = 3 * 2048 * 1536
    dense = 47 * attention + 3 * 2048 * 10240 + 46 * shared + 2 * 154880 * 2048
    vectors = 47 * (2 * 2048 + 768 + 512) + 46 * (64 * 2048 + 64) + 2048
    assert size.dense == dense * 17 // 16 + 4 * vectors
    assert size.kv_per_token == 47 * 576 * 2
    assert size.windows == ()
    assert size.expert_msb == 3 * 2048 * 1536 * 9 // 16


@pytest.mark.parametrize(
    "change", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"mlp_only_layers": []}]
)
def test_small_models_against_packed_planes(small: Values, change: Values) -> None:
    """Sizes that leave tiles half empty: padding counts."""
    values = small | change
    program, size = qwen3_moe.program(values), size_of(values)
    dense = [packed_bytes(linear) for linear in program.linears]
    vectors = sum(np.zeros(dims, dtype=np.float32).nbytes for dims in program.vectors.values())
    assert size.dense_msb == sum(msb for msb, _ in dense) + vectors
    assert size.dense == size.dense_msb + sum(lsb for _, lsb in dense)
    expert = program.moe_blocks[0].expert
    parts = [packed_bytes(linear) for linear in (expert.gate_up, expert.down)]
    assert (size.expert_msb, size.expert_lsb) == (sum(msb for msb, _ in parts), sum(lsb for _, lsb in parts))
    assert (size.expert_msb, size.expert_lsb) == expert_plane_bytes(expert)
    count = 6 * len(program.moe_blocks)
    assert (size.experts_msb, size.experts_lsb) == (count * size.expert_msb, count * size.expert_lsb)
    assert size.total == size.dense + size.experts_msb + size.experts_lsb
    scales = sum(packed_scale_bytes(linear) for linear in program.linears)
    scales += count * (packed_scale_bytes(expert.gate_up) + packed_scale_bytes(expert.down))
    assert size.scales == scales


def test_a_tied_head_costs_nothing(small: Values) -> None:
    tied = size_of(small | {"tie_word_embeddings": True})
    assert size_of(small).dense - tied.dense == sum(tiles.plane_bytes(300, 96))


@pytest.fixture
def room() -> Footprint:
    """Round numbers: a slot of 10 bytes in each of 3 layers, 1000 bytes of dense weights, 2 bytes of KV per token."""
    return Footprint(
        dense=1000,
        dense_msb=600,
        experts_msb=480,
        experts_lsb=432,
        scales=90,
        kv_per_token=2,
        windows=(),
        expert_msb=10,
        expert_lsb=9,
        moe_layers=3,
        experts=16,
        experts_per_tok=4,
    )


@pytest.mark.parametrize(
    ("fast_bytes", "kv_tokens", "slots"),
    [
        (1000, 0, 0),
        (1029, 0, 0),
        (1030, 0, 1),
        (1119, 0, 3),
        (1120, 0, 4),
        (1120, 1, 3),
        (1120, 60, 0),
        (1120, 61, -1),
        (999, 0, -1),
        (970, 0, -1),
        (969, 0, -2),
        (1480, 0, 16),
        (10**12, 0, 16),
    ],
)
def test_pool_slots(room: Footprint, fast_bytes: int, kv_tokens: int, slots: int) -> None:
    assert room.pool_slots(fast_bytes, kv_tokens) == slots


@pytest.mark.parametrize("kv_tokens", [0, 1, 1000])
def test_the_smallest_budget_holds_one_tokens_experts(room: Footprint, kv_tokens: int) -> None:
    needed = room.fast_bytes_needed(kv_tokens)
    assert room.pool_slots(needed, kv_tokens) == room.experts_per_tok
    assert room.pool_slots(needed - 1, kv_tokens) == room.experts_per_tok - 1


def test_a_model_without_experts_has_only_dense_bytes(small: Values) -> None:
    """Sizes of the dense layers alone; nothing of an expert."""
    values = small | {"mlp_only_layers": [0, 1, 2, 3]}
    size = size_of(values)
    assert size.total == size.dense
    assert (size.expert_msb, size.expert_lsb, size.moe_layers) == (0, 0, 0)


def test_total_is_the_sum_of_its_parts(room: Footprint) -> None:
    assert room.total == 1000 + 480 + 432
    assert replace(room, dense=0).total == 912
