"""A model larger than its memory, in turn: elmoe and llama.cpp (mmap) inside the same memory cgroup.

    python bench/tiers_race.py MODEL.elmoe [--peer-python PYTHON_WITH_LLAMA_CPP] [--limit-bytes 420000000] [--rounds 3]
    python bench/tiers_race.py --markdown        only rewrite the tables from the result

MODEL.elmoe is the 1.13 B-parameter model with uniform routing of `tiers_peer.py`, which tries many settings of the
peer; here it runs with its own and with those that were best there. Both get the same weights and the same limit,
which holds their whole processes, interpreter, libraries and page cache included. In each round every arm runs once,
its files dropped from the page cache before; medians of the rounds. Writes bench/results/tiers_race.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgroup import GroupError, run_limited
from elmoe.bench.disk import median_rate
from elmoe.bench.gguf_q8 import cached_gguf
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import DENSE_FILE, LSB_FILE, MSB_FILE
from elmoe.checkpoint.resolve import resolve
from elmoe.errors import ElmoeError
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result
from tiers_peer import BATCHES, LIMIT_BYTES, PEER_PYTHON, PROBE_DEPTH, SETTINGS, Workload, measure

NAME = "tiers_race"
OWN = "elmoe"
OUTSIDE_BYTES = 110_000_000
"""Of the limit, for what our budget does not count: interpreter, libraries, tables."""
STEPS = 40
"""Of our arm, which is fast: its median must not hang on a few."""
TIMEOUT_SECONDS = 120


def own(folder: Path, batch: int, limit_bytes: int) -> dict[str, Any]:
    """One run of ours."""
    script = Path(__file__).with_name("tiers_decode.py")
    command = [sys.executable, str(script), str(folder), "--fast-bytes", str(limit_bytes - OUTSIDE_BYTES)]
    command += ["--batch", str(batch), "--steps", str(STEPS)]
    cold = [folder / name for name in (DENSE_FILE, MSB_FILE, LSB_FILE)]
    run = run_limited(command, limit_bytes, cold=cold, timeout_seconds=TIMEOUT_SECONDS)
    if run.returncode:
        raise SystemExit(f"error: {' '.join(command)}: {run.message}")
    found = json.loads(run.stdout)
    return found | {"arm": OWN, "batch": batch, "peak_bytes": run.peak_bytes, "limit_bytes": limit_bytes}


def summary(rows: Sequence[dict[str, Any]], probe: float) -> list[dict[str, Any]]:
    """Medians by arm and batch, and our ratio to the peer's default and best."""
    speeds: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if "decode_tok_s" in row:
            speeds.setdefault((row["arm"], row["batch"]), []).append(row["decode_tok_s"])
    medians = {key: statistics.median(each) for key, each in speeds.items()}
    found = []
    for batch in sorted({batch for _, batch in medians}):
        peers = {arm: speed for (arm, of), speed in medians.items() if of == batch and arm != OWN}
        best = max(peers, key=lambda arm: peers[arm])
        mine = [row for row in rows if row["arm"] == OWN and row["batch"] == batch]
        found.append(
            {
                "batch": batch,
                "elmoe_tok_s": medians[OWN, batch],
                "default_tok_s": peers["default"],
                "best": best,
                "best_tok_s": peers[best],
                "ratio_to_default": medians[OWN, batch] / peers["default"],
                "ratio_to_best": medians[OWN, batch] / peers[best],
                "peak_bytes": max(row["peak_bytes"] for row in mine),
                "kernel_over_counted": statistics.median(row["kernel_bytes"] / row["counted_bytes"] for row in mine),
                "probe_gb_per_s": probe,
            }
        )
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    columns = ["tokens/s", "llama.cpp", "its best setting", "elmoe", "ratio", "ratio to best"]
    lines: list[list[object]] = [
        [
            f"batch {row['batch']}",
            f"{row['default_tok_s']:.2f}",
            f"{row['best_tok_s']:.2f} ({row['best']})",
            f"{row['elmoe_tok_s']:.1f}",
            f"{row['ratio_to_default']:.1f}",
            f"{row['ratio_to_best']:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="an .elmoe folder")
    parser.add_argument("--peer-python", default=str(PEER_PYTHON) if PEER_PYTHON.exists() else sys.executable)
    parser.add_argument("--limit-bytes", type=int, default=LIMIT_BYTES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--settings",
        default="default|one thread|four threads, read-ahead 128 KiB",
        help="of the peer, by name, from `tiers_peer.py`",
    )
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    if arguments.markdown:
        document = json.loads((RESULTS / f"{NAME}.json").read_text())
        for page in (ROOT / "docs" / "tiers.md", ROOT / "README.md"):
            replace_block(page, NAME, table(document["summary"]))
        return
    try:
        folder = resolve(arguments.model)
        checkpoint, workload = Checkpoint.open(folder), Workload()
        gguf = cached_gguf(checkpoint)
        works = [workload.decoding(checkpoint, batch) for batch in BATCHES]
        rows, probes = [], []
        limit, wanted = arguments.limit_bytes, [each for each in SETTINGS if each.name in arguments.settings.split("|")]
        for turn in range(arguments.rounds):
            probes.append(median_rate(folder / MSB_FILE, 1 << 20, PROBE_DEPTH))
            for setting in wanted:
                found = measure(gguf, works, setting, limit, arguments.peer_python, workload.warm_up)
                rows += [row | {"arm": setting.name, "round": turn} for row in found]
            rows += [own(folder, batch, limit) | {"round": turn} for batch in BATCHES]
            speeds = [(row["arm"], row["batch"], row.get("decode_tok_s")) for row in rows if row["round"] == turn]
            print(speeds, flush=True)
    except (ElmoeError, GroupError) as error:
        raise SystemExit(f"error: {error}") from None
    settings = {"model": folder.name, "limit_bytes": arguments.limit_bytes, "rounds": arguments.rounds}
    settings |= {"model_bytes": gguf.stat().st_size, "steps": STEPS, "peer_steps": workload.steps}
    found = summary(rows, statistics.median(probes))
    write_result(NAME, provenance(settings) | {"summary": found, "rows": rows})
    print(table(found))


if __name__ == "__main__":
    main()
