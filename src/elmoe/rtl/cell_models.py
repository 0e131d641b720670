"""Verilog models of a library's cells from their Liberty functions, with the paths that SDF delays go to."""

from __future__ import annotations

from collections.abc import Iterable

from elmoe.errors import ConfigError
from elmoe.rtl.boolean import parse_function, verilog
from elmoe.rtl.liberty import Cell, Library


def cell_models(library: Library, names: Iterable[str]) -> str:
    """Modules of the named cells. Raises ConfigError for cells that are neither gates nor plain flip-flops."""
    return "`timescale 1ns/1fs\n" + "".join(_model(library.cell(name)) for name in sorted(names))


def _model(cell: Cell) -> str:
    inputs, outputs = [pin.name for pin in cell.inputs], [pin.name for pin in cell.outputs]
    register = cell.register
    if register is None and cell.is_register:
        raise ConfigError(
            f"cell {cell.name} is a latch, which netlists of elmoe rtl do not use; leave it out with --dont-use"
        )
    body, paths = [], [f"({x} => {y}) = 0;" for y in outputs for x in inputs]
    if register is not None:
        state, inverse = register.arguments
        clock = verilog(parse_function(register.attributes["clocked_on"]))
        following = verilog(parse_function(register.attributes["next_state"]))
        body += [f"reg {state};", f"wire {inverse} = ~{state};", f"always @(posedge {clock}) {state} <= {following};"]
        paths = [f"({clock} => {y}) = 0;" for y in outputs]
    body += [f"assign {pin.name} = {verilog(parse_function(pin.function))};" for pin in cell.outputs]
    ports = ", ".join([*(f"input {x}" for x in inputs), *(f"output {y}" for y in outputs)])
    lines = [*body, "specify", *paths, "endspecify"]
    return f"module {cell.name}({ports});\n" + "".join(f"  {line}\n" for line in lines) + "endmodule\n"
