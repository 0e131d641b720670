"""What WMEM's port and the pipeline of the RTL cost a layer: the paper's machine with and without them, cycle by cycle.

    python bench/rtl_port.py [--docs]

Writes bench/results/rtl_port.json; --docs also the table of docs/rtl.md.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from elmoe.sim.cycle import simulate_layer
from elmoe.sim.layer import expert_resources, layer_ns
from elmoe.sim.layer_pass import PASSES, draw_layer
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.spec import Machine, load_machine
from harness import ROOT, markdown_table, provenance, replace_block, write_result

HB_GB = 8.0
TOKENS = (1, 16, 100, 256)
CACHED = (0.0, 0.5, 1.0)
EXPONENT = 1.0
EXT_SHARE, HB_SHARE = 0.99, 0.97


def measure(machines: list[Machine], model: str, kind: str, tokens: int, cached: float) -> dict[str, Any]:
    """The same layer on both machines."""
    shape = load_model(model)
    layer = draw_layer(shape, kind, tokens, cached, 1, EXPONENT)
    times, formula = [], []
    for machine in machines:
        assert machine.hb is not None
        ext, hb = EXT_SHARE * machine.ext.gb_per_s, HB_SHARE * machine.hb.gb_per_s
        times.append(simulate_layer(machine, layer, ext, hb).total_ns)
        formula.append(float(layer_ns(expert_resources(machine, layer.work(), ext, hb))[0]))
    point = {"model": model, "kind": kind, "tokens": tokens, "cached": cached}
    slower, off = times[1] / times[0] - 1, formula[1] / times[1] - 1
    return point | {"paper_ns": times[0], "rtl_ns": times[1], "slower": slower, "formula_off": off}


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for kind, tokens in itertools.product(PASSES, TOKENS):
        part = [row for row in rows if (row["kind"], row["tokens"]) == (kind, tokens)]
        slower = [100 * row["slower"] for row in part]
        off = max(abs(100 * row["formula_off"]) for row in part)
        cells.append(
            [f"{kind}, {tokens} tokens", len(part), f"{min(slower):+.2f} to {max(slower):+.2f} %", f"{off:.2f} %"]
        )
    columns = ["pass", "layers", "time with the RTL's port and pipeline", "formula off by at most"]
    return markdown_table(columns, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="put the table into docs/rtl.md")
    arguments = parser.parse_args()
    names = ("elmoe-3d", str(ROOT / "examples" / "elmoe_3d_rtl.toml"))
    machines = [load_machine(name).with_hb_gb(HB_GB) for name in names]
    rows = []
    for model, kind, tokens, cached in itertools.product(MODELS, PASSES, TOKENS, CACHED):
        if not (kind == "verify" and load_model(model).mxfp4_experts):
            rows.append(measure(machines, model, kind, tokens, cached))
    settings = {"hb_gb": HB_GB, "exponent": EXPONENT, "ext_share": EXT_SHARE, "hb_share": HB_SHARE}
    print(write_result("rtl_port", provenance(settings) | {"rows": rows}))
    print(table(rows))
    if arguments.docs:
        replace_block(ROOT / "docs" / "rtl.md", "rtl-port", table(rows))


if __name__ == "__main__":
    main()
