"""The simulator against this machine: tokens/s of models larger than their fast memory, predicted and measured.

    python bench/tiers_validation.py RESULTS.json [--machine FILE.toml] [--rounds-before N] [--markdown]
    python bench/tiers_validation.py --markdown       only rewrite the table of docs/validation.md

RESULTS.json is what `bench/tiers.py --traces FOLDER` wrote: rows with the measured ``decode_tok_s``, the ``model``,
``fast_bytes``, ``batch``, ``arm``, ``policy`` and the ``trace`` of a round. Each run is predicted from its trace (an
arm that was not recorded but decodes the same tokens plainly, from the trace of ``ar``), the budget and the machine
file (sim/specs/measured/this-machine.toml). Nothing is fitted to tokens/s: the file's numbers come from probes of parts
(`bench/this_machine.py`), the disk's rate from the probe beside the run (``probe_gb_per_s``) where the row has one,
since the disk of a shared machine is twice as fast in one minute as in another. The caches have seen as many rounds of
the same prompts as the bench made before the recorded one.

Writes bench/results/tiers_validation.json; with --markdown also the table of docs/validation.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.errors import ElmoeError
from elmoe.sim.host.cache import Arena, Budget
from elmoe.sim.host.spec import Host, load_host
from elmoe.sim.host.trace_run import TraceRun, run_trace
from elmoe.sim.model import SimModel, model_from_shape
from elmoe.trace.parquet import Trace, read_trace
from elmoe.trace.replay import Policy
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result

NAME, BLOCK = "tiers_validation", "tiers"
MACHINE = ROOT / "src" / "elmoe" / "sim" / "specs" / "measured" / "this-machine.toml"
POLICIES: dict[str, Policy | None] = {
    "benefit": Policy.BENEFIT,
    "hotness": Policy.HOT,
    "lru": Policy.LRU,
    "lfu": Policy.LFU,
    "none": None,
}
NEEDED = ("model", "arm", "fast_bytes", "batch", "policy", "decode_tok_s")
AR = "ar"
PLAIN = (AR, "stream", "lru")
"""Arms that decode plainly."""
Row = dict[str, Any]


def compare(rows: list[Row], host: Host, rounds_before: int) -> list[Row]:
    """Every row that can be predicted, with the prediction; `gain` is over ``ar`` of the same case."""
    found = []
    for row in rows:
        missing = [name for name in NEEDED if name not in row]
        if missing:
            raise SystemExit(f"error: a row has no {missing[0]!r}; let bench/tiers.py write the results")
        trace = _trace_of(row, rows)
        if trace is not None:
            found.append(predicted(row, read_trace(trace), host, rounds_before))
    by_case = {_case(one): one for one in found if one["arm"] == AR}
    for one in found:
        base = by_case.get(_case(one))
        for which in ("predicted", "measured"):
            one[f"gain_{which}"] = one[f"tok_s_{which}"] / base[f"tok_s_{which}"] if base else None
    return found


def predicted(row: Row, trace: Trace, host: Host, rounds_before: int) -> Row:
    """One run, predicted."""
    model = model_from_shape(trace.shape, row["model"])
    if row["policy"] not in POLICIES:
        raise SystemExit(f"error: the simulator knows no policy {row['policy']!r}; known are {', '.join(POLICIES)}")
    budget = Budget(row["fast_bytes"], POLICIES[row["policy"]], _lsb_share(row))
    waste = wasted(row)
    here = at_probed_rate(host, model, row, waste)
    run = run_trace(here, model, trace, budget, None if row.get("trace") else "ar", rounds_before)
    decoded = run.decoded
    return {
        "model": row["model"],
        "arm": row["arm"],
        "batch": row["batch"],
        "fast_bytes": row["fast_bytes"],
        "policy": row["policy"],
        "tok_s_predicted": decoded.tokens_per_s,
        "tok_s_measured": row["decode_tok_s"],
        "error": decoded.tokens_per_s / row["decode_tok_s"] - 1.0,
        "slow_bytes_per_token_predicted": decoded.slow_bytes * (1.0 + waste) / decoded.tokens,
        "slow_bytes_per_token_measured": row.get("slow_bytes_per_token"),
        "passes": pass_times(trace, run) if row.get("trace") else {},
        "disk_gb_per_s": row.get("probe_gb_per_s"),
        "lsb_share": budget.lsb_share,
        "wasted": waste,
    }


def at_probed_rate(host: Host, model: SimModel, row: Row, waste: float) -> Host:
    """The host with its disk as fast as the probe beside the run found it, at requests of one MSB record.

    waste: what was read ahead in vain takes the disk's time, too.
    """
    engine = replace(host.engine, read_efficiency=host.engine.read_efficiency / (1.0 + waste))
    host = replace(host, engine=engine)
    if not row.get("probe_gb_per_s"):
        return host
    record = np.array(float(Arena.of(host, model).msb_bytes))
    in_file = float(record / host.slow.read_ns(record))
    return host.at_pace(slow=row["probe_gb_per_s"] / in_file)


def wasted(row: Row) -> float:
    """Records that the run read ahead in vain / records that it missed."""
    counted = row.get("counters") or {}
    missed = counted.get("msb_misses", 0) + counted.get("lsb_misses", 0)
    return (counted["prefetched"] - counted["prefetch_used"]) / missed if missed else 0.0


def pass_times(trace: Trace, run: TraceRun) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass by phase: the mean of the prediction, mean and median of the recorded run."""
    recorded: dict[str, list[float]] = {}
    for record in trace.passes():
        name = "decode" if record.kind.value == "ar" else record.kind.value
        recorded.setdefault(name, []).append(1e3 * record.seconds)
    return {
        name: {
            "predicted_ms": 1e3 * spent.seconds / run.decoded.counts[name],
            "mean_ms": statistics.mean(recorded[name]),
            "median_ms": statistics.median(recorded[name]),
        }
        for name, spent in run.decoded.phases.items()
        if name in recorded
    }


