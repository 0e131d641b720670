"""What Elastic-SD accepts and saves, and its speed against plain decoding on the same backend.

    python bench/speculation.py --prompts DIR_OR_FILE [--limit 16] [--markdown]

Arms are interleaved in one run; medians over rounds. Writes bench/results/speculation.json; with --markdown also the
table in README.md. The reference backend is compute-bound: its speed says nothing about a memory-bound machine, its
counts of tokens, experts and bytes do.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from elasticity import mixed_prompts
from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.trace.schema import RunStats
from harness import ROOT, markdown_table, provenance, replace_block, write_result

ARMS = {
    "AR": Speculation(mode=Mode.AR),
    "SD w1 d4": Speculation(mode=Mode.SD, width=1, depth=4, verify=4),
    "SD w2 d4": Speculation(mode=Mode.SD, width=2, depth=4, verify=8),
    "SD w4 d6": Speculation(mode=Mode.SD, width=4, depth=6, verify=16),
}
BATCHES = (1, 4, 16)


def measure(model: str, prompts: Path, limit: int, max_tokens: int, rounds: int) -> dict[str, Any]:
    """All arms at all batch sizes, `rounds` times each, outputs compared with AR's."""
    asked = [[{"role": "user", "content": text}] for text in mixed_prompts(prompts, limit)]
    rows = []
    for batch in BATCHES:
        engine = Engine.open(model, EngineOptions(max_batch=batch))
        engine.generate(asked[:2], Generation(max_tokens=8))  # decode the weights before the clock runs
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
        texts: dict[str, list[list[int]]] = {}
        for _ in range(rounds):
            for name, speculation in ARMS.items():
                engine.speculation, engine.stats = speculation, RunStats()
                outputs = engine.generate(asked, Generation(max_tokens=max_tokens))
                texts[name] = [output.token_ids for output in outputs]
                runs[name].append(engine.stats.as_dict())
        plain = statistics.median(run["decode_tok_s"] for run in runs["AR"])
        for name, kept in runs.items():
            stats, speed = kept[-1], statistics.median(run["decode_tok_s"] for run in kept)
            rows.append(
                {
                    "arm": name,
                    "batch": batch,
                    "lossless": texts[name] == texts["AR"],
                    "decode_tok_s": speed,
                    "ratio_to_ar": speed / plain,
                    "acceptance_rate": stats["acceptance_rate"],
                    "tokens_per_target_row": stats["emitted"] / (stats["ar_steps"] + stats["verify_steps"]),
                    "target_passes_per_token": stats["target_passes"] / stats["emitted"],
                    "slow_bytes_per_token": stats["slow_bytes_read"] / stats["emitted"],
                    "fast_bytes_per_token": stats["fast_bytes_read"] / stats["emitted"],
                }
            )
            print(rows[-1], flush=True)
    settings = {"model": model, "prompts": len(asked), "max_tokens": max_tokens, "rounds": rounds, "pool_fraction": 0.5}
    return provenance(settings) | {"rows": rows}


def table(document: dict[str, Any]) -> str:
    """Markdown for the README."""
    rows = [
        [
            f"{row['arm']}, batch {row['batch']}",
            "yes" if row["lossless"] else "NO",
            f"{row['acceptance_rate']:.2f}" if row["arm"] != "AR" else "",
            f"{row['tokens_per_target_row']:.2f}",
            f"{row['slow_bytes_per_token'] / 1e3:.0f}",
            f"{row['ratio_to_ar']:.2f}",
        ]
        for row in document["rows"]
    ]
    columns = ["arm", "same tokens as AR", "acceptance rate", "tokens per step", "slow-tier kB per token", "speed / AR"]
    return markdown_table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    document = measure(arguments.model, arguments.prompts, arguments.limit, arguments.max_tokens, arguments.rounds)
    write_result("speculation", document)
    print(table(document))
    if arguments.markdown:
        replace_block(ROOT / "README.md", "speculation", table(document))


if __name__ == "__main__":
    main()
