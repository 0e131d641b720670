"""What the RTL costs: area, timing and energy of every block and of the designs that it is compared with.

    python bench/rtl.py --liberty FILE... --sram FOLDER [--docs]

ASAP7's RVT TT libraries and its SRAM macros were used; neither is part of elmoe. Needs Icarus Verilog and OpenSTA.
Writes bench/results/rtl.json and src/elmoe/rtl/asap7.json (what the area and energy model reads); --docs the tables of
docs/rtl.md and the energies of src/elmoe/sim/specs/mac_energy.toml. One generator, one script, one set of flags for all
designs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elmoe.rtl.blocks import Block, block_named, blocks
from elmoe.rtl.cell_models import cell_models
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.emit import Emitted, emit, verilog
from elmoe.rtl.energy import Energy, energy
from elmoe.rtl.icarus import run_vectors
from elmoe.rtl.liberty import CONSERVATIVE, Library, read_library
from elmoe.rtl.pe import Pe
from elmoe.rtl.pe_model import MACRO
from elmoe.rtl.synth import Synthesis, overhead_percent, synthesise
from elmoe.rtl.tables import clock_energies, transition_energy
from elmoe.rtl.tile import PeShape
from elmoe.rtl.timing import analyse
from elmoe.rtl.vectors import Vectors, vectors
from elmoe.rtl.workloads import column_workload, dot_workload, scale_workload
from elmoe.rtl.yosys import Yosys, find_yosys
from harness import ROOT, provenance, write_result
from rtl_tables import write_docs

GROUPS = 300
HOLDS = (1, 16)
POWERED = [
    (Design.NATIVE_4X8, Precision.W4),
    (Design.CONVENTIONAL, Precision.W4),
    (Design.AUGMENTED, Precision.W4),
    (Design.CONVENTIONAL, Precision.W8),
    (Design.AUGMENTED, Precision.W8),
    (Design.NATIVE_8X8, Precision.W8),
]
NETLIST_CYCLES = 5_000
SDF_CYCLES = 400


class Bench:
    """Tools, and netlists that were made already."""

    def __init__(self, yosys: Yosys, library: Library, everything: Library) -> None:
        self.yosys = yosys
        self.libraries = {"conservative": library, "all": everything, "none": None}
        self._made: dict[tuple[str, Design, str], Synthesis] = {}
        self._emitted: dict[tuple[str, Design], Emitted] = {}

    def emitted(self, block: Block, design: Design) -> Emitted:
        """Verilog."""
        key = (block.name, design)
        if key not in self._emitted:
            self._emitted[key] = emit(block, design, self.yosys)
        return self._emitted[key]

    def made(self, block: Block, design: Design, cells: str = "conservative") -> Synthesis:
        """The netlist of a set of cells."""
        key = (block.name, design, cells)
        if key not in self._made:
            text = self.emitted(block, design)
            self._made[key] = synthesise(text.verilog, text.top, self.yosys, self.libraries[cells])
        return self._made[key]

    def run(self, block: Block, design: Design, given: Vectors, sdf: str | None, vcd: Path | None = None) -> Any:
        """The mapped netlist on vectors; a mismatch stops the benchmark."""
        library, made, text = self.libraries["conservative"], self.made(block, design), self.emitted(block, design)
        assert library is not None
        sources = [made.verilog, cell_models(library, made.by_cell)]
        found = run_vectors(text.top, sources, text.ports, given, sdf=sdf, vcd=vcd)
        assert found.mismatches == 0, (block.name, design, found)
        return found

    def powered(self, block: Block, design: Design, given: Vectors, sdf: str) -> Energy:
        """Energy of a run with delays."""
        library = self.libraries["conservative"]
        assert library is not None
        with tempfile.TemporaryDirectory() as folder:
            vcd = Path(folder) / "run.vcd"
            self.run(block, design, given, sdf, vcd)
            return energy(self.made(block, design).netlist, vcd, len(given), library)


def everything() -> Iterator[tuple[Block, Design]]:
    return ((block, design) for block in blocks().values() for design in block.designs)


def synthesis(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for cells in bench.libraries:
        for block, design in everything():
            found = bench.made(block, design, cells)
            rows.append({"cells_of": cells, "block": block.name, "design": design.value} | found.figures())
            say(rows[-1])
    return rows


def timing(bench: Bench) -> tuple[list[dict[str, Any]], dict[tuple[str, Design], str]]:
    rows, delays = [], {}
    library = bench.libraries["conservative"]
    assert library is not None
    for block, design in everything():
        found = analyse(bench.made(block, design), block.file_name(design), library)
        row = {"block": block.name, "design": design.value, "slack_ps_at_1_ghz": found.slack_ps}
        rows.append(row | {"shortest_period_ps": found.shortest_period_ps})
        delays[block.name, design] = found.sdf
        say(rows[-1])
    return rows, delays


def verification(bench: Bench, delays: dict[tuple[str, Design], str]) -> list[dict[str, Any]]:
    """Mapped netlists on the vectors of the golden model, and again with delays at 1 GHz on some of them."""
    rows = []
    for block, design in everything():
        given = vectors(block.name, design)
        whole = given if block.name == "unit" else given.head(NETLIST_CYCLES)
        for level, part, sdf in (("netlist", whole, None), ("sdf", given.head(SDF_CYCLES), delays[block.name, design])):
            found = bench.run(block, design, part, sdf)
            counts = {"cycles": found.cycles, "compared": found.compared, "mismatches": found.mismatches}
            rows.append({"block": block.name, "design": design.value, "level": level} | counts)
            say(rows[-1])
    return rows


def energies(bench: Bench, delays: dict[tuple[str, Design], str]) -> list[dict[str, Any]]:
    rows = []

    def note(block: str, design: Design, precision: str, hold: int, found: Energy, per_cycle: float) -> None:
        low, high = found.per(per_cycle)
        row = {"block": block, "design": design.value, "precision": precision, "hold": hold, "per_cycle": per_cycle}
        rows.append(row | {"lower_fj": low, "upper_fj": high} | {f"cycle_{k}": v for k, v in vars(found).items()})
        say(rows[-1])

    dot = block_named("dot32")
    for design, precision in POWERED:
        for hold in HOLDS:
            given = dot_workload(design, precision, GROUPS, hold)
            found = bench.powered(dot, design, given, delays["dot32", design])
            note("dot32", design, precision.value, hold, found, 32 / len(precision.roles(design)))
    scale, column = block_named("scale"), block_named("column")
    for passes in (1, 2):
        given = scale_workload(GROUPS, passes)
        found = bench.powered(scale, Design.AUGMENTED, given, delays["scale", Design.AUGMENTED])
        note("scale", Design.AUGMENTED, f"{passes} pass", 1, found, 1 / passes)
    for design in (Design.CONVENTIONAL, Design.AUGMENTED):
        for precision in Precision:
            cycles = PeShape().tile_words(precision)
            given = column_workload(design, precision, GROUPS // cycles, cycles)
            found = bench.powered(column, design, given, delays["column", design])
            note("column", design, precision.value, 1, found, 1)
    return rows


def shells(bench: Bench) -> list[dict[str, Any]]:
    """The PE without its lanes: weight columns, activation registers, sequencer, the way out of results."""
    rows = []
    lane = bench.emitted(block_named("lane"), Design.AUGMENTED)
    ports = [f"input [{w - 1}:0] {n}" for n, w in lane.ports.inputs.items()]
    ports += [f"output [{w - 1}:0] {n}" for n, w in lane.ports.outputs.items()]
    stub = f"(* blackbox *) module lane(input clk, {', '.join(ports)}); endmodule\n"
    for design in (Design.CONVENTIONAL, Design.AUGMENTED):
        text = stub + verilog(Pe(design, PeShape(), lanes="lane"), "pe", bench.yosys, reset=True)
        found = synthesise(text, "pe", bench.yosys, bench.libraries["conservative"], black_boxes=("lane",))
        flops = sum(count for kind, count in found.by_cell.items() if kind.startswith("DFF"))
        rows.append({"design": design.value, "flip_flops": flops} | found.figures())
        say(rows[-1])
    return rows


def sram(folder: Path | None) -> dict[str, Any]:
    """Area and clock-pin energies of the published macros."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("srambank_*.lib")) if folder is not None else ():
        library = read_library([path], ())
        (name,) = library.cells
        edges = clock_energies(library.cell(name), "clk")
        energies_pj = {"read_pj": edges["!write"], "write_pj": edges["write"]}
        found[name.removesuffix("_6t122")] = {"area_um2": library.cell(name).area} | energies_pj
    return found


