"""A demo report without an engine: two answers, a pool of two layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from elmoe.models.shape import ModelShape
from elmoe.report.page import Answer, AnswerPiece, DemoReport
from elmoe.sim.own_trace import OwnTrace
from elmoe.trace.pool_activity import PoolActivity
from elmoe.trace.schema import Acceptance, PassKind, PassTotals, RunStats

SHAPE = ModelShape(
    family="qwen3_moe",
    layers=3,
    moe_layers=(0, 2),
    hidden=32,
    heads=1,
    kv_heads=1,
    head_dim=32,
    experts=4,
    experts_per_tok=2,
    expert_hidden=32,
    dense_hidden=32,
    vocab=100,
    max_context=64,
    tied_head=True,
)


def stats(acceptance: Acceptance, **passes: PassTotals) -> dict[str, Any]:
    made = RunStats(acceptance=acceptance, decode_seconds=2.0)
    made.passes |= {PassKind(name): totals for name, totals in passes.items()}
    return made.as_dict()


def machine_row(system: str, scheme: str, mode: str, speedup: float, bottleneck: str) -> dict[str, Any]:
    return {
        "system": system,
        "scheme": scheme,
        "mode": mode,
        "latency_ms_per_token": 0.01 / speedup,
        "speedup_vs_xpu": speedup,
        "energy_mj_per_token": {"total": 0.002 / speedup},
        "bottleneck": bottleneck,
    }


@pytest.fixture
def demo() -> DemoReport:
    each = Acceptance(verify_steps=2, drafted=16, levels=8, tested=6, accepted=5, emitted=7)
    total = Acceptance(verify_steps=4, drafted=32, levels=16, tested=12, accepted=10, emitted=14)
    pieces = (AnswerPiece("Hello", False), AnswerPiece(" wide", True), AnswerPiece("", False))
    return DemoReport(
        model="tiny",
        shape=SHAPE,
        backend="reference",
        machine="two cores",
        settings={"mode": "sd", "draft": {"bits": 4}, "temperature": 0.0},
        lossless=True,
        ar_stats=stats(Acceptance(ar_steps=14, emitted=14), ar=PassTotals(7, 14, 30, 1400, 2_800_000, 70, 1.5)),
        sd_stats=stats(
            total,
            draft=PassTotals(8, 20, 40, 700, 0, 20, 1.0),
            verify=PassTotals(2, 36, 16, 1400, 1_400_000, 30, 0.5),
        ),
        answers=(
            Answer("Say hello", pieces, "stop", each.as_dict()),
            Answer("Again", pieces, "length", each.as_dict()),
        ),
        pool=PoolActivity(
            hotness=np.array([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]),
            residency=np.array([[0.0, 1.0, 0.75, 0.25], [1.0, 0.0, 0.5, 0.5]]),
            hit_share=0.625,
        ),
        simulated=OwnTrace(
            rows=[machine_row("xpu", "none", "ar", 1.0, "ext"), machine_row("elmoe-3d", "elastic", "sd", 4.0, "link")],
            batch=2,
            context=50,
            hb_bytes=1_500_000,
        ),
    )
