"""How hotness should fade: acceptance of Elastic-SD over decay and pool fraction.

    python bench/pool.py --prompts DIR_OR_FILE [--limit 24]

Writes bench/results/pool.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elasticity import mixed_prompts
from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from harness import markdown_table, provenance, write_result

DECAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
FRACTIONS = (0.25, 0.5, 0.75)
BATCHES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    asked = [[{"role": "user", "content": text}] for text in mixed_prompts(arguments.prompts, arguments.limit)]
    speculation = Speculation(mode=Mode.SD, width=1, depth=4, verify=4)
    rows = []
    for batch in BATCHES:
        for fraction in FRACTIONS:
            for decay in DECAYS:
                options = EngineOptions(
                    max_batch=batch, pool_fraction=fraction, hotness_decay=decay, speculation=speculation
                )
                engine = Engine.open(arguments.model, options)
                engine.generate(asked, Generation(max_tokens=arguments.max_tokens))
                counters = engine.stats.acceptance
                rows.append(
                    {
                        "batch": batch,
                        "pool_fraction": fraction,
                        "decay": decay,
                        "acceptance_rate": counters.acceptance_rate,
                        "mean_accepted_length": counters.mean_accepted_length,
                    }
                )
                print(rows[-1], flush=True)
    settings = {
        "model": arguments.model,
        "prompts": len(asked),
        "max_tokens": arguments.max_tokens,
        "width": 1,
        "depth": 4,
    }
    write_result("pool", provenance(settings) | {"rows": rows})
    table = [
        [
            f"batch {b}, pool {f:.0%}",
            *(f"{r['mean_accepted_length']:.2f}" for r in rows if (r["batch"], r["pool_fraction"]) == (b, f)),
        ]
        for b in BATCHES
        for f in FRACTIONS
    ]
    print(markdown_table(["accepted per verify step, by decay", *map(str, DECAYS)], table))


if __name__ == "__main__":
    main()