def shipped(document: dict[str, Any]) -> dict[str, Any]:
    """What the area and energy model reads."""
    area: dict[str, dict[str, float]] = {"shell": {row["design"]: row["area_um2"] for row in document["shells"]}}
    for row in document["synthesis"]:
        if row["cells_of"] == "conservative":
            area.setdefault(row["block"], {})[row["design"]] = round(row["area_um2"], 3)
    dot: dict[str, dict[str, list[float]]] = {}
    found: dict[str, Any] = {"dot32": dot, "column": {}, "scale": {}}
    for row in document["energy"]:
        pair = [round(row["lower_fj"], 2), round(row["upper_fj"], 2)]
        if row["block"] == "dot32" and row["hold"] == 1:
            dot.setdefault(row["design"], {})[row["precision"]] = pair
        elif row["block"] == "column" and row["design"] == "augmented":
            found["column"][row["precision"]] = pair
        elif row["block"] == "scale":
            found["scale"][row["precision"].removesuffix(" pass")] = pair
    flops = document["flip_flop_clock_fj"]
    return {"area_um2": area, "energy_fj": found | {"flip_flop_clock": flops}, "sram": {MACRO: document["sram"][MACRO]}}


def flip_flop_clock(library: Library) -> list[float]:
    """FJ per cycle of both clock edges of the flip-flop that is used, lower and upper bound."""
    cell = library.cell(library.flip_flop())
    assert cell.register is not None
    return [round(2 * x, 4) for x in transition_energy(cell, cell.register.attributes["clocked_on"], 0.0)]


