"""What the tests of families share."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import pytest

from elmoe.errors import UnsupportedModelError
from elmoe.models.program import GroupedQueryAttention, LatentAttention, MixtureOfExperts, Program
from elmoe.models.registry import Family, family_of
from models.published import PUBLISHED

Values = dict[str, Any]


def published(name: str) -> tuple[Family, Values]:
    """The family and a copy of the config.json of a model in `PUBLISHED`."""
    values = dict(PUBLISHED[name])
    return family_of(values), values


def parameters(program: Program) -> int:
    """Weights of a program: dense matrices, vectors, experts."""
    matrices = sum(linear.outputs * linear.inputs for linear in program.linears)
    vectors = sum(prod(dims) for dims in program.vectors.values())
    experts = sum(
        block.router.experts * (linear.outputs * linear.inputs)
        for block in program.moe_blocks
        for linear in (block.expert.gate_up, block.expert.down)
    )
    return matrices + vectors + experts


def assert_refused(values: Values, message: str) -> None:
    """UnsupportedModelError with exactly this text after ``config.json: ``."""
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(f'config.json: {message}')}$"):
        family_of(values).program(values)


def grouped(program: Program, layer: int = 0) -> GroupedQueryAttention:
    """Grouped-query attention of a layer."""
    attention = program.layers[layer].attention
    assert isinstance(attention, GroupedQueryAttention)
    return attention


def latent(program: Program, layer: int = 0) -> LatentAttention:
    """Latent attention of a layer."""
    attention = program.layers[layer].attention
    assert isinstance(attention, LatentAttention)
    return attention


def mixture(program: Program, layer: int = 0) -> MixtureOfExperts:
    """The MoE block of a layer."""
    ffn = program.layers[layer].ffn
    assert isinstance(ffn, MixtureOfExperts)
    return ffn
