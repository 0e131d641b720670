"""Models larger than their memory: streaming, caching and Elastic-SD over RAM and disk, in turn, and the disk itself.

    python bench/tiers.py MODEL [--shares 4,8] [--batches 1,16] [--acceptance 0.9] [--prompts FILE_OR_FOLDER] [--name N]
    python bench/tiers.py --markdown        only rewrite the tables of docs/tiers.md from the results

MODEL gets a budget of 1/SHARE of its bytes. Arms, each with an engine and an arena of its own, take turns; the first
round fills caches and is not counted; medians over the others:

    stream    plain decoding, nothing stays
    ar        plain decoding, what is worth most stays
    lru       plain decoding, the most recently read stay
    sd D      Elastic-SD, chains of D tokens
    sd D plain  the same with plain selection of what is verified
    auto      the controller

With ``--acceptance`` (models of `skewed_checkpoint.py`, whose own drafts are always right) acceptance is **emulated**:
every pass is computed in full, but a drafted token is replaced by a wrong one with the complement of that chance, and
the draft is told the chance; ``--acceptance paper`` takes the rates of the paper's table 3 (4 GB) by model and batch.
Without, tokens are the model's own and must be those of plain decoding. Before each arm
of each round the disk's own bandwidth is probed with requests as large as a record. With --traces FOLDER the last round
of ``ar`` and ``sd`` is recorded for `tiers_validation.py`. Writes bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from cgroup import process_read_bytes
from elasticity import mixed_prompts
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import BestLogits, Bool, DraftQuality, ForwardResult, Rows
from elmoe.backend.tiers import MSB, Keep, TierCounters, TierLayout
from elmoe.bench.disk import read_rate
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import MSB_FILE
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import TOKENIZER_FILE, Tokenizer
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions, within_memory
from elmoe.engine.prompt import tokens_of
from elmoe.engine.request import Generation
from elmoe.engine.tiered_pool import CachePolicy, TieredPool
from elmoe.models.footprint import Footprint, footprint
from elmoe.sim.table3 import quoted_cells
from elmoe.trace.parquet import TraceWriter
from elmoe.trace.schema import PassKind, RunStats
from emulation import BackendInside
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result

CONTEXT = 16
PREFILL_CHUNK = 256
PROBE_DEPTH, PROBE_SECONDS = 8, 0.4
STREAM, AR, LRU, AUTO = "stream", "ar", "lru", "auto"
PAPER = "paper"


class SpoiledDrafts(BackendInside):
    """A backend whose drafts are right with a given chance, and say so."""

    def forward(
        self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None, keep: Keep | None = None
    ) -> ForwardResult:
        """Compute the pass; of a draft, exchange tokens by a hash of sequence and position: the same in every arm."""
        result = self.backend.forward(rows, pool, draft, keep)
        if draft is None or result.best is None or not len(rows.logits):
            return result
        tokens = result.best.tokens.copy()
        mixed = rows.sequences.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + rows.positions.astype(np.uint64)
        mixed = (mixed ^ mixed >> np.uint64(31)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0x94D049BB133111EB)
        wrong = (mixed >> np.uint64(40))[rows.logits] >= np.uint64(int(self.chance * 2**24))
        tokens[wrong] = (tokens[wrong] + 1) % self.shape.vocab
        logits = np.full(
            tokens.shape, log(max((1 - self.chance) / max(tokens.shape[1] - 1, 1), 1e-9)), dtype=np.float32
        )
        logits[:, 0] = log(self.chance)
        best = BestLogits(tokens, logits, np.zeros(len(tokens), dtype=np.float32))
        return replace(result, best=best)


@dataclass(frozen=True)
class Case:
    """What is run."""

    folder: Path
    fast_bytes: int
    batch: int
    tokens: int
    rounds: int
    depth: int
    acceptance: float | None
    prompts: list[list[int]]
    traces: Path | None


class Arm:
    """An engine of its own, and what its rounds gave."""

    def __init__(self, name: str, case: Case, policy: CachePolicy, speculation: Speculation) -> None:
        checkpoint = Checkpoint.open(case.folder)
        options = EngineOptions(
            fast_bytes=case.fast_bytes,
            cache_policy=policy,
            max_batch=case.batch,
            prefill_chunk=PREFILL_CHUNK,
            speculation=speculation,
        )
        options, expert_bytes = within_memory(options, checkpoint)
        if expert_bytes is None:
            raise SystemExit(f"error: {case.fast_bytes:,} bytes hold all of {case.folder.name}; give a larger --shares")
        backend = CpuBackend(checkpoint, expert_bytes)
        emulated = backend if case.acceptance is None else SpoiledDrafts(backend, case.acceptance)
        self.name, self.case, self.backend = name, case, backend
        self.engine = Engine(emulated, options=options)
        self.rounds: list[dict[str, Any]] = []
        self.texts: list[list[int]] = []

    def run(self, trace: Path | None = None) -> dict[str, Any]:
        """One round: all prompts of the batch, `tokens` tokens each."""
        assert self.backend.tiers is not None
        engine = self.engine
        engine.stats = RunStats()
        before, kernel = self.backend.tiers.counters(), process_read_bytes(os.getpid())
        with ExitStack() as stack:
            engine.recorder = None
            if trace is not None:
                engine.recorder = stack.enter_context(
                    TraceWriter(trace, self.backend.shape, engine.settings(), source=self.case.folder.name)
                )
            outputs = engine.generate(self.case.prompts, Generation(self.case.tokens, ignore_eos=True))
            engine.recorder = None
        self.texts = [output.token_ids for output in outputs]
        return summary(engine, before, self.backend.tiers.counters(), process_read_bytes(os.getpid()) - kernel)


def summary(engine: Engine, before: TierCounters, after: TierCounters, kernel_bytes: int) -> dict[str, Any]:
    """What one round gave and read."""
    stats, totals = engine.stats.as_dict(), engine.stats
    counted = {name: value - getattr(before, name) for name, value in asdict(after).items()}
    target = [totals.passes[kind] for kind in (PassKind.AR, PassKind.VERIFY)]
    needed = sum(counted[f"{plane}_{kind}"] for plane in ("msb", "lsb") for kind in ("hits", "misses"))
    assert isinstance(engine.pool, TieredPool)
    return {
        "decode_tok_s": stats["decode_tok_s"],
        "slow_bytes_per_token": stats["slow_bytes_read"] / stats["emitted"],
        "slow_gb_per_s": stats["slow_bytes_read"] / totals.decode_seconds / 1e9,
        "draft_slow_bytes": totals.passes[PassKind.DRAFT].slow_bytes_read,
        "draft_seconds": totals.passes[PassKind.DRAFT].seconds,
        "target_seconds": sum(each.seconds for each in target),
        "target_passes": sum(each.passes for each in target),
        "rows_per_target_pass": sum(each.rows for each in target) / max(1, sum(each.passes for each in target)),
        "level_acceptance": stats["level_acceptance"],
        "acceptance_rate": stats["acceptance_rate"],
        "tokens_per_step": stats["emitted"] / max(1, stats["ar_steps"] + stats["verify_steps"]),
        "steps_by_depth": stats["steps_by_depth"],
        "hit_rate": (counted["msb_hits"] + counted["lsb_hits"]) / max(1, needed),
        "kernel_over_counted": kernel_bytes / max(1, counted["bytes_read"]),
        "quotas": engine.pool.quotas.sum(axis=1).tolist(),
        "counters": counted,
    }


def arms_of(case: Case, names: Sequence[str]) -> list[Arm]:
    """In the order of the module's docstring."""
    plain, chain = Speculation(Mode.AR), Speculation(Mode.SD, 1, case.depth, case.depth)
    known = {
        STREAM: (CachePolicy.NONE, plain),
        AR: (CachePolicy.BENEFIT, plain),
        LRU: (CachePolicy.LRU, plain),
        f"sd {case.depth}": (CachePolicy.BENEFIT, chain),
        f"sd {case.depth} plain": (CachePolicy.BENEFIT, replace(chain, routing_aware=False)),
        AUTO: (CachePolicy.BENEFIT, replace(chain, mode=Mode.AUTO)),
    }
    return [Arm(name, case, *known[name]) for name in known if not names or name in names]