def say(row: object) -> None:
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--liberty", type=Path, nargs="+", required=True)
    parser.add_argument("--sram", type=Path, required=True, help="folder of the srambank_*.lib files")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/rtl.md")
    arguments = parser.parse_args()
    begin = time.time()
    library = read_library(arguments.liberty)
    bench = Bench(find_yosys(), library, read_library(arguments.liberty, ()))
    made = synthesis(bench)
    timed, delays = timing(bench)
    document = {
        "synthesis": made,
        "overhead_percent": {
            cells: overhead_percent([row for row in made if row["cells_of"] == cells]) for cells in bench.libraries
        },
        "timing": timed,
        "shells": shells(bench),
        "verification": verification(bench, delays),
        "energy": energies(bench, delays),
        "sram": sram(arguments.sram),
        "flip_flop_clock_fj": flip_flop_clock(library),
    }
    settings = {
        "libraries": [path.name for path in arguments.liberty],
        "left_out": CONSERVATIVE,
        "yosys": bench.yosys.version,
        "groups": GROUPS,
        "seconds": round(time.time() - begin),
    }
    print(write_result("rtl", provenance(settings) | document))
    numbers = json.dumps(shipped(document), indent=1, sort_keys=True) + "\n"
    (ROOT / "src" / "elmoe" / "rtl" / "asap7.json").write_text(numbers, encoding="utf-8")
    if arguments.docs:
        write_docs(document)


if __name__ == "__main__":
    main()
