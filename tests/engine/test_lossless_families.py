"""Elastic-SD writes the tokens of plain decoding for every family, on both backends; drafts keep to their pool."""

from __future__ import annotations

import numpy as np
import pytest

from backend.family_models import FAMILY_MODELS
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.select import open_backend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation
from elmoe.models.program import Storage

LENGTHS = (40, 3, 17, 1)
"""Beyond every window, and within."""
TOKENS = 40
TREES = [
    Speculation(Mode.SD, 2, 4, 8, DraftQuality(4)),
    Speculation(Mode.SD, 3, 2, 5, DraftQuality(6, experts_per_tok=1)),
    Speculation(Mode.SD, 1, 5, 5, DraftQuality(3)),
]


def texts_of(engine: Engine) -> list[list[int]]:
    """Greedy continuations of a few prompts in one batch."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(1, engine.backend.shape.vocab, length).tolist() for length in LENGTHS]
    requests = [engine.submit(prompt, Generation(TOKENS, ignore_eos=True)) for prompt in prompts]
    while any(request.finish_reason is None for request in requests):
        engine.step()
    return [request.output().token_ids for request in requests]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_greedy_speculation_equals_greedy_plain_decoding(
    family_checkpoints: dict[str, Checkpoint], name: str, backend: str
) -> None:
    opened = open_backend(backend, family_checkpoints[name])
    plain = texts_of(Engine(opened, options=EngineOptions(speculation=Speculation(Mode.AR), max_batch=1)))
    assert len({tuple(text) for text in plain}) == len(LENGTHS), "the prompts matter"
    for tree, fraction in zip(TREES, (0.5, 0.75, 0.0), strict=True):
        engine = Engine(opened, options=EngineOptions(speculation=tree, max_batch=4, pool_fraction=fraction))
        assert texts_of(engine) == plain
        assert engine.stats.acceptance.verify_steps > 0
    assert engine.stats.acceptance.accepted > 0


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_drafts_read_the_fast_tier_alone(family_checkpoints: dict[str, Checkpoint], name: str) -> None:
    """Shared experts and dense layers are part of every draft; MXFP4 experts are read whole."""

    class Records(list):
        record = list.append

    engine = Engine(
        open_backend("cpu", family_checkpoints[name]), options=EngineOptions(speculation=TREES[0], pool_fraction=0.5)
    )
    engine.recorder = records = Records()
    texts_of(engine)
    sizes, program = engine.backend.footprint, engine.backend.checkpoint.program
    block = program.moe_blocks[0]
    if block.expert.gate_up.storage is Storage.MXFP4:
        assert sizes.expert_lsb == 0
    drafts = [record for record in records if record.kind.value == "draft"]
    assert drafts
    for record in drafts:
        distinct = int(record.distinct_experts.sum())
        assert record.slow_bytes == 0
        assert record.fast_bytes == sizes.dense_msb + distinct * sizes.expert_msb