def _lsb_share(row: Row) -> float:
    """How the run divided its arena: whole experts unless it says otherwise."""
    msb, lsb = row.get("quotas") or (0, 0)
    return min(1.0, lsb / msb) if msb else 1.0


def _case(row: Row) -> tuple[Any, ...]:
    return row["model"], row["fast_bytes"], row["batch"]


def _trace_of(row: Row, rows: list[Row]) -> Path | None:
    """The row's own trace; for plain decoding under another policy that of ``ar``: the tokens are the same."""
    if row.get("trace"):
        return ROOT / row["trace"]
    if row.get("depth") and row.get("mode") not in (AR, "stream", "lru"):
        return None
    same = [
        other["trace"] for other in rows if other["arm"] == AR and _case(other) == _case(row) and other.get("trace")
    ]
    return ROOT / same[0] if same else None


def table(found: list[Row]) -> str:
    """For docs/validation.md."""
    lines: list[list[object]] = []
    for one in found:
        measured_mb = one["slow_bytes_per_token_measured"]
        lines.append(
            [
                f"{one['model']}, {one['fast_bytes'] / 1e9:.2f} GB, batch {one['batch']}",
                one["arm"],
                _digits(one["tok_s_predicted"]),
                _digits(one["tok_s_measured"]),
                f"{100 * one['error']:+.0f}%",
                _gain(one["gain_predicted"]),
                _gain(one["gain_measured"]),
                f"{one['slow_bytes_per_token_predicted'] / 1e6:.1f}",
                "" if measured_mb is None else f"{measured_mb / 1e6:.1f}",
            ]
        )
    columns = ["model, fast tier, batch", "arm", "predicted tok/s", "measured", "error", "predicted gain", "measured"]
    text = markdown_table([*columns, "predicted MB/token", "measured"], lines)
    return f"{text}\n\n{summary(found)}"


def summary(found: list[Row]) -> str:
    """How many predictions hold."""
    errors = [abs(one["error"]) for one in found]
    within = sum(error <= 0.15 for error in errors)
    worst = max(errors, default=0.0)
    return (
        f"Within 15 %: {within} of {len(errors)}; median |error| {100 * statistics.median(errors):.0f} %, "
        f"largest {100 * worst:.0f} %. Gains are over ar of the same line."
    )


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _gain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def read_results(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and settings."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document["rows"], document.get("settings") or {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} holds no results ({error}); let bench/tiers.py write them") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--machine", type=Path, default=MACHINE)
    parser.add_argument("--rounds-before", type=int, help="default: as many as the results' settings say")
    parser.add_argument("--prefetch-share", type=float, help="another one than the machine file's")
    parser.add_argument("--name", default=NAME, help="of the file in bench/results")
    parser.add_argument("--markdown", action="store_true", help="rewrite the table of docs/validation.md")
    arguments = parser.parse_args()
    if arguments.results is not None:
        rows, settings = read_results(arguments.results)
        before = settings.get("rounds", 0) if arguments.rounds_before is None else arguments.rounds_before
        try:
            host = load_host(str(arguments.machine))
            if arguments.prefetch_share is not None:
                host = replace(host, engine=replace(host.engine, prefetch_share=arguments.prefetch_share))
            found = compare(rows, host, before)
        except ElmoeError as error:
            raise SystemExit(f"error: {error}") from None
        if not found:
            raise SystemExit(f"error: no row of {arguments.results} has a trace; run bench/tiers.py with --traces")
        told = {"results": arguments.results.name, "machine": arguments.machine.name, "rounds_before": before}
        write_result(arguments.name, provenance(told) | {"rows": found, "host": host.as_tables()})
        print(table(found))
    elif not arguments.markdown:
        parser.error("give the results of bench/tiers.py")
    if arguments.markdown:
        document = json.loads((RESULTS / f"{arguments.name}.json").read_text(encoding="utf-8"))
        replace_block(ROOT / "docs" / "validation.md", BLOCK, table(document["rows"]))


if __name__ == "__main__":
    main()
