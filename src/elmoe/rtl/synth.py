"""Synthesis of emitted Verilog with Yosys and ABC: cells and area with a Liberty library, a transistor count without.

The same script and flags for every design, so that only the designs differ. Cell area: no wires, no clock tree, no
utilisation (`area.py` adds those). Full adders stay what the generator made them, the library's cell where it has one.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmoe.errors import InternalError
from elmoe.rtl.designs import FULL_ADDER
from elmoe.rtl.liberty import Library
from elmoe.rtl.yosys import Yosys

PERIOD_PS = 900
"""What ABC sizes gates for: the clock of 1 GHz less a flip-flop."""
TRANSISTORS = {
    "$_NOT_": 2,
    "$_NAND_": 4,
    "$_NOR_": 4,
    "$_AOI3_": 6,
    "$_OAI3_": 6,
    "$_AOI4_": 8,
    "$_OAI4_": 8,
    "$_DFF_P_": 16,
    FULL_ADDER: 24,
}
"""Static CMOS; a flip-flop as Yosys' `stat -tech cmos` has it, an inverting full adder as the mirror adder."""
GENERIC_GATES = "cmos4"
FRONT = (
    "proc",
    "opt",
    "wreduce",
    "peepopt",
    "opt_clean",
    "alumacc",
    "share",
    "opt",
    "maccmap",
    "opt",
    "setattr -unset init w:*",
)
ABC_SCRIPT = (
    "strash; ifraig; scorr; dc2; dc2; &get -n; &st; &dch; &nf; &put; buffer -c; topo; "
    "upsize -c -D {period}; dnsize -c -D {period}; stime -p"
)
FAN_OUT_OF_OUTPUTS = 4
"""Load of a primary output, in input capacitances of the library's smallest buffer."""
NETLIST = (
    "setundef -zero",
    "splitnets",
    "rename -hide",
    "rename -enumerate -pattern u% c:*",
    "rename -enumerate -pattern n% w:*",
)


@dataclass(frozen=True)
class Synthesis:
    """One block in gates."""

    cells: int
    transistors: int | None
    """Without a library."""
    area_um2: float | None
    """With one."""
    abc_delay_ps: float | None
    """ABC's own estimate of the longest path between registers; `timing.py` has OpenSTA's."""
    by_cell: Mapping[str, int]
    verilog: str
    netlist: Mapping[str, Any]
    """Yosys' JSON of the module."""

    def figures(self) -> dict[str, Any]:
        """For JSON; what was not measured is null."""
        return {
            "cells": self.cells,
            "area_um2": self.area_um2,
            "transistors": self.transistors,
            "abc_delay_ps": self.abc_delay_ps,
        }


