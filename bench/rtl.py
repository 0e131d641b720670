"""What the RTL costs: area, timing and energy of every block and of the designs that it is compared with.

    python bench/rtl.py --liberty FILE... --sram FOLDER [--docs]

ASAP7's RVT TT libraries and its SRAM macros were used; neither is part of elmoe. Needs Icarus Verilog and OpenSTA.
Writes bench/results/rtl.json and src/elmoe/rtl/asap7.json (what the area and energy model reads); --docs the tables of
docs/rtl.md and the energies of src/elmoe/sim/specs/mac_energy.toml. One generator, one script, one set of flags for all
designs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from elmoe.rtl.timing import Timing, analyse
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
        self._timed: dict[tuple[str, Design], Timing] = {}

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

    def timed(self, block: Block, design: Design) -> Timing:
        """Slack and delays of the netlist of conservative cells."""
        key = (block.name, design)
        if key not in self._timed:
            library = self.libraries["conservative"]
            assert library is not None
            self._timed[key] = analyse(self.made(block, design), block.file_name(design), library)
        return self._timed[key]

    def powered(self, block: Block, design: Design, given: Vectors) -> Energy:
        """Energy of a run with delays."""
        library = self.libraries["conservative"]
        assert library is not None
        with tempfile.TemporaryDirectory() as folder:
            vcd = Path(folder) / "run.vcd"
            self.run(block, design, given, self.timed(block, design).sdf, vcd)
            return energy(self.made(block, design).netlist, vcd, len(given), library)


def everything() -> Iterator[tuple[Block, Design]]:
    return ((block, design) for block in blocks().values() for design in block.designs)


def both(work: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Two items at a time, results in order: the work is done by other processes."""
    with ThreadPoolExecutor(2) as pool:
        found = []
        for result in pool.map(lambda item: work(*item), items):
            print(str(result)[:300], flush=True)
            found.append(result)
        return found


def synthesis(bench: Bench) -> list[dict[str, Any]]:
    def one(cells: str, block: Block, design: Design) -> dict[str, Any]:
        found = bench.made(block, design, cells)
        return {"cells_of": cells, "block": block.name, "design": design.value} | found.figures()

    return both(one, [(cells, *pair) for cells in bench.libraries for pair in everything()])


def timing(bench: Bench) -> list[dict[str, Any]]:
    def one(block: Block, design: Design) -> dict[str, Any]:
        found = bench.timed(block, design)
        row = {"block": block.name, "design": design.value, "slack_ps_at_1_ghz": found.slack_ps}
        return row | {"shortest_period_ps": found.shortest_period_ps}

    return both(one, everything())


def verification(bench: Bench) -> list[dict[str, Any]]:
    """Mapped netlists on the vectors of the golden model, and again with delays at 1 GHz on some of them."""

    def one(block: Block, design: Design, level: str) -> dict[str, Any]:
        given = vectors(block.name, design)
        sdf = bench.timed(block, design).sdf if level == "sdf" else None
        part = given.head(SDF_CYCLES if sdf else max(NETLIST_CYCLES, len(given) * (block.name == "unit")))
        found = bench.run(block, design, part, sdf)
        counts = {"cycles": found.cycles, "compared": found.compared, "mismatches": found.mismatches}
        return {"block": block.name, "design": design.value, "level": level} | counts

    return both(one, [(*pair, level) for pair in everything() for level in ("netlist", "sdf")])


def energies(bench: Bench) -> list[dict[str, Any]]:
    scale, column, dot = (block_named(name) for name in ("scale", "column", "dot32"))
    work: list[tuple[Block, Design, str, int, float, Vectors]] = []
    for (design, precision), hold in itertools.product(POWERED, HOLDS):
        given = dot_workload(design, precision, GROUPS, hold)
        work.append((dot, design, precision.value, hold, 32 / len(precision.roles(design)), given))
    for passes in (1, 2):
        given = scale_workload(GROUPS, passes)
        work.append((scale, Design.AUGMENTED, f"{passes} pass", 1, 1 / passes, given))
    for design, precision in itertools.product((Design.CONVENTIONAL, Design.AUGMENTED), Precision):
        cycles = PeShape().tile_words(precision)
        given = column_workload(design, precision, GROUPS // cycles, cycles)
        work.append((column, design, precision.value, 1, 1, given))

    def one(block: Block, design: Design, name: str, hold: int, per_cycle: float, given: Vectors) -> dict[str, Any]:
        found = bench.powered(block, design, given)
        low, high = found.per(per_cycle)
        row = {"block": block.name, "design": design.value, "precision": name, "hold": hold, "per_cycle": per_cycle}
        return row | {"lower_fj": low, "upper_fj": high} | {f"cycle_{key}": value for key, value in vars(found).items()}

    return both(one, work)


def shells(bench: Bench) -> list[dict[str, Any]]:
    """The PE without its lanes: weight columns, activation registers, sequencer, the way out of results."""
    lane = bench.emitted(block_named("lane"), Design.AUGMENTED)
    ports = [f"input [{w - 1}:0] {n}" for n, w in lane.ports.inputs.items()]
    ports += [f"output [{w - 1}:0] {n}" for n, w in lane.ports.outputs.items()]
    stub = f"(* blackbox *) module lane(input clk, {', '.join(ports)}); endmodule\n"

    def one(design: Design) -> dict[str, Any]:
        text = stub + verilog(Pe(design, PeShape(), lanes="lane"), "pe", bench.yosys, reset=True)
        found = synthesise(text, "pe", bench.yosys, bench.libraries["conservative"], black_boxes=("lane",))
        flops = sum(count for kind, count in found.by_cell.items() if kind.startswith("DFF"))
        return {"design": design.value, "flip_flops": flops} | found.figures()

    return both(one, [(Design.CONVENTIONAL,), (Design.AUGMENTED,)])


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
    document = {
        "synthesis": made,
        "overhead_percent": {
            cells: overhead_percent([row for row in made if row["cells_of"] == cells]) for cells in bench.libraries
        },
        "timing": timing(bench),
        "shells": shells(bench),
        "verification": verification(bench),
        "energy": energies(bench),
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
