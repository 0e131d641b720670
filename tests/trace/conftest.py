"""Traces of a model with 3 layers, 2 of them MoE, 5 experts, 2 per token: odd sizes on purpose."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from elmoe.models.shape import ModelShape
from elmoe.trace.parquet import TraceWriter
from elmoe.trace.schema import PassKind, PassRecord

SETTINGS = {"mode": "sd", "width": 2, "pool_fraction": 0.5}

MakeRecord = Callable[..., PassRecord]
WriteTrace = Callable[[Iterable[PassRecord]], Path]


@pytest.fixture
def shape() -> ModelShape:
    return ModelShape(
        family="qwen3_moe",
        layers=3,
        moe_layers=(0, 2),
        hidden=32,
        heads=1,
        kv_heads=1,
        head_dim=32,
        experts=5,
        experts_per_tok=2,
        expert_hidden=32,
        dense_hidden=32,
        vocab=100,
        max_context=64,
        tied_head=True,
    )


@pytest.fixture
def make_record(shape: ModelShape) -> MakeRecord:
    rng = np.random.default_rng(7)
    layers, experts = len(shape.moe_layers), shape.experts

    def make(step: int = 0, kind: PassKind = PassKind.AR, rows: int = 3) -> PassRecord:
        return PassRecord(
            step=step,
            kind=kind,
            depth=int(rng.integers(4)) if kind is PassKind.DRAFT else 0,
            sequences=rng.integers(0, 2**31, rows, dtype=np.int32),
            positions=rng.integers(0, 2**31, rows, dtype=np.int32),
            tokens=rng.integers(0, 2**31, rows, dtype=np.int32),
            kept=(rng.random(rows) < 0.5) & (kind is not PassKind.DRAFT),
            experts=rng.integers(0, experts, (rows, layers, shape.experts_per_tok), dtype=np.int16),
            pool=rng.random((layers, experts)) < 0.5,
            distinct_experts=rng.integers(0, experts, layers, dtype=np.int32),
            fast_bytes=int(rng.integers(2**62)),
            slow_bytes=int(rng.integers(2**62)),
            kv_bytes=int(rng.integers(2**62)),
            seconds=float(rng.random()),
        )

    return make


@pytest.fixture
def write_trace(tmp_path: Path, shape: ModelShape) -> WriteTrace:
    def write(records: Iterable[PassRecord]) -> Path:
        path = tmp_path / "t.parquet"
        with TraceWriter(path, shape, SETTINGS, "a test") as writer:
            for record in records:
                writer.record(record)
        return path

    return write


@pytest.fixture
def full_disk_at_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delayed allocation: the disk turns out to be full when the data are forced out."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
