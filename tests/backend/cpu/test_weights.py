"""Damaged weights, and which of the weights a pass reads."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import python
from twins import open_on

from backend.passes import chain_of, int32, joined, run_of, same_bits
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.cpu.build import build_model
from elmoe.backend.protocol import DraftQuality, ForwardResult
from elmoe.backend.rope import rope_block
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import CheckpointError

OddModel = Callable[[str], Checkpoint]
DRAFT = DraftQuality()
ROWS = run_of([5, 77, 200])
FIELDS = ("tokens", "sequences", "positions", "cells", "prefix", "path", "logits")


@pytest.fixture(scope="module")
def healthy(odd_model: OddModel) -> Checkpoint:
    return odd_model("middling")


def flip(path: Path, offset: int) -> None:
    """One bit of one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


@pytest.fixture
def answer(healthy: Checkpoint) -> ForwardResult:
    """Of the undamaged model."""
    return passed(healthy)


def passed(checkpoint: Checkpoint, draft: DraftQuality | None = None) -> ForwardResult:
    backend = CpuBackend(checkpoint)
    backend.allocate(0, 10)
    return backend.forward(ROWS, draft=draft)


@pytest.fixture
def copy(healthy: Checkpoint, tmp_path: Path) -> Path:
    return shutil.copytree(healthy.path, tmp_path / "copy.elmoe")


def used_and_unused(answer: ForwardResult) -> tuple[tuple[int, int], tuple[int, int]]:
    """(MoE block, expert) that a pass read, and one that it did not."""
    return tuple(map(int, np.argwhere(answer.read)[-1])), tuple(map(int, np.argwhere(~answer.read)[0]))


@pytest.mark.parametrize("last", [False, True], ids=["first byte", "last byte"])
@pytest.mark.parametrize("draft", [None, DRAFT, DraftQuality(5)], ids=["target", "draft", "draft5"])
def test_a_damaged_msb_record_is_found_when_it_is_first_read(
    copy: Path, healthy: Checkpoint, answer: ForwardResult, draft: DraftQuality | None, last: bool
) -> None:
    want = passed(healthy, draft)
    (layer, expert), unused = used_and_unused(want)
    extent = healthy.expert_extent("msb", layer, expert)
    flip(copy / extent.file, extent.offset + (extent.size_bytes - 1 if last else 0))
    flip(copy / extent.file, healthy.expert_extent("msb", *unused).offset)
    backend = CpuBackend(Checkpoint.open(copy))
    backend.allocate(0, 10)
    said = rf"experts_msb\.bin: MSB record of expert {expert} in MoE block {layer} is damaged \(CRC-32 mismatch\); .+"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=said):
            backend.forward(ROWS, draft=draft)


