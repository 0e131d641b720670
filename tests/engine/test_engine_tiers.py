"""The engine over two tiers: the same texts, budgets kept, drafts that read nothing, faults that end one request."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from backend.family_models import FAMILY_MODELS
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.tiers import LSB, MSB, TierLayout
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.engine import engine as engine_module
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions, largest_pass, within_memory
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Sampling
from elmoe.engine.tiered_pool import CachePolicy, TieredPool
from elmoe.errors import CapacityError
from elmoe.models.footprint import activation_bytes, footprint
from elmoe.trace.replay import Accesses, Policy, replay
from elmoe.trace.schema import PassKind, PassRecord

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [200, 100], [31] * 20, [400, 401, 402]]
SD = Speculation(Mode.SD, 2, 4, 8)
FEW = {"max_batch": 4, "prefill_chunk": 32}
"""Small passes need little memory."""


class Records(list[PassRecord]):
    """A recorder."""

    record = list.append


def opened(folder: Path, kv_tokens: int = 400, pool: float = 0.3, **options: object) -> Engine:
    """An engine whose budget holds the fixed parts and this share of the experts."""
    checkpoint = Checkpoint.open(folder)
    sizes = footprint(checkpoint.shape, checkpoint.program)
    settings = EngineOptions(**(FEW | options))  # type: ignore[arg-type]
    fixed = activation_bytes(checkpoint.shape, checkpoint.program, *largest_pass(settings)) + sizes.dense
    least = TierLayout.of(sizes).least_bytes(sizes)
    experts = max(int(pool * (sizes.experts_msb + sizes.experts_lsb)), least)
    budget = fixed + kv_tokens * sizes.kv_per_token + experts
    assert budget < sizes.total, "all of it would fit"
    return Engine.open(folder, EngineOptions(fast_bytes=budget, **(FEW | options)))  # type: ignore[arg-type]


def texts(engine: Engine, tokens: int = 24) -> list[list[int]]:
    outputs = engine.generate(PROMPTS, Generation(tokens, ignore_eos=True))
    return [output.token_ids for output in outputs]


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("tiny")


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[list[int]]:
    return texts(Engine.open(folder, EngineOptions(speculation=Speculation(Mode.AR))))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("policy", CachePolicy)
def test_texts_are_those_of_a_model_in_memory(
    folder: Path, plain: list[list[int]], policy: CachePolicy, mode: Mode
) -> None:
    engine = opened(folder, cache_policy=policy, speculation=Speculation(mode, 2, 4, 8))
    assert isinstance(engine.pool, TieredPool)
    assert texts(engine) == plain
    assert engine.stats.passes[PassKind.DRAFT].slow_bytes_read == 0
    drafted = engine.stats.acceptance.verify_steps > 0
    assert drafted if mode is Mode.SD and policy is not CachePolicy.NONE else True
    assert not drafted or policy is not CachePolicy.NONE


def test_plain_selection_writes_the_same(folder: Path, plain: list[list[int]]) -> None:
    engine = opened(folder, speculation=Speculation(Mode.SD, 2, 4, 8, routing_aware=False))
    assert texts(engine) == plain


def test_sampled_texts_do_not_depend_on_where_experts_are(folder: Path) -> None:
    generation = Generation(24, ignore_eos=True, sampling=Sampling(temperature=0.9, top_p=0.9, seed=11))
    whole = Engine.open(folder, EngineOptions(speculation=Speculation(Mode.AR))).generate(PROMPTS, generation)
    some = opened(folder, speculation=SD).generate(PROMPTS, generation)
    assert [output.token_ids for output in some] == [output.token_ids for output in whole]


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_family(family_checkpoints: dict[str, Checkpoint], name: str) -> None:
    checkpoint = family_checkpoints[name]
    prompts = [[1, 2, 3, 4, 5, 6], [9, 8, 7]]
    generation = Generation(16, ignore_eos=True)
    want = Engine(CpuBackend(checkpoint), options=EngineOptions(speculation=Speculation(Mode.AR))).generate(
        prompts, generation
    )
    sizes = footprint(checkpoint.shape, checkpoint.program)
    options = EngineOptions(speculation=SD, max_batch=2, prefill_chunk=16)
    layout = TierLayout.of(sizes)
    fixed = sizes.dense + activation_bytes(checkpoint.shape, checkpoint.program, *largest_pass(options))
    # These models are so small that a whole one may be less than an arena: the backend is given one all the same.
    budget = fixed + 400 * sizes.kv_per_token + layout.least_bytes(sizes) + layout.segment_bytes
    backend = CpuBackend(Checkpoint.open(checkpoint.path), budget - fixed)
    engine = Engine(backend, options=replace(options, fast_bytes=budget))
    found = engine.generate(prompts, generation)
    assert [each.token_ids for each in found] == [each.token_ids for each in want]
    assert engine.stats.passes[PassKind.DRAFT].slow_bytes_read == 0
    assert engine.stats.acceptance.verify_steps > 0


# --- what stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "replayed"), [(CachePolicy.LRU, Policy.LRU), (CachePolicy.LFU, Policy.LFU)])
def test_hits_are_those_of_the_replay(folder: Path, policy: CachePolicy, replayed: Policy) -> None:
    engine = opened(folder, cache_policy=policy, speculation=Speculation(Mode.AR), max_batch=2)
    assert isinstance(engine.pool, TieredPool)
    assert engine.backend.tiers is not None
    engine.recorder = records = Records()
    engine.generate(PROMPTS[:2], Generation(40, ignore_eos=True))
    reads = np.zeros((len(records), 8, 32), dtype=np.bool_)
    for index, record in enumerate(records):
        for layer in range(8):
            reads[index, layer, record.experts[:, layer]] = True
    capacity = int(engine.pool.quotas[MSB, 0])
    assert (engine.pool.quotas == capacity).all()
    assert 4 <= capacity < 20
    want, counters = replay(Accesses.of(reads), capacity, replayed), engine.backend.tiers.counters()
    assert counters.msb_hits == counters.lsb_hits == want.hits.sum()
    assert counters.msb_misses == want.misses.sum()


def test_speculation_moves_the_arena_towards_msb_records(folder: Path) -> None:
    shares = []
    for mode in (Mode.AR, Mode.SD):
        engine = opened(folder, speculation=Speculation(mode, 2, 4, 8))
        texts(engine, 200)  # several reviews: how many passes they take depends on what reading costs
        assert isinstance(engine.pool, TieredPool)
        msb, lsb = engine.pool.quotas.sum(axis=1)
        assert engine.backend.tiers is not None
        assert engine.backend.tiers.layout.segments_for(int(msb), int(lsb)) <= engine.pool.size
        assert (engine.pool.quotas[MSB] >= 4).all()
        shares.append(msb / (msb + lsb))
    assert shares[1] > shares[0]


def test_the_pool_shrinks_while_contexts_grow_and_comes_back(folder: Path) -> None:
    engine = opened(folder, kv_tokens=2000, speculation=Speculation(Mode.AR))
    assert isinstance(engine.pool, TieredPool)
    whole = engine.pool.size
    request = engine.submit([7] * 1500, Generation(4, ignore_eos=True))
    sizes = []
    while request.finish_reason is None:
        engine.step()
        sizes.append(engine.pool.size)
    assert all(later <= earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] < whole
    engine.step()
    assert engine.pool.size == whole


def test_whole_experts_stay_in_plain_decoding(folder: Path) -> None:
    engine = opened(folder, speculation=Speculation(Mode.AR), cache_policy=CachePolicy.LRU)
    texts(engine, 8)
    assert engine.backend.tiers is not None
    kept = engine.backend.tiers.kept()
    assert (kept[MSB] == kept[LSB]).all()


# --- budgets --------------------------------------------------------------------------------------------------------


def test_a_budget_that_holds_everything_maps_the_weights(folder: Path) -> None:
    sizes = footprint(Checkpoint.open(folder).shape, Checkpoint.open(folder).program)
    assert Engine.open(folder, EngineOptions(fast_bytes=2 * sizes.total)).backend.tiers is None
    assert Engine.open(folder).backend.tiers is None
    assert Engine.open(folder, EngineOptions(pool_fraction=0.2)).backend.tiers is None


def test_without_a_budget_what_is_free_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(folder)
    total = footprint(checkpoint.shape, checkpoint.program).total
    monkeypatch.setattr(engine_module, "free_bytes", lambda: total - 1)
    options, expert_bytes = within_memory(EngineOptions(**FEW), checkpoint)
    assert options.fast_bytes == total - 1
    assert expert_bytes is not None
    assert 0 < expert_bytes < total
    monkeypatch.setattr(engine_module, "free_bytes", lambda: total)
    assert within_memory(EngineOptions(), checkpoint) == (EngineOptions(), None)


def test_too_small_a_budget_is_refused_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "open_backend", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(CapacityError, match=r"3,000,000 bytes .+ too few: dense weights take .+, activations .+; give"):
        Engine.open(folder, EngineOptions(fast_bytes=3_000_000))


def test_a_request_that_cannot_fit_is_refused_with_the_numbers(folder: Path) -> None:
    engine = opened(folder, kv_tokens=100, pool=0.0)
    with pytest.raises(CapacityError, match=r"need [\d,]+ bytes of fast memory .+ the budget is [\d,]+"):
        engine.submit([1] * 900, Generation(1000))
    assert 0 < engine.room(20) < 1000


PROMISE = """
import sys
from dataclasses import replace
from pathlib import Path
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))

