"""Static timing and SDF delays of a synthesised block with OpenSTA (Debian: opensta), before layout: no wires.

Inputs come from flip-flops and outputs go to flip-flops of the same clock. OpenSTA's power reports are not used: for
these netlists they are wrong by more than a factor of ten (docs/rtl.md).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from elmoe.errors import ConfigError, InternalError
from elmoe.rtl.liberty import Library
from elmoe.rtl.synth import FAN_OUT_OF_OUTPUTS, Synthesis

INSTALL = "apt-get install opensta"
PS_PER_NS = 1000
PERIOD_PS = 1000
INPUT_PS, SETUP_PS = 60, 20
"""Clock to output of a flip-flop before an input; set-up time of the one behind an output."""


@dataclass(frozen=True)
class Timing:
    """Of one block at PERIOD_PS."""

    slack_ps: float
    """Of the longest path; negative where the clock is missed."""
    start: str
    end: str
    sdf: str
    """Delays for Icarus Verilog: the largest of each path over its conditions, none of wires."""

    @property
    def shortest_period_ps(self) -> float:
        """That the block would run at."""
        return PERIOD_PS - self.slack_ps


def available() -> bool:
    """Whether OpenSTA is installed."""
    return shutil.which("sta") is not None


def analyse(made: Synthesis, top: str, library: Library) -> Timing:
    """Time a netlist. Raises ConfigError where OpenSTA is missing, InternalError where it fails."""
    if not available():
        raise ConfigError(f"OpenSTA is not installed; {INSTALL}")
    driver, pin = library.buffer()
    load = FAN_OUT_OF_OUTPUTS * next(p.capacitance for p in library.cell(driver).pins if p.name == pin)
    script = f"""read_liberty cells.lib
read_verilog netlist.v
link_design {top}
create_clock -name clk -period {PERIOD_PS} [get_ports clk]
set_input_delay {INPUT_PS} -clock clk [all_inputs]
set_output_delay {SETUP_PS} -clock clk [all_outputs]
set_driving_cell -lib_cell {driver} [all_inputs]
set_load {load:.4f} [all_outputs]
report_checks -path_delay max -digits 1
write_sdf -divider . -no_timestamp delays.sdf
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (("cells.lib", library.text()), ("netlist.v", made.verilog), ("run.tcl", script)):
            (folder / file).write_text(text, encoding="utf-8")
        command = ["sta", "-no_splash", "-exit", "run.tcl"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        found = {key: re.search(pattern, output, re.MULTILINE) for key, pattern in _PATTERNS.items()}
        if done.returncode or not all(found.values()) or not (folder / "delays.sdf").exists():
            error = re.search(r"^Error.*$", output, re.MULTILINE)
            raise InternalError(f"OpenSTA failed on {top}: {error[0] if error else output.strip()[-200:]}")
        sdf = simple_sdf((folder / "delays.sdf").read_text(encoding="utf-8"))
    slack, start, end = (match[1] for match in found.values() if match)
    return Timing(float(slack), start, end, sdf)


_PATTERNS = {"slack": r"(-?[\d.]+)\s+slack", "start": r"^Startpoint: (\S+)", "end": r"^Endpoint: (\S+)"}


def simple_sdf(text: str) -> str:
    """OpenSTA's SDF as Icarus Verilog reads it: one unconditional delay per path, no interconnect, no checks."""
    lines = ["(DELAYFILE", ' (SDFVERSION "3.0")', " (DIVIDER .)", " (TIMESCALE 1ns)"]  # Icarus reads no other
    pattern = r'\(CELL\s+\(CELLTYPE "(\w+)"\)\s+\(INSTANCE (\S+)\)(.*?)(?=\(CELL\s|\Z)'
    for kind, instance, body in re.findall(pattern, text, re.DOTALL):
        worst: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for source, target, rise, fall in re.findall(_PATH, body):
            edge = source if not source.startswith("(") else source.strip("()").split()[1]
            delays = worst[edge, target]
            for k, triple in enumerate((rise, fall or rise)):
                delays[k] = max([delays[k], *(float(x) for x in triple.split(":") if x)])
        if worst:
            lines += [f' (CELL (CELLTYPE "{kind}") (INSTANCE {instance}) (DELAY (ABSOLUTE']
            lines += [
                f"  (IOPATH {a} {y} ({d[0] / PS_PER_NS:.6f}) ({d[1] / PS_PER_NS:.6f}))" for (a, y), d in worst.items()
            ]
            lines += [" )))"]
    return "\n".join([*lines, ")"]) + "\n"


_PATH = r"\(IOPATH (\w+|\([a-z]+ \w+\)) (\w+) \(([^()]*)\)(?: \(([^()]*)\))?\)"
