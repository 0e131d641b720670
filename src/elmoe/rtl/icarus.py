"""Running Verilog of a block on vectors in Icarus Verilog: emitted, synthesised, or synthesised with SDF delays.

The test bench is written here; expected outputs are in its file of vectors, and it counts mismatches itself. One cycle
is 1 ns: inputs change INPUT_NS after the clock edge, outputs are compared just before the next one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elmoe.errors import ConfigError, InternalError
from elmoe.rtl.blocks import Ports
from elmoe.rtl.vectors import Cycle, Vectors

INSTALL = "apt-get install iverilog"
INPUT_NS, COMPARE_NS = 0.06, 0.98
"""Clock to output of the flip-flop before an input, and set-up of the one behind an output."""


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    cycles: int
    compared: int
    mismatches: int
    first: str
    """Of the mismatches, in words."""


def available() -> bool:
    """Whether Icarus Verilog is installed."""
    return shutil.which("iverilog") is not None and shutil.which("vvp") is not None


def run_vectors(
    top: str, sources: Sequence[str], ports: Ports, given: Vectors, sdf: str | None = None, vcd: Path | None = None
) -> Outcome:
    """Simulate module `top` of the Verilog `sources` on vectors; `vcd` is written where asked for.

    Raises ConfigError where Icarus Verilog is missing, InternalError where it refuses the Verilog.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vectors.hex").write_text(_hex(ports, given), encoding="utf-8")
        files = {"testbench.v": _testbench(top, ports, len(given), sdf is not None, vcd), **_numbered(sources)}
        if sdf is not None:
            (folder / "delays.sdf").write_text(sdf, encoding="utf-8")
        output = simulate(folder, files, specify=sdf is not None)
    found = re.search(r"compared (\d+) mismatches (\d+)", output)
    if found is None:
        raise InternalError(f"the simulation of {top} did not finish: {' '.join(output.split()[-20:])}")
    first = re.search(r"^first: (.*)$", output, re.MULTILINE)
    return Outcome(len(given), int(found[1]), int(found[2]), first[1] if first else "")


def simulate(folder: Path, files: Mapping[str, str], specify: bool = False) -> str:
    """Compile and run the files in a folder, the first one on top; what was printed."""
    if not available():
        raise ConfigError(f"Icarus Verilog is not installed; {INSTALL}")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    flags = ["-gspecify", "-Ttyp"] if specify else []
    compile_ = ["iverilog", "-g2012", *flags, "-o", "run.vvp", *files]
    for command in (compile_, ["vvp", "-n", "run.vvp"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise InternalError(f"{command[0]} failed: {lines[0]}")
    return done.stdout


def _numbered(sources: Sequence[str]) -> dict[str, str]:
    return {f"source{k}.v": text for k, text in enumerate(sources)}


def _hex(ports: Ports, given: Vectors) -> str:
    """One line per cycle, from the highest bits: inputs, then every output with a bit that says whether to compare."""
    lines = []
    for inputs, expected in zip(given.inputs, given.expected, strict=True):
        value = _pack(0, ports.inputs, inputs)
        for name, width in ports.outputs.items():
            wanted = (expected or {}).get(name)
            value = value << (width + 1) | (0 if wanted is None else 1 << width | wanted & ((1 << width) - 1))
        lines.append(f"{value:x}")
    return "\n".join(lines) + "\n"


def _pack(value: int, widths: Mapping[str, int], values: Cycle) -> int:
    for name, width in widths.items():
        value = value << width | values[name] & ((1 << width) - 1)
    return value


def _testbench(top: str, ports: Ports, cycles: int, sdf: bool, vcd: Path | None) -> str:
    inputs = [f"reg [{width - 1}:0] {name};" for name, width in ports.inputs.items()]
    outputs = [
        f"wire [{width - 1}:0] {name}; reg [{width - 1}:0] {name}_want; reg {name}_check;"
        for name, width in ports.outputs.items()
    ]
    fields = [*ports.inputs, *(f"{name}_check, {name}_want" for name in ports.outputs)]
    checks = [
        f"if ({name}_check) begin compared = compared + 1; if ({name} !== {name}_want) begin "
        f'if (mismatches == 0) $display("first: cycle %0d: {name} is %0h, not %0h", i, {name}, {name}_want); '
        "mismatches = mismatches + 1; end end"
        for name in ports.outputs
    ]
    width = sum(ports.inputs.values()) + sum(size + 1 for size in ports.outputs.values())
    pins = ", ".join(f".{name}({name})" for name in ("clk", *ports.inputs, *ports.outputs))
    start = ['$readmemh("vectors.hex", lines);']
    start += ['$sdf_annotate("delays.sdf", dut);'] if sdf else []
    start += [f'$dumpfile("{vcd}"); $dumpvars(1, dut);'] if vcd is not None else []
    return f"""`timescale 1ns/1fs
module testbench;
  reg clk = 0; reg [{width - 1}:0] lines [0:{cycles - 1}]; integer i, compared = 0, mismatches = 0;
  {" ".join(inputs + outputs)}
  {top} dut({pins});
  initial begin
    {" ".join(start)}
    for (i = 0; i < {cycles}; i = i + 1) begin
      #{INPUT_NS} {{{", ".join(fields)}}} = lines[i];
      #{0.5 - INPUT_NS:g} clk = 0;
      #{COMPARE_NS - 0.5:g} {" ".join(checks)}
      #{1 - COMPARE_NS:g} clk = 1;
    end
    #1 $display("compared %0d mismatches %0d", compared, mismatches);
    $finish;
  end
endmodule
"""