options = EngineOptions(speculation=Speculation(Mode.SD, 2, 4, 8), max_batch=4, prefill_chunk=64)
kept, seen = [], []
for budget in (None, None, int(sys.argv[1])):  # libraries at first, tokenizer and tables each time: no part of a budget
    kept.append(Engine.open("tiny", replace(options, fast_bytes=budget)))
    if budget:
        kept[-1].generate([[5] * 300, [6] * 200, [7], [8] * 40], Generation(64, ignore_eos=True))
    else:
        kept[-1].encode("Hello")
    seen.append(anonymous())
print(seen[2] - seen[1] - (seen[1] - seen[0]))
"""


def test_memory_stays_below_the_budget(folder: Path) -> None:
    for budget in (14_000_000, 22_000_000):
        run = subprocess.run([sys.executable, "-c", PROMISE, str(budget)], capture_output=True, text=True, check=True)
        grown = int(run.stdout)
        assert 0.4 * budget < grown < budget


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.AR, Mode.SD])
def test_a_damaged_expert_ends_the_requests_that_need_it_and_no_others(
    tmp_path: Path, folder: Path, plain: list[list[int]], mode: Mode
) -> None:
    copy = tmp_path / "tiny.elmoe"
    shutil.copytree(folder, copy)
    engine = Engine.open(copy, EngineOptions(speculation=Speculation(Mode.AR), **FEW))  # type: ignore[arg-type]
    engine.recorder = records = Records()
    texts(engine)
    used = {number: set[tuple[int, int]]() for number in range(len(PROMPTS))}
    for record in records:
        for row, number in enumerate(record.sequences.tolist()):
            used[number] |= {(layer, int(e)) for layer in range(8) for e in record.experts[row, layer]}
    alone = {n: used[n] - set().union(*(used[m] for m in used if m != n)) for n in used}
    victim = max(alone, key=lambda n: len(alone[n]))
    layer, expert = min(alone[victim])
    extent = Checkpoint.open(copy).expert_extent("lsb", layer, expert)
    with (copy / extent.file).open("r+b") as file:
        file.seek(extent.offset)
        file.write(bytes(128))
    engine = opened(copy, speculation=Speculation(mode, 1, 3, 3))
    outputs = engine.generate(PROMPTS, Generation(24, ignore_eos=True))
    failed = outputs[victim]
    assert failed.finish_reason == "error"
    assert failed.error is not None
    assert f"LSB record of expert {expert} in MoE block {layer} is damaged" in failed.error
    assert failed.token_ids == plain[victim][: len(failed.token_ids)]
    if mode is Mode.AR:
        assert all(output.error is None for n, output in enumerate(outputs) if n != victim)
    for output, want in zip(outputs, plain, strict=True):
        assert output.error is not None or output.token_ids == want
    assert not engine.running
