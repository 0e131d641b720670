"""A row's bits depend on the row alone: not on its batch, its tree, the threads or the instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from digest import digest, digest_of_folder
from processes import python
from twins import open_on

from backend.family_models import FAMILY_MODELS, make_family_model
from backend.passes import chain_of, int32, joined, picked, run_of, same_bits, tree_of
from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import DraftQuality, ForwardResult
from elmoe.checkpoint.folder import Checkpoint
from elmoe.quant.bitnested import Float32

OddModel = Callable[[str], Checkpoint]
TOKENS = np.random.default_rng(0).integers(0, 600, 170).tolist()
OTHER = np.random.default_rng(1).integers(0, 600, 200).tolist()
HALF = np.tile(np.arange(12) % 2 == 0, (2, 1))
"""A pool of every second expert."""
SHARED_DIFFERENTLY = ("glm4_moe_lite", "deepseek_v2", "olmoe", "qwen2_moe", "gpt_oss_mxfp4", "shared_mxfp4")
"""Families whose passes have phases of their own: latents, norms over all heads, shared experts, MXFP4."""
QUALITIES = [None, DraftQuality(), DraftQuality(6, experts_per_tok=2)]


@pytest.fixture(scope="module")
def cpu(odd_model: OddModel, isa: str) -> CpuBackend:
    return open_on(isa, odd_model("middling"))


@pytest.fixture(scope="module", params=QUALITIES, ids=["target", "draft", "draft6"])
def quality(request: pytest.FixtureRequest) -> DraftQuality | None:
    return request.param


@pytest.fixture(scope="module")
def alone(cpu: CpuBackend, quality: DraftQuality | None) -> ForwardResult:
    """After every prefix of TOKENS, one row per pass."""
    cpu.allocate(90, len(TOKENS))
    answers = [cpu.forward(run_of([token], 90, i), HALF, quality) for i, token in enumerate(TOKENS)]
    cpu.release(90)
    logits, experts = (np.concatenate([getattr(a, name) for a in answers]) for name in ("logits", "experts"))
    return replace(answers[0], logits=logits, experts=experts)


@pytest.mark.parametrize("cuts", [[170], [31, 2, 101, 36], [16] * 10 + [10]], ids=str)
def test_prefill_in_any_chunks(
    cpu: CpuBackend, alone: ForwardResult, quality: DraftQuality | None, cuts: list[int]
) -> None:
    cpu.allocate(0, 180)
    first, logits, experts = 0, [], []
    for count in cuts:
        answer = cpu.forward(run_of(TOKENS[first : first + count], 0, first), HALF, quality)
        logits.append(answer.logits)
        experts.append(answer.experts)
        first += count
    assert same_bits(np.concatenate(logits), alone.logits)
    assert same_bits(np.concatenate(experts), alone.experts)


@pytest.mark.parametrize("prefix", [0, 16, 126, 150])
def test_a_tree_beside_others_equals_plain_decoding(
    cpu: CpuBackend, alone: ForwardResult, quality: DraftQuality | None, prefix: int
) -> None:
    """The true continuation is one branch of a tree with wrong ones, in scattered cells; then it is committed."""
    cpu.allocate(0, 240)
    cpu.allocate(1, 100)
    if prefix:
        cpu.forward(run_of(TOKENS[:prefix], 0), HALF, quality)
    cpu.forward(run_of(OTHER[:33], 1))
    true = TOKENS[prefix : prefix + 5]
    tokens = [true[0], 77, true[1], true[2], 78, true[3], 79, true[4]]
    parents, branch = [-1, 0, 0, 2, 2, 3, 3, 5], [0, 2, 3, 5, 7]
    cells = [prefix, *(prefix + 9 * i for i in (7, 1, 5, 2, 8, 3, 4))]
    tree = tree_of(tokens, parents, prefix, cells)
    answer = cpu.forward(joined(chain_of(OTHER[33:36], 33, [40, 33, 99], 1), tree), HALF, quality)
    rows = [3 + node for node in branch]
    assert same_bits(answer.logits[rows], alone.logits[prefix : prefix + 5])
    assert same_bits(answer.experts[rows], alone.experts[prefix : prefix + 5])
    cpu.move(0, int32(cells[node] for node in branch), int32(range(prefix, prefix + 5)))
    after = cpu.forward(run_of(TOKENS[prefix + 5 : prefix + 9], 0, prefix + 5), HALF, quality)
    assert same_bits(after.logits, alone.logits[prefix + 5 : prefix + 9])


@pytest.mark.parametrize("others", [1, 4, 16, 33])
def test_a_batch_changes_no_bit(
    cpu: CpuBackend, alone: ForwardResult, quality: DraftQuality | None, others: int
) -> None:
    for sequence in range(others + 1):
        cpu.allocate(sequence, 100)
        cpu.forward(run_of(OTHER[sequence : 2 * sequence + 5] if sequence else TOKENS[:24], sequence), HALF, quality)
    step = [run_of([OTHER[s]], s, s + 5) for s in range(1, others + 1)]
    step.insert(others // 2, run_of(TOKENS[24:25], 0, 24))
    answer = cpu.forward(joined(*step), HALF, quality)
    assert same_bits(answer.logits[others // 2], alone.logits[24])
    for sequence in range(others + 1):
        cpu.release(sequence)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_best_logits_alone_and_together(cpu: CpuBackend, quality: DraftQuality | None, count: int) -> None:
    cpu.allocate(0, 50)
    whole = cpu.forward(replace(run_of(TOKENS[:40]), best=count), HALF, quality).best
    assert whole is not None
    for row in (0, 17, 39):
        one = cpu.forward(replace(picked(run_of(TOKENS[:40]), [row]), best=count), HALF, quality).best
        assert one is not None
        for name in ("tokens", "logits", "log_total"):
            assert same_bits(getattr(one, name)[0], getattr(whole, name)[row])


@pytest.mark.parametrize("model", ["tiny", "late_moe", "bias", "extreme"])
def test_paths_of_instructions_give_the_same_bits(tiny: Checkpoint, odd_model: OddModel, model: str) -> None:
    """Also in the normaliser, which the reference adds up in another order."""
    checkpoint = tiny if model == "tiny" else odd_model(model)
    assert len({digest(open_on(isa, checkpoint)) for isa in _native.isas()}) == 1


@pytest.mark.parametrize("model", ["tiny", "late_moe", *SHARED_DIFFERENTLY])
def test_threads_change_no_bit(tiny: Checkpoint, odd_model: OddModel, tmp_path: Path, model: str) -> None:
    if model in FAMILY_MODELS:
        folder = make_family_model(tmp_path, FAMILY_MODELS[model]).path
    else:
        folder = tiny.path if model == "tiny" else odd_model(model).path
    want = digest_of_folder(folder, seed=3)
    for threads in (1, 2, 5):
        printed = python("import digest; digest.main()", folder, 3, ELMOE_NUM_THREADS=str(threads))
        assert printed.split() == [want, str(threads)]


def test_logits_have_meaning(cpu: CpuBackend, alone: ForwardResult) -> None:
    """Equal bits of nothing would prove nothing."""
    logits: Float32 = alone.logits
    assert len(np.unique(logits.argmax(axis=1))) > 20
    assert len(np.unique(alone.experts)) == 12
