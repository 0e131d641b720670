"""What `elmoe elasticity`, `locality` and `reproduce` measure on a model: plain rows, the same from all three.

Everything is counted, nothing timed, and decoding is greedy: the same model and prompts give the same rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.cli import options as opt
from elmoe.cli.prompts import Given, as_asked
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.elasticity import Agreement, Setting, full_grid, measure
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.prompt import Prompt
from elmoe.engine.request import Generation
from elmoe.quant.bitnested import Treatment
from elmoe.sim import locality
from elmoe.trace.parquet import Trace, TraceWriter, read_trace
from elmoe.trace.replay import Policy, miss_curve, regrouped, request_streams
from elmoe.trace.schema import PassKind, RunStats

PLAIN = Speculation(mode=Mode.AR)
ELASTIC = Speculation(mode=Mode.SD, width=2, depth=4, verify=8)
"""The tree of the embedded model's tables (docs/speculation.md)."""
BATCHES = (1, 2, 4, 8, 16)
EIGHTHS = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Elasticity:
    """Agreement of drafts and target."""

    cells: list[Agreement]
    sequences: int


class DraftMeter:
    """Measures drafts of one model; weights that were decoded once serve all prompts.

    Both backends compute the same bits. The C++ one is fast and has LSB-augmented drafts only, the reference the rest.
    """

    def __init__(self, model: str) -> None:
        self.engine = opt.open_engine(model, EngineOptions(speculation=PLAIN))
        self._reference = opt.open_engine(model, EngineOptions(backend="reference", speculation=PLAIN)).backend

    def measure(
        self, given: Sequence[Given], max_tokens: int, chat: bool | None = None, progress: Progress | None = None
    ) -> Elasticity:
        """The full grid over the target's own greedy answers to the prompts."""
        asked = as_asked(self.engine, given, chat)
        outputs = self.engine.generate(asked, Generation(max_tokens=max_tokens))
        encoded = [self.engine.encode(prompt) for prompt in asked]
        sequences = [(ids + output.token_ids, len(ids)) for ids, output in zip(encoded, outputs, strict=True)]
        grid = full_grid()
        fast = [setting for setting in grid if setting.treatment is Treatment.AUGMENT]
        slow = [setting for setting in grid if setting.treatment is not Treatment.AUGMENT]
        found: dict[Setting, Agreement] = {}
        for backend, part, done in ((self.engine.backend, fast, 0), (self._reference, slow, len(sequences))):
            update = _shifted(progress, done, 2 * len(sequences))
            found |= {cell.setting: cell for cell in measure(backend, sequences, part, update)}
        return Elasticity([found[setting] for setting in grid], len(sequences))


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def elasticity_row(cell: Agreement) -> dict[str, Any]:
    """One cell of the grid, for JSON."""
    setting = cell.setting
    return {
        "bits": setting.bits,
        "pool_fraction": setting.pool_fraction,
        "treatment": setting.treatment.value if setting.bits < 8 else "none",
        "pool": setting.pool.value,
        "agreement": cell.agreement,
        "overlap": cell.overlap,
        "positions": cell.positions,
    }


def measure_locality(
    model: str, given: Sequence[Given], max_tokens: int, chat: bool | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Which experts decoding reads: distinct ones by pass, inside and across requests, and misses of caches.

    `activation`: AR and Elastic-SD at several batches. `unique` and `misses`: of the decoded tokens of the AR run. More
    prompts than the largest batch are welcome; fewer leave the larger batches out.
    """
    batches = [batch for batch in BATCHES if batch <= len(given)]
    runs = [(mode, batch) for batch in batches for mode in (PLAIN, ELASTIC)]
    activation: list[dict[str, Any]] = []
    recorded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (speculation, batch) in enumerate(runs):
            trace = _recorded(model, given, max_tokens, chat, speculation, batch, Path(folder) / f"{number}.parquet")
            activation.append({"mode": speculation.mode.value, "batch": batch} | _activation(trace))
            if (speculation, batch) == (PLAIN, batches[-1]):
                recorded = _reuse(trace, batches)
            if progress is not None:
                progress(number + 1, len(runs))
    return recorded | {"activation": activation}


def _recorded(
    model: str,
    given: Sequence[Given],
    max_tokens: int,
    chat: bool | None,
    speculation: Speculation,
    batch: int,
    path: Path,
) -> Trace:
    """The prompts decoded and traced."""
    engine = opt.open_engine(model, EngineOptions(max_batch=batch, speculation=speculation))
    asked: list[Prompt] = as_asked(engine, given, chat)
    return record_trace(engine, asked, Generation(max_tokens=max_tokens), path, Path(model).name)


def record_trace(engine: Engine, asked: Sequence[Prompt], generation: Generation, path: Path, source: str) -> Trace:
    """Decode the prompts with a recorder of their own."""
    engine.stats = RunStats()
    with TraceWriter(path, engine.backend.shape, engine.settings(), source=source) as writer:
        engine.recorder = writer
        engine.generate(list(asked), generation)
        engine.recorder = None
    return read_trace(path)


def _activation(trace: Trace) -> dict[str, float]:
    """Distinct experts of target passes, mean over layers."""
    passes = experts = sequences = kept = 0
    for record in trace.passes():
        if record.kind in (PassKind.AR, PassKind.VERIFY):
            passes += 1
            experts += int(record.distinct_experts.sum())
            sequences += len(np.unique(record.sequences))
            kept += int(np.count_nonzero(record.kept))
    layers = len(trace.shape.moe_layers)
    return {
        "passes": passes,
        "sequences_per_pass": sequences / passes,
        "tokens_per_pass": kept / passes,
        "experts_per_pass": experts / passes / layers,
        "experts_per_token": experts / kept / layers,
    }


def _reuse(trace: Trace, batches: Sequence[int]) -> dict[str, Any]:
    """What the decoded tokens of a trace say about reuse and caches. Means over layers."""
    experts, longest = trace.shape.experts, BATCHES[-1]
    found = locality.measure(trace, longest=longest, policies=())
    unique = [
        {"where": where, "tokens": number, "experts_per_layer": float(value)}
        for where, curve in (("inside", found.unique_inside), ("across", found.unique_across))
        for number, value in enumerate(curve.mean(axis=0), start=1)
    ]
    streams = list(request_streams(trace).values())
    capacities = np.arange(1, EIGHTHS + 1) * experts // EIGHTHS
    misses = []
    for batch in batches:
        accesses = regrouped(streams, experts, batch)
        for policy in Policy:
            rates = miss_curve(accesses, policy, capacities).miss_rate
            misses += [
                {"batch": batch, "policy": policy.value, "capacity_share": eighth / EIGHTHS, "miss_rate": float(rate)}
                for eighth, rate in enumerate(rates, start=1)
            ]
    return {
        "experts": experts,
        "experts_per_token": trace.shape.experts_per_tok,
        "layers": len(trace.shape.moe_layers),
        "tokens": found.tokens,
        "popularity_exponent": float(found.exponent.mean()),
        "inside_reuse": float(found.reuse.mean()),
        "unique": unique,
        "misses": misses,
    }
