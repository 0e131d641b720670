"""Verilog of a block: Amaranth to RTLIL to Verilog-2001, one file per block, the same bytes in every run."""

from __future__ import annotations

import importlib.metadata
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmoe.rtl.blocks import Block, Ports, ports_of
from elmoe.rtl.designs import FULL_ADDER, Design
from elmoe.rtl.yosys import Yosys

FULL_ADDER_VERILOG = f"""\
module {FULL_ADDER}(input a, input b, input c, output carry_n, output sum_n);
  assign carry_n = ~((a & b) | (a & c) | (b & c));
  assign sum_n = ~(a ^ b ^ c);
endmodule
"""
TO_VERILOG = (
    "read_rtlil design.il",
    "proc -noopt",
    "opt_clean",
    "memory_collect",
    "setattr -unset init w:*",
    "setattr -unset src w:* c:*",
)


@dataclass(frozen=True)
class Emitted:
    """Verilog of one block."""

    top: str
    """Its module."""
    verilog: str
    ports: Ports


def emit(block: Block, design: Design, yosys: Yosys) -> Emitted:
    """The structural block, with the full adder as a module of its own."""
    component, top = block.build(design, True), block.file_name(design)
    return Emitted(top, verilog(component, top, yosys), ports_of(component))


def verilog(component: Any, name: str, yosys: Yosys, reset: bool = False) -> str:
    """Verilog of a component as module `name`: its ports, `clk`, and `rst` (synchronous) where asked for."""
    from amaranth.back import rtlil
    from amaranth.hdl import ClockDomain, Module, Value

    top = Module()
    top.domains.sync = domain = ClockDomain("sync", reset_less=not reset)
    top.submodules.block = component
    ports = {"clk": (domain.clk, None)} | ({"rst": (domain.rst, None)} if reset else {})
    leaves = component.signature.flatten(component)
    ports |= {"__".join(map(str, path)): (Value.cast(value), None) for path, _, value in leaves}
    text = rtlil.convert(top, name=name, ports=ports, emit_src=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "design.il").write_text(text, encoding="utf-8")
        flat = (f"hierarchy -top {name}", "flatten -noscopeinfo", "opt_clean", "write_verilog -noattr design.v")
        lines = [*TO_VERILOG, *flat]
        yosys.run(lines, place)
        made = (place / "design.v").read_text(encoding="utf-8")
    body = re.sub(r"^/\*.*?\*/\s*", "", made, flags=re.DOTALL)
    header = f"// {name}: made by elmoe {importlib.metadata.version('elmoe')}, `elmoe rtl emit`. Apache-2.0.\n"
    full_adder = FULL_ADDER_VERILOG if FULL_ADDER in body else ""
    return f"{header}{full_adder}{body}"
