"""What passes cost on this machine, and when Elastic-SD pays: measured, at emulated acceptance.

    python bench/cost_model.py MODEL [--acceptance 0.5,0.8,0.95] [--batches 1,4,16] [--markdown]

First the cost model: seconds of an AR pass by batch, of a draft pass by rows (all of a token's experts, and a
quarter of them), and of a verify pass by rows. Then tokens/s of the engine in AR, in Elastic-SD and with the
controller (`auto`).

**Acceptance is emulated**: every pass is computed in full, but the tokens that it proposes are replaced by
pseudo-random ones, on which draft and target agree with the given chance. So the time is real and the text is not.
Random tokens share as few experts as tokens can: with real text a verify pass reads fewer. Arms are interleaved,
medians over rounds. Writes bench/results/cost_model.json; with --markdown also the tables of docs/cpu.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import BestLogits, Bool, DraftQuality, ForwardResult, Rows
from elmoe.backend.tiers import Keep
from elmoe.bench.bandwidth import BandwidthProbe
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.trace.schema import RunStats
from emulation import BackendInside
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result

CONTEXT = 32
AR_BATCHES = (1, 2, 4, 8, 16)
DRAFT_ROWS = (1, 2, 4, 8, 16)
VERIFY_ROWS = (2, 3, 5, 9, 17, 33)


class EmulatedAcceptance(BackendInside):
    """A backend whose tokens are replaced: draft and target agree on the next one with a given chance."""

    def forward(
        self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None, keep: Keep | None = None
    ) -> ForwardResult:
        """Compute the pass, then say what is needed to emulate acceptance."""
        result = self.backend.forward(rows, pool, draft, keep)
        if result.best is None or not len(rows.logits):
            return result
        sequences, positions = rows.sequences[rows.logits], rows.positions[rows.logits]
        mixed = (sequences.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + positions.astype(np.uint64)) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        truth = (mixed >> np.uint64(33)) % np.uint64(self.shape.vocab)
        if draft is not None:
            agrees = (mixed * np.uint64(0x94D049BB133111EB) >> np.uint64(40)) < np.uint64(int(self.chance * 2**24))
            truth = np.where(agrees, truth, (truth + np.uint64(7)) % np.uint64(self.shape.vocab))
        count = result.best.tokens.shape[1]
        tokens = ((truth[:, None] + np.arange(count, dtype=np.uint64)) % np.uint64(self.shape.vocab)).astype(np.int32)
        logits = np.tile(-2.0 * np.arange(count, dtype=np.float32), (len(truth), 1))
        best = BestLogits(tokens, logits, np.full(len(truth), 0.2, dtype=np.float32))
        return ForwardResult(result.logits, result.experts, result.read, result.traffic, best)


def pass_rows(backend: CpuBackend, rng: np.random.Generator, sequences: int, each: int) -> Rows:
    """Random tokens: a chain of `each` drafted tokens after the context of each sequence; 1 is plain decoding."""
    count = sequences * each
    level = np.tile(np.arange(each, dtype=np.int32), sequences)
    path = np.where(np.arange(each) <= level[:, None], CONTEXT + np.arange(each), -1).astype(np.int32)
    if each == 1:
        path = np.zeros((count, 0), dtype=np.int32)
    return Rows(
        tokens=rng.integers(backend.shape.vocab, size=count).astype(np.int32),
        sequences=np.repeat(np.arange(sequences, dtype=np.int32), each),
        positions=CONTEXT + level,
        cells=CONTEXT + level,
        prefix=np.full(count, CONTEXT + (each == 1), dtype=np.int32),
        path=path,
        logits=np.arange(count, dtype=np.int32),
        best=1,
    )


def costs(backend: CpuBackend, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of every kind and size of pass."""
    rng = np.random.default_rng(0)
    for sequence in range(max(AR_BATCHES)):
        backend.allocate(sequence, CONTEXT + max(VERIFY_ROWS))
        tokens, positions = rng.integers(backend.shape.vocab, size=CONTEXT), np.arange(CONTEXT, dtype=np.int32)
        own, none = np.full(CONTEXT, sequence, dtype=np.int32), np.zeros(0, dtype=np.int32)
        empty = np.zeros((CONTEXT, 0), dtype=np.int32)
        backend.forward(Rows(tokens.astype(np.int32), own, positions, positions, positions + 1, empty, none))
    few = max(1, backend.shape.experts_per_tok // 4)
    cases: list[tuple[str, int, int, DraftQuality | None]] = [("ar", batch, 1, None) for batch in AR_BATCHES]
    cases += [("draft", rows, 1, DraftQuality()) for rows in DRAFT_ROWS]
    cases += [(f"draft, {few} experts per token", rows, 1, DraftQuality(experts_per_tok=few)) for rows in DRAFT_ROWS]
    cases += [("verify", 1, rows, None) for rows in VERIFY_ROWS]
    seconds: dict[int, list[float]] = {}
    for _ in range(rounds):
        for index, (_, sequences, each, draft) in enumerate(cases):
            for _ in range(3):
                rows = pass_rows(backend, rng, sequences, each)
                started = time.perf_counter()
                backend.forward(rows, None, draft)
                seconds.setdefault(index, []).append(time.perf_counter() - started)
    return [
        {"pass": kind, "rows": sequences * each, "milliseconds": 1e3 * statistics.median(seconds[index])}
        for index, (kind, sequences, each, _) in enumerate(cases)
    ]


def arms(few: int) -> dict[str, Speculation]:
    """What is compared."""
    shallow = {"width": 1, "depth": 2, "verify": 2}
    deep = {"width": 1, "depth": 4, "verify": 4}
    return {
        "ar": Speculation(mode=Mode.AR),
        "sd w1 d2": Speculation(Mode.SD, **shallow),
        f"sd w1 d4, {few} experts": Speculation(Mode.SD, **deep, quality=DraftQuality(experts_per_tok=few)),
        f"auto w1 d4, {few} experts": Speculation(Mode.AUTO, **deep, quality=DraftQuality(experts_per_tok=few)),
    }


def speculation(backend: CpuBackend, chance: float, batch: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens/s of all arms at one emulated acceptance; every arm has an engine, so `auto` learns by itself."""
    few = max(1, backend.shape.experts_per_tok // 4)
    emulated = EmulatedAcceptance(backend, chance)
    engines = {
        name: Engine(emulated, options=EngineOptions(max_batch=batch, speculation=each))
        for name, each in arms(few).items()
    }
    rng = np.random.default_rng(1)
    prompts = rng.integers(backend.shape.vocab, size=(batch, CONTEXT)).tolist()
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    last: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        order = list(engines)[turn % len(engines) :] + list(engines)[: turn % len(engines)]
        for name in order:
            engine = engines[name]
            engine.stats = RunStats()
            engine.generate(prompts, Generation(max_tokens=tokens, ignore_eos=True))
            last[name] = engine.stats.as_dict()
            speeds[name].append(last[name]["decode_tok_s"])
    return [
        {
            "acceptance": chance,
            "batch": batch,
            "arm": name,
            "decode_tok_s": statistics.median(each),
            "ratio_to_ar": statistics.median(a / b for a, b in zip(each, speeds["ar"], strict=True)),
            "acceptance_rate": last[name]["acceptance_rate"],
            "steps_by_depth": last[name]["steps_by_depth"],
        }
        for name, each in speeds.items()
    ]


def tables(document: dict[str, Any]) -> str:
    """Markdown for docs/cpu.md."""
    sizes = sorted({row["rows"] for row in document["costs"]})
    kinds = list(dict.fromkeys(row["pass"] for row in document["costs"]))
    known = {(row["pass"], row["rows"]): row["milliseconds"] for row in document["costs"]}
    cost_rows: list[list[object]] = [
        [kind, *(f"{known[kind, size]:.2f}" if (kind, size) in known else "" for size in sizes)] for kind in kinds
    ]
    settings = document["settings"]
    text = f"`{settings['model']}`, milliseconds of a pass by rows (probe: {document['probe_gb_per_s']:.0f} GB/s):\n\n"
    text += markdown_table(["pass", *(str(size) for size in sizes)], cost_rows)
    text += "\n\nTokens/s relative to AR at **emulated** acceptance (chance per drafted token):\n\n"
    names = list(dict.fromkeys(row["arm"] for row in document["speculation"]))
    cases = list(dict.fromkeys((row["batch"], row["acceptance"]) for row in document["speculation"]))
    ratio = {(row["batch"], row["acceptance"], row["arm"]): row["ratio_to_ar"] for row in document["speculation"]}
    found: list[list[object]] = [
        [f"batch {batch}, acceptance {chance}", *(f"{ratio[batch, chance, name]:.2f}" for name in names[1:])]
        for batch, chance in cases
    ]
    return text + markdown_table(["case", *names[1:]], found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an .elmoe folder, or `tiny`")
    parser.add_argument("--acceptance", default="0.5,0.8,0.95")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="cost_model", help="of the file in bench/results")
    parser.add_argument("--markdown", action="store_true", help="only rewrite the tables of docs/cpu.md")
    arguments = parser.parse_args()
    if arguments.markdown:
        document = json.loads((RESULTS / f"{arguments.name}.json").read_text())
        replace_block(ROOT / "docs" / "cpu.md", arguments.name, tables(document))
        return
    backend, probe = CpuBackend(Checkpoint.open(resolve(arguments.model))), BandwidthProbe()
    probe()
    found: dict[str, Any] = {"costs": costs(backend, arguments.rounds), "speculation": []}
    probe()
    for batch in map(int, arguments.batches.split(",")):
        for chance in map(float, arguments.acceptance.split(",")):
            found["speculation"] += speculation(backend, chance, batch, arguments.tokens, arguments.rounds)
            probe()
    settings = {"model": Path(arguments.model).name, "threads": backend.threads, "isa": backend.isa}
    settings |= {"tokens": arguments.tokens, "rounds": arguments.rounds, "acceptance": "emulated"}
    document = provenance(settings) | {"probe_gb_per_s": probe.median} | found
    write_result(arguments.name, document)
    print(tables(document))


if __name__ == "__main__":
    main()