def test_a_damaged_lsb_record_is_found_by_the_target_and_not_by_the_draft(
    copy: Path, healthy: Checkpoint, answer: ForwardResult
) -> None:
    (layer, expert), _ = used_and_unused(answer)
    extent = healthy.expert_extent("lsb", layer, expert)
    flip(copy / extent.file, extent.offset + extent.size_bytes // 2)
    backend = CpuBackend(Checkpoint.open(copy))
    backend.allocate(0, 10)
    only = np.zeros((2, 12), dtype=np.bool_)
    only[:, :3] = True
    only[layer] = np.arange(12) == expert  # the draft uses the damaged expert
    draft = DraftQuality(experts_per_tok=1)
    read = backend.forward(ROWS, only, draft)
    assert read.read[layer, expert]
    whole = CpuBackend(healthy)
    whole.allocate(0, 10)
    assert same_bits(read.logits, whole.forward(ROWS, only, draft).logits)
    said = rf"experts_lsb\.bin: LSB record of expert {expert} in MoE block {layer} is damaged"
    for quality in (None, DraftQuality(7, experts_per_tok=1), None):
        with pytest.raises(CheckpointError, match=said):
            backend.forward(ROWS, only, quality)
    assert same_bits(backend.forward(ROWS, only, draft).logits, read.logits), "usable afterwards"


def test_damage_in_what_is_not_read_is_not_noticed(copy: Path, healthy: Checkpoint, answer: ForwardResult) -> None:
    """All records of all other experts, and the padding between records."""
    for layer, expert in np.argwhere(~answer.read).tolist():
        for plane in ("msb", "lsb"):
            extent = healthy.expert_extent(plane, layer, expert)
            flip(copy / extent.file, extent.offset)
    extent = healthy.expert_extent("msb", *used_and_unused(answer)[0])
    assert extent.size_bytes % 4096
    flip(copy / extent.file, extent.offset + extent.size_bytes)
    assert same_bits(passed(Checkpoint.open(copy)).logits, answer.logits)


@pytest.mark.parametrize("piece", ["embedding", "head", "layers.1.attention.qkv", "layers.2.attention.out"])
@pytest.mark.parametrize("plane", [0, 1])
def test_damaged_dense_matrices_are_found_at_once(copy: Path, healthy: Checkpoint, piece: str, plane: int) -> None:
    extent = healthy.layout.linears[piece][plane]
    flip(copy / extent.file, extent.offset + extent.size_bytes - 1)
    said = rf"dense\.bin: {('MSB', 'LSB')[plane]} plane of {piece} is damaged \(CRC-32 mismatch\)"
    with pytest.raises(CheckpointError, match=said):
        CpuBackend(Checkpoint.open(copy))


@pytest.mark.parametrize("piece", ["final_norm", "layers.0.router", "layers.1.attention.key_norm"])
def test_damaged_vectors_are_found_at_once(copy: Path, healthy: Checkpoint, piece: str) -> None:
    extent = healthy.layout.vectors[piece]
    flip(copy / extent.file, extent.offset)
    with pytest.raises(CheckpointError, match=rf"dense\.bin: {piece} is damaged"):
        CpuBackend(Checkpoint.open(copy))


@pytest.mark.parametrize("best", [0, 1, 600])
@pytest.mark.parametrize(
    ("name", "value"),
    [("final_norm", np.inf), ("final_norm", -np.inf), ("layers.2.ffn_norm", 3e38), ("layers.0.ffn_norm", np.nan)],
)
def test_logits_that_are_not_finite_are_an_error(
    healthy: Checkpoint, monkeypatch: pytest.MonkeyPatch, isa: str, name: str, value: float, best: int
) -> None:
    """Also where quantising the residual would have made zeros of it."""
    vector = Checkpoint.vector

    def spoilt(self: Checkpoint, asked: str) -> Any:
        return np.full(96, value, dtype=np.float32) if asked == name else vector(self, asked)

    monkeypatch.setattr(Checkpoint, "vector", spoilt)
    backend = open_on(isa, healthy)
    backend.allocate(0, 10)
    with pytest.raises(CheckpointError, match=r"model\.elmoe: logits are not finite; the weights are damaged"):
        backend.forward(replace(ROWS, best=best))
    backend.forward(replace(ROWS, logits=int32([])))


# --- what it reads ---


def test_distinct_experts_are_read_once_and_no_others(healthy: Checkpoint) -> None:
    cpu = CpuBackend(healthy)
    cpu.allocate(0, 10)
    cpu.allocate(1, 10)
    answer = cpu.forward(joined(run_of([5, 77, 200, 5]), chain_of([8, 9], 0, [4, 7], 1)))
    for layer in range(2):
        assert set(np.flatnonzero(answer.read[layer])) == set(answer.experts[:, layer].ravel())
    sizes = cpu.footprint
    per_expert = sizes.expert_msb + sizes.expert_lsb
    total = answer.traffic.fast_bytes + answer.traffic.slow_bytes
    assert total == sizes.dense + int(answer.read.sum()) * per_expert


@pytest.mark.parametrize("draft", [False, True], ids=["target", "draft"])
def test_other_records_are_not_even_touched(healthy: Checkpoint, draft: bool) -> None:
    """A pass in a process where touching their pages is fatal: unused experts, and LSB planes for a draft."""
    script = """
import ctypes, os, sys
from pathlib import Path
import numpy as np
from backend.passes import run_of
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import DraftQuality
from elmoe.checkpoint.folder import Checkpoint
checkpoint = Checkpoint.open(Path(sys.argv[1]))
draft = DraftQuality() if sys.argv[2] == "True" else None
rows = run_of([5, 77, 200])
backend = CpuBackend(checkpoint)
backend.allocate(0, 10)
want = backend.forward(rows, draft=draft)
guarded = 0
for plane in ("msb", "lsb"):
    for layer, expert in np.ndindex(want.read.shape):
        if want.read[layer, expert] and not (draft and plane == "lsb"):
            continue
        extent = checkpoint.expert_extent(plane, layer, expert)
        address = checkpoint.mapped(extent.file).ctypes.data + extent.offset
        guarded += ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(extent.size_bytes), 0) == 0
backend = CpuBackend(checkpoint)
backend.allocate(0, 10)
assert backend.forward(rows, draft=draft).logits.tobytes() == want.logits.tobytes()
print(guarded)
"""
    assert int(python(script, healthy.path, draft)) >= (24 if draft else 10)


def test_weights_live_as_long_as_the_model(healthy: Checkpoint) -> None:
    """The native model views mapped files and vectors that nobody else holds any more."""
    want = passed(healthy)
    model, ropes = build_model(Checkpoint.open(healthy.path))
    for rope, number in ropes.items():
        model.extend_rope(number, rope_block(rope, 0))
    gc.collect()
    model.allocate(0, 10)
    spoil = [np.full(1 << 16, 7, dtype=np.float32) for _ in range(20)]  # where freed vectors would have been
    got = model.forward(*[getattr(ROWS, name) for name in FIELDS], None, (1, 255, 0), 3, 0)
    assert same_bits(got[0], want.logits)
    assert len(spoil) == 20
