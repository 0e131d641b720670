"""What Elastic-SD accepts on each workload, for one model beside another.

    python bench/acceptance.py --prompts DIR [--against OLD.elmoe] [--limit 24]

Every .jsonl file of DIR is a workload. Greedy decoding; counts only, no times, so that both models compare on any
machine. Writes bench/results/acceptance.json and the table of the model card.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.cli.prompts import read_jsonl
from elmoe.trace.schema import RunStats
from harness import ROOT, markdown_table, provenance, replace_block, write_result

ARMS = {
    "w1 d4": Speculation(mode=Mode.SD, width=1, depth=4, verify=4),
    "w2 d4": Speculation(mode=Mode.SD, width=2, depth=4, verify=8),
}
BATCHES = (1, 8)
CARD = ROOT / "src" / "elmoe" / "data" / "tiny.elmoe" / "MODEL_CARD.md"


def measure(model: str, workloads: dict[str, list[str]], max_tokens: int) -> list[dict[str, Any]]:
    """Counters of every workload, batch and tree shape."""
    rows = []
    for batch in BATCHES:
        engine = Engine.open(model, EngineOptions(max_batch=batch))
        for workload, texts in workloads.items():
            asked = [[{"role": "user", "content": text}] for text in texts]
            asked = [prompt for prompt in asked if len(engine.encode(prompt)) < 1024]
            for arm, speculation in ARMS.items():
                engine.speculation, engine.stats = speculation, RunStats()
                engine.generate(asked, Generation(max_tokens=max_tokens))
                counters = engine.stats.acceptance
                row = {
                    "model": Path(model).stem,
                    "workload": workload,
                    "batch": batch,
                    "arm": arm,
                    "prompts": len(asked),
                }
                row |= {"acceptance_rate": counters.acceptance_rate, "emitted": counters.emitted}
                row |= {"mean_accepted_length": counters.mean_accepted_length}
                rows.append(row)
                print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Acceptance rate / accepted tokens per verify step, a line per workload."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = [(model, batch, arm) for model in models for batch in BATCHES for arm in ARMS]
    cells = {(row["workload"], row["model"], row["batch"], row["arm"]): row for row in rows}

    def cell(workload: str, column: tuple[str, int, str]) -> str:
        row = cells[(workload, *column)]
        return f"{row['acceptance_rate']:.2f} / {row['mean_accepted_length']:.2f}"

    workloads = dict.fromkeys(row["workload"] for row in rows)
    lines: list[list[object]] = [[name, *(cell(name, column) for column in columns)] for name in workloads]
    return markdown_table(["workload", *(f"{model}, batch {batch}, {arm}" for model, batch, arm in columns)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--against", help="an older model, measured beside it")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=24, help="prompts of each workload")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--markdown", action="store_true", help="put the table into the model card")
    arguments = parser.parse_args()
    files = sorted(arguments.prompts.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"{arguments.prompts}: no .jsonl files of prompts")
    workloads = {file.stem: read_jsonl(file)[: arguments.limit] for file in files}
    models = [arguments.model] + ([arguments.against] if arguments.against else [])
    rows = [row for model in models for row in measure(model, workloads, arguments.max_tokens)]
    settings = {"models": [Path(m).stem for m in models], "limit": arguments.limit, "max_tokens": arguments.max_tokens}
    write_result("acceptance", provenance(settings) | {"rows": rows})
    print(table(rows))
    if arguments.markdown:
        replace_block(CARD, "acceptance", table(rows))


if __name__ == "__main__":
    main()