def overhead_percent(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By block, what the augmented design costs over the conventional one: area, or transistors without a library."""
    found = {}
    sizes = {(row["block"], row["design"]): row["area_um2"] or row["transistors"] for row in rows}
    for (block, design), size in sizes.items():
        plain = sizes.get((block, "conventional"))
        if design == "augmented" and plain:
            found[block] = 100 * (size / plain - 1)
    return found


def synthesise(
    verilog: str, top: str, yosys: Yosys, library: Library | None = None, black_boxes: Sequence[str] = ()
) -> Synthesis:
    """Map one emitted module, flattened. Modules named in `black_boxes` count nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.v").write_text(verilog, encoding="utf-8")
        read = ("read_verilog in.v",) if FULL_ADDER not in verilog else _read_with_adders(folder, verilog)
        script = [*read, f"hierarchy -top {top}", "flatten -noscopeinfo", *FRONT]
        script += _generic() if library is None else _mapped(folder, library)
        cells_only = "" if library is None else "-noexpr "  # generic gates as expressions: no models are needed
        script += [*NETLIST, "write_json out.json", f"write_verilog -noattr {cells_only}-nohex -simple-lhs out.v"]
        log = yosys.run(script, folder)
        netlist = json.loads((folder / "out.json").read_text(encoding="utf-8"))["modules"][top]
        unsigned = re.sub(r"\bsigned ", "", (folder / "out.v").read_text(encoding="utf-8"))  # OpenSTA does not read it
        return _measured(netlist, unsigned, log, library, black_boxes)


def _read_with_adders(folder: Path, verilog: str) -> tuple[str, ...]:
    """The full adder as a black box: what it is mapped to must not be optimised away."""
    module = re.search(rf"module {FULL_ADDER}\b.*?endmodule\n", verilog, re.DOTALL)
    if module is None:
        raise InternalError(f"emitted Verilog uses {FULL_ADDER} and does not define it")
    (folder / "in.v").write_text(verilog.replace(module[0], ""), encoding="utf-8")
    ports = "input a, input b, input c, output carry_n, output sum_n"
    (folder / "adder.v").write_text(f"(* blackbox *) module {FULL_ADDER}({ports}); endmodule\n", encoding="utf-8")
    return ("read_verilog adder.v", "read_verilog in.v")


def _generic() -> list[str]:
    return [
        "techmap",
        "opt -fast",
        "dfflegalize -cell $_DFF_P_ x",
        "opt_clean",
        f"abc -g {GENERIC_GATES}",
        "opt_clean -purge",
    ]


def _mapped(folder: Path, library: Library) -> list[str]:
    (folder / "cells.lib").write_text(library.text(), encoding="utf-8")
    steps = "\n".join(step.strip() for step in ABC_SCRIPT.format(period=PERIOD_PS).split(";"))
    (folder / "abc.script").write_text(steps + "\n", encoding="utf-8")
    driver, pin = library.buffer()
    load = FAN_OUT_OF_OUTPUTS * next(p.capacitance for p in library.cell(driver).pins if p.name == pin)
    constraints = f"set_driving_cell {driver}\nset_load {load:.4f} [all_outputs]\n"
    (folder / "abc.constr").write_text(constraints, encoding="utf-8")
    script = []
    if (adder := library.full_adder()) is not None:
        pins = ", ".join(f".{adder[role]}({role})" for role in ("a", "b", "c", "carry_n", "sum_n"))
        ports = "input a, input b, input c, output carry_n, output sum_n"
        cell = f"module {FULL_ADDER}({ports}); {adder['cell']} _TECHMAP_REPLACE_ ({pins}); endmodule\n"
        (folder / "adder_map.v").write_text(cell, encoding="utf-8")
    else:
        logic = "assign carry_n = ~((a & b) | (a & c) | (b & c)); assign sum_n = ~(a ^ b ^ c);"
        ports = "input a, input b, input c, output carry_n, output sum_n"
        (folder / "adder_map.v").write_text(f"module {FULL_ADDER}({ports}); {logic} endmodule\n", encoding="utf-8")
    script += [f"techmap -map adder_map.v t:{FULL_ADDER}", "opt_clean", "techmap", "opt -fast"]
    (folder / "flops.lib").write_text(library.only(library.flip_flop()).text(), encoding="utf-8")
    script += ["dfflibmap -liberty flops.lib", "opt"]
    return [*script, "abc -liberty cells.lib -script abc.script -constr abc.constr", "opt_clean -purge"]


def _measured(
    netlist: Mapping[str, Any], verilog: str, log: str, library: Library | None, black_boxes: Sequence[str]
) -> Synthesis:
    by_cell: dict[str, int] = {}
    for cell in netlist["cells"].values():
        by_cell[cell["type"]] = by_cell.get(cell["type"], 0) + 1
    by_cell = {kind: count for kind, count in sorted(by_cell.items()) if kind not in black_boxes}
    delays = re.findall(r"Delay = *([\d.]+) ps", log)
    transistors = area = None
    if library is None:
        unknown = set(by_cell) - set(TRANSISTORS)
        if unknown:
            raise InternalError(f"the generic netlist has cells whose transistors are not known: {', '.join(unknown)}")
        transistors = sum(TRANSISTORS[kind] * count for kind, count in by_cell.items())
    else:
        area = sum(library.cell(kind).area * count for kind, count in by_cell.items())
    return Synthesis(
        cells=sum(by_cell.values()),
        transistors=transistors,
        area_um2=area,
        abc_delay_ps=float(delays[-1]) if delays else None,
        by_cell=by_cell,
        verilog=verilog,
        netlist=netlist,
    )
