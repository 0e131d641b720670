"""Cells copied from another sequence are what the sequence itself would have computed, bit for bit, in every family."""

from __future__ import annotations

import numpy as np
import pytest

from backend.family_models import FAMILY_MODELS
from backend.passes import run_of
from elmoe.backend.select import open_backend
from elmoe.checkpoint.folder import Checkpoint

LENGTHS = (1, 15, 16, 17, 33)
"""Around the sixteen cells whose keys lie together, and beyond every window."""


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_a_sequence_goes_on_from_copied_cells(
    family_checkpoints: dict[str, Checkpoint], name: str, backend: str
) -> None:
    opened = open_backend(backend, family_checkpoints[name])
    tokens = np.random.default_rng(1).integers(0, 99, 40).tolist()
    other = [(token + 1) % 99 for token in tokens]
    opened.allocate(0, 64)
    opened.forward(run_of(tokens))
    for sequence, length in enumerate(LENGTHS, 1):
        opened.allocate(sequence, 48)
        opened.forward(run_of(other, sequence))  # what was there before does not matter
        opened.copy(0, sequence, length)
        alone = opened.forward(run_of(other[length:], sequence, first=length)).logits
        opened.allocate(sequence, 48)
        opened.forward(run_of(tokens[:length], sequence))
        again = opened.forward(run_of(other[length:], sequence, first=length)).logits
        assert (alone == again).all()


@pytest.mark.parametrize(("source", "destination", "cells"), [(7, 1, 2), (0, 7, 2), (0, 1, 9), (0, 1, -1)])
def test_what_is_not_there_cannot_be_copied(
    family_checkpoints: dict[str, Checkpoint], source: int, destination: int, cells: int
) -> None:
    opened = open_backend("cpu", family_checkpoints["mixtral"])
    opened.allocate(0, 20)
    opened.allocate(1, 8)
    with pytest.raises(ValueError, match=r"no such sequence|is outside the KV cache"):
        opened.copy(source, destination, cells)