def measure(case: Case, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per arm: medians over the counted rounds, ratios to `ar` of the same round."""
    arms = arms_of(case, names)
    record = TierLayout.of(footprint_of(case.folder)).strides[MSB]
    probes: list[float] = []
    for turn in range(case.rounds + 1):
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            probe = read_rate(case.folder / MSB_FILE, record, PROBE_DEPTH, PROBE_SECONDS, turn)
            last = turn == case.rounds and case.traces is not None and arm.name.split()[0] in (AR, "sd")
            trace = trace_path(case, arm.name) if last else None
            row = arm.run(trace) | {"probe_gb_per_s": probe, "trace": _shown(trace)}
            print(f"  {turn} {arm.name:12} {progress(row)}", flush=True)
            probes.append(probe)
            if turn:
                arm.rounds.append(row)
    plain = next((arm for arm in arms if arm.name == AR), arms[0])
    return [arm_row(case, arm, plain) for arm in arms]


def progress(row: dict[str, Any]) -> str:
    """For the screen."""
    return (
        f"{row['decode_tok_s']:7.2f} tok/s, {row['slow_gb_per_s']:.2f} of {row['probe_gb_per_s']:.2f} GB/s, hits "
        f"{row['hit_rate']:.2f}, {row['tokens_per_step']:.2f} tokens/step, {row['quotas']}, {row['steps_by_depth']}"
    )


def footprint_of(folder: Path) -> Footprint:
    """Of a model on disk."""
    checkpoint = Checkpoint.open(folder)
    return footprint(checkpoint.shape, checkpoint.program)


def trace_path(case: Case, arm: str) -> Path:
    """Where a round is recorded."""
    assert case.traces is not None
    case.traces.mkdir(parents=True, exist_ok=True)
    return case.traces / f"{case.folder.stem}-{case.fast_bytes >> 20}-b{case.batch}-{arm.replace(' ', '')}.parquet"


def arm_row(case: Case, arm: Arm, plain: Arm) -> dict[str, Any]:
    """Medians of numbers, the last round's of the rest."""
    last = arm.rounds[-1]
    medians = {
        name: statistics.median(each[name] for each in arm.rounds)
        for name, value in last.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    chain = arm.engine.speculation
    return (
        last
        | medians
        | {
            "model": case.folder.stem,
            "arm": arm.name,
            "batch": case.batch,
            "fast_bytes": case.fast_bytes,
            "mode": "sd" if arm.name.startswith("sd") else arm.name,
            "width": chain.width,
            "depth": chain.depth,
            "verify": chain.verify,
            "policy": arm.engine.options.cache_policy.value,
            "emulated_acceptance": case.acceptance,
            "lossless": case.acceptance is not None or arm.texts == plain.texts,
            "ratio_to_ar": statistics.median(
                a["decode_tok_s"] / b["decode_tok_s"] for a, b in zip(arm.rounds, plain.rounds, strict=True)
            ),
            "of_probe": statistics.median(each["slow_gb_per_s"] / each["probe_gb_per_s"] for each in arm.rounds),
        }
    )


def acceptance_of(asked: str | None, model: str, batch: int, depth: int) -> float | None:
    """Chance of a drafted token. The paper's rate is accepted tokens per level; the chance is that with which chains of
    this depth come to it.
    """
    if asked != PAPER:
        return None if asked is None else float(asked)
    rates = {
        (cell.model, cell.batch): cell.acceptance_rate
        for cell in quoted_cells()
        if cell.scheme == "elastic" and cell.hb_gb == 4
    }
    if (model, batch) not in rates:
        raise SystemExit(f"error: table 3 has no acceptance rate of {model} at batch {batch}; give --acceptance CHANCE")
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        reached = sum(middle**level for level in range(1, depth + 1)) / depth
        low, high = (middle, high) if reached < rates[model, batch] else (low, middle)
    return round(low, 4)


def prompts_of(folder: Path, batch: int, given: Path | None) -> list[list[int]]:
    """A stretch of the cycle of tokens per request, or given prompts as the model's chats."""
    if given is None:
        vocab = Checkpoint.open(folder).shape.vocab
        first = np.random.default_rng(batch).integers(vocab, size=batch)
        return [((start + np.arange(CONTEXT)) % vocab).tolist() for start in first]
    if not (folder / TOKENIZER_FILE).is_file():
        raise SystemExit(f"error: {folder.name} has no tokenizer; leave --prompts out")
    tokenizer = Tokenizer.open(folder)
    texts = mixed_prompts(given, batch)
    return [tokens_of([{"role": "user", "content": text}], tokenizer) for text in texts]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line per model, budget, batch and arm."""
    lines: list[list[object]] = []
    for row in rows:
        lines.append(
            [
                f"{row['model']}, 1/{row['share']}, batch {row['batch']}",
                row["arm"],
                f"{row['decode_tok_s']:.1f}" if row["decode_tok_s"] < 100 else f"{row['decode_tok_s']:.0f}",
                f"{row['ratio_to_ar']:.2f}",
                f"{row['tokens_per_step']:.2f}",
                f"{row['hit_rate']:.2f}",
                f"{row['slow_bytes_per_token'] / 1e6:.1f}",
                f"{100 * row['of_probe']:.0f}%",
            ]
        )
    columns = ["model, budget, batch", "arm", "tokens/s", "ratio to ar", "tokens/step", "hits", "MB/token", "of disk"]
    return markdown_table(columns, lines)


def rewrite_tables() -> None:
    """docs/tiers.md from the results."""
    for name in ("tiers", "tiers_tiny"):
        document = json.loads((RESULTS / f"{name}.json").read_text())
        replace_block(ROOT / "docs" / "tiers.md", name, table(document["rows"]))


def _shown(value: Any) -> Any:
    """For JSON that is passed on: paths in this repository from its root, others by name."""
    if isinstance(value, list):
        return [_shown(Path(each)) for each in value]
    if not isinstance(value, Path):
        return value
    whole = value.resolve()
    return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else whole.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="`.elmoe` folders, or `tiny`")
    parser.add_argument("--shares", default="4")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--tokens", type=int, default=24, help="per request and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--acceptance", help="chance of a drafted token, emulated, or `paper`")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--arms", default="", help="only these, by name, separated by commas")
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--name", default="tiers", help="of the file in bench/results")
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    if arguments.markdown:
        rewrite_tables()
        return
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for model in arguments.models:
        folder = resolve(model)
        for share in map(int, arguments.shares.split(",")):
            for batch in map(int, arguments.batches.split(",")):
                case = Case(
                    folder,
                    footprint_of(folder).total // share,
                    batch,
                    arguments.tokens,
                    arguments.rounds,
                    arguments.depth,
                    acceptance_of(arguments.acceptance, folder.stem, batch, arguments.depth),
                    prompts_of(folder, batch, arguments.prompts),
                    arguments.traces,
                )
                print(f"{folder.stem}: {case.fast_bytes:,} bytes, batch {batch}", flush=True)
                rows += [row | {"share": share} for row in measure(case, [n for n in arguments.arms.split(",") if n])]
    path = RESULTS / f"{arguments.name}.json"
    before = json.loads(path.read_text())["rows"] if arguments.append and path.is_file() else []
    settings = {name: _shown(value) for name, value in vars(arguments).items()}
    write_result(
        arguments.name, provenance(settings) | {"rows": before + rows, "seconds": time.perf_counter() - started}
    )
    print(table(rows))


if __name__ == "__main__":
    main()
