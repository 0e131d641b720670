"""How well the closed formula for a layer's experts (sim/layer.py) agrees with the cycle mode (sim/cycle.py).

    python bench/cycle_agreement.py [--docs]

Writes bench/results/cycle_agreement.json; --docs also the table of docs/validation.md. Routing is drawn at random with
two popularities of experts; the formula is given the rows of every expert (`ragged`) or their mean (`even`).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from elmoe.sim.cycle import simulate_layer
from elmoe.sim.layer import expert_resources, layer_ns
from elmoe.sim.layer_pass import draw_layer
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.spec import load_machine
from harness import ROOT, markdown_table, provenance, replace_block, write_result

SYSTEMS = (("xpu", ("ar",)), ("hb-xpu", ("ar",)), ("elmoe-3d", ("ar", "verify", "draft")))
HB_GB = (4.0, 8.0)
TOKENS = (1, 16, 100, 256)
CACHED = (0.0, 0.1, 0.5, 0.9, 1.0)
EXPONENTS = (0.0, 1.0)
EXT_SHARE, HB_SHARE = 0.99, 0.97
"""Of peak bandwidth, as the paper says; how well two models of the overlap agree does not hang on the last percent."""
ARMS = ("ragged", "even", "slowest_resource", "interleaved")


@dataclass(frozen=True)
class Point:
    """One layer."""

    system: str
    hb_gb: float
    model: str
    kind: str
    tokens: int
    cached: float
    exponent: float


def grid() -> Iterator[Point]:
    for (system, kinds), hb_gb, model in itertools.product(SYSTEMS, HB_GB, MODELS):
        for kind, tokens, cached, exponent in itertools.product(kinds, TOKENS, CACHED, EXPONENTS):
            whole = kind == "verify" and load_model(model).mxfp4_experts
            if not (whole or (system == "xpu" and cached)):
                yield Point(system, hb_gb, model, kind, tokens, cached, exponent)


def measure(point: Point, seed: int) -> dict[str, Any]:
    """Deviations from the cycle mode in grouped order, as fractions of it."""
    machine = load_machine(point.system).with_hb_gb(point.hb_gb)
    ext, hb = EXT_SHARE * machine.ext.gb_per_s, HB_SHARE * machine.hb.gb_per_s if machine.hb is not None else 1.0
    layer = draw_layer(load_model(point.model), point.kind, point.tokens, point.cached, seed, point.exponent)
    begin = time.perf_counter()
    played = simulate_layer(machine, layer, ext, hb)
    seconds = time.perf_counter() - begin
    mixed = simulate_layer(machine, layer, ext, hb, "interleaved")
    ragged, even = (expert_resources(machine, layer.work(rows), ext, hb) for rows in (True, False))
    slowest = max(float(time_ns[0]) for time_ns in (ragged.ext_ns, ragged.hb_ns, ragged.pe_ns, ragged.link_ns))
    times = (float(layer_ns(ragged)[0]), float(layer_ns(even)[0]), slowest, mixed.total_ns)
    return (
        vars(point)
        | {"total_ns": played.total_ns, "cycle_mode_s": round(seconds, 3)}
        | {arm: time_ns / played.total_ns - 1 for arm, time_ns in zip(ARMS, times, strict=True)}
    )


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Worst and mean magnitude by system and kind of pass."""
    keys = sorted({(row["system"], row["kind"]) for row in rows})
    found = []
    for system, kind in keys:
        part = [row for row in rows if (row["system"], row["kind"]) == (system, kind)]
        worst = {f"{arm}_worst": max(abs(row[arm]) for row in part) for arm in ARMS}
        mean = {f"{arm}_mean": float(np.mean([abs(row[arm]) for row in part])) for arm in ARMS}
        found.append({"system": system, "kind": kind, "layers": len(part)} | worst | mean)
    return found


def table(found: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], arm: str) -> str:
        return f"{100 * row[f'{arm}_worst']:.2f} / {100 * row[f'{arm}_mean']:.3f}"

    columns = [
        "machine, pass",
        "layers",
        "formula, rows of every expert",
        "formula, mean rows",
        "slowest resource alone",
        "interleaved order",
    ]
    cells = [[f"{row['system']}, {row['kind']}", row["layers"], *(cell(row, arm) for arm in ARMS)] for row in found]
    return markdown_table(columns, cells) + "\n\nDeviation from the cycle mode in grouped order, worst / mean, in %."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="put the table into docs/validation.md")
    arguments = parser.parse_args()
    rows = [measure(point, seed) for seed, point in enumerate(grid())]
    found = summary(rows)
    settings = {"hb_gb": HB_GB, "tokens": TOKENS, "cached": CACHED, "exponents": EXPONENTS} | {
        "ext_share": EXT_SHARE,
        "hb_share": HB_SHARE,
    }
    document = {"summary": found, "slowest_run_s": max(row["cycle_mode_s"] for row in rows), "rows": rows}
    print(write_result("cycle_agreement", provenance(settings) | document))
    print(table(found))
    if arguments.docs:
        replace_block(ROOT / "docs" / "validation.md", "cycle", table(found))


if __name__ == "__main__":
    main()
