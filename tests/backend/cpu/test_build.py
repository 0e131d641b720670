"""Models that the kernels do not take, and the program that the native model is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from odd_models import config_of, make_model

from backend.passes import run_of, same_bits
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.cpu.build import build_model
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError


@pytest.mark.parametrize(
    ("heads", "experts", "message"),
    [
        ((1, 1, 32), (70, 65, 32), "65 experts per token are more than the cpu backend's 64"),
    ],
)
def test_shapes_that_the_kernels_do_not_take(
    tmp_path: Path, heads: tuple[int, int, int], experts: tuple[int, int, int], message: str
) -> None:
    checkpoint = make_model(tmp_path, config_of(64, 40, heads, experts, layers=1))
    with pytest.raises(ConfigError, match=f"{message}; use --backend reference"):
        CpuBackend(checkpoint)
    reference = ReferenceBackend(checkpoint)
    reference.allocate(0, 4)
    assert reference.forward(run_of([1, 2])).logits.shape == (2, 40), "the remedy works"


def test_64_experts_per_token_are_taken(tmp_path: Path, isa: str) -> None:
    checkpoint = make_model(tmp_path, config_of(32, 40, (1, 1, 32), (66, 64, 32), layers=1))
    logits = []
    for backend in (CpuBackend(checkpoint), ReferenceBackend(checkpoint)):
        backend.allocate(0, 8)
        logits.append(backend.forward(run_of([3, 1, 4, 1, 5])).logits)
    assert same_bits(*logits)


def test_layers_share_rotary_angles(tiny: Checkpoint) -> None:
    _, ropes = build_model(tiny)
    assert list(ropes.values()) == [0]
