"""How good the policies of the expert cache are: hit rates over recorded routing, beside Belady's optimum.

    python bench/tiers_replay.py TRACE.parquet... [--capacities 8,16,32,64] [--warm-up 4] [--markdown]

Traces of plain decoding, as `bench/tiers.py --traces` or `elmoe trace --mode ar` write them. Every policy holds the same
number of whole experts per layer. Writes bench/results/tiers_replay.json; with --markdown also the table of
docs/tiers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elmoe.trace.parquet import read_trace
from elmoe.trace.replay import Policy, accesses, miss_curve
from harness import ROOT, markdown_table, provenance, replace_block, write_result

NAME = "tiers_replay"
ORDER = (Policy.LRU, Policy.LFU, Policy.HOT, Policy.BENEFIT, Policy.BELADY)


def rates(path: Path, capacities: list[int], warm_up: int) -> list[dict[str, Any]]:
    """A row per capacity: hit rate by policy."""
    trace = read_trace(path)
    seen = accesses(trace)
    misses = {policy: miss_curve(seen, policy, capacities, warm_up=warm_up).miss_rate for policy in ORDER}
    return [
        {"trace": path.stem, "passes": len(seen.reads), "capacity": capacity}
        | {policy.value: float(1 - misses[policy][index]) for policy in ORDER}
        for index, capacity in enumerate(capacities)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines: list[list[object]] = [
        [f"{row['trace']}, {row['capacity']} experts", *(f"{row[policy.value]:.3f}" for policy in ORDER)] for row in rows
    ]
    return markdown_table(["hit rate", *(policy.value for policy in ORDER)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--capacities", default="16,32,64")
    parser.add_argument("--warm-up", type=int, default=4, help="passes that fill the caches and are not counted")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    capacities = [int(each) for each in arguments.capacities.split(",")]
    rows = [row for path in arguments.traces for row in rates(path, capacities, arguments.warm_up)]
    write_result(NAME, provenance({"warm_up": arguments.warm_up}) | {"rows": rows})
    print(table(rows))
    if arguments.markdown:
        replace_block(ROOT / "docs" / "tiers.md", NAME, table(rows))


if __name__ == "__main__":
    main()
