"""RTL against the golden model, level by level; every level runs the same vectors.

behavioural  Amaranth's simulator on the naive model
verilog      Icarus Verilog on the emitted Verilog
netlist      Icarus Verilog on the synthesised netlist: a library's cells, or generic gates without one
sdf          the netlist with delays at 1 GHz, on a subset (library and OpenSTA needed)

The whole PE runs jobs of random layers behind memories that answer at once and at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from elmoe.errors import ConfigError
from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import Float16, Float32, Int8, quantize
from elmoe.rtl import icarus, timing
from elmoe.rtl.behaviour import run_behavioural
from elmoe.rtl.blocks import Block
from elmoe.rtl.cell_models import cell_models
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.emit import FULL_ADDER_VERILOG, emit
from elmoe.rtl.icarus import Outcome
from elmoe.rtl.liberty import Library
from elmoe.rtl.pe_bench import AtOnce, AtRandom, PeRun, emit_pe, run_behavioural_pe, run_icarus_pe
from elmoe.rtl.synth import synthesise
from elmoe.rtl.tile import Operands, PeShape, operands
from elmoe.rtl.vectors import Vectors, vectors
from elmoe.rtl.yosys import Yosys, find_yosys

SDF_CYCLES = 400
"""Of a block's vectors that run with delays."""
SMALL_PE = PeShape(rows=2, columns=4, port_bits=128, row_blocks=2)
PE = "pe"


class Level(Enum):
    """What is simulated."""

    BEHAVIOURAL = "behavioural"
    VERILOG = "verilog"
    NETLIST = "netlist"
    SDF = "sdf"


@dataclass(frozen=True)
class Check:
    """One block at one level."""

    block: str
    design: Design
    level: Level
    outcome: Outcome
    skipped: str = ""
    """Why it did not run."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "block": self.block,
            "design": self.design.value,
            "level": self.level.value,
            "cycles": self.outcome.cycles,
            "compared": self.outcome.compared,
            "mismatches": self.outcome.mismatches,
            "first_mismatch": self.outcome.first,
            "skipped": self.skipped,
        }


@dataclass
class Tools:
    """What verification runs with; Yosys is looked for when it is first needed."""

    yosys_binary: str | None = None
    library: Library | None = None
    _yosys: Yosys | None = None

    @property
    def yosys(self) -> Yosys:
        """ConfigError where there is none."""
        self._yosys = self._yosys or find_yosys(self.yosys_binary)
        return self._yosys

    def missing(self, level: Level) -> str:
        """Why a level cannot run here; empty where it can."""
        if level is not Level.BEHAVIOURAL and not icarus.available():
            return f"Icarus Verilog is not installed; {icarus.INSTALL}"
        if level is Level.SDF and self.library is None:
            return "no standard-cell library; give --liberty"
        if level is Level.SDF and not timing.available():
            return f"OpenSTA is not installed; {timing.INSTALL}"
        return ""


def check_block(block: Block, design: Design, level: Level, tools: Tools) -> Check:
    """One block; skipped where a tool is missing."""
    if reason := tools.missing(level):
        return Check(block.name, design, level, Outcome(0, 0, 0, ""), reason)
    given = vectors(block.name, design)
    if level is Level.BEHAVIOURAL:
        return Check(block.name, design, level, run_behavioural(block, design, given))
    return Check(block.name, design, level, _run_verilog(block, design, level, tools, given))


def _run_verilog(block: Block, design: Design, level: Level, tools: Tools, given: Vectors) -> Outcome:
    made = emit(block, design, tools.yosys)
    top, ports = made.top, made.ports
    if level is Level.VERILOG:
        return icarus.run_vectors(top, [made.verilog], ports, given)
    netlist = synthesise(made.verilog, top, tools.yosys, tools.library)
    if tools.library is None:
        return icarus.run_vectors(top, [netlist.verilog, FULL_ADDER_VERILOG], ports, given)
    sources = [netlist.verilog, cell_models(tools.library, netlist.by_cell)]
    if level is Level.NETLIST:
        return icarus.run_vectors(top, sources, ports, given)
    delays = timing.analyse(netlist, top, tools.library).sdf
    return icarus.run_vectors(top, sources, ports, given.head(SDF_CYCLES), sdf=delays)


def random_layer(rows: int, outputs: int, inputs: int, seed: int) -> tuple[tuple[Int8, Float32], tuple[Int8, Float16]]:
    """Activations [rows, inputs] and weights [outputs, inputs] with their scales; groups differ by powers of four."""
    rng = np.random.default_rng(seed)
    spread = (4.0 ** rng.integers(-6, 3, size=inputs // 32)).repeat(32)
    x = rng.normal(size=(rows, inputs)) * spread
    w = rng.normal(size=(outputs, inputs)) / spread[::-1]
    return quantize_activations(x.astype(np.float32)), quantize(w.astype(np.float32))


def random_operands(
    shape: PeShape, design: Design, precision: Precision, size: tuple[int, int, int], seed: int
) -> Operands:
    """A job of random numbers, `size` rows x outputs x inputs."""
    return operands(shape, design, precision, *random_layer(*size, seed))


def pe_jobs(shape: PeShape, design: Design) -> list[Operands]:
    """Jobs of both precisions, one and several blocks, groups and column tiles, and shapes that need padding."""
    rows, columns = shape.rows * shape.row_blocks, shape.columns
    sizes = [
        (Precision.W4, (rows - 1, columns + 2, 96)),
        (Precision.W8, (rows // 2, columns, 64)),
        (Precision.W8, (rows, 2 * columns + 1, 160)),
        (Precision.W4, (1, columns, 32)),
    ]
    return [random_operands(shape, design, precision, size, k) for k, (precision, size) in enumerate(sizes)]


def check_pe(design: Design, level: Level, tools: Tools, shape: PeShape = SMALL_PE) -> Check:
    """The whole PE: results of all jobs in order, with memories at once and at random."""
    if level is Level.BEHAVIOURAL:
        return Check(PE, design, level, _run_pe(shape, design, _behavioural_runs))
    if reason := tools.missing(level):
        return Check(PE, design, level, Outcome(0, 0, 0, ""), reason)
    if level is not Level.VERILOG:
        return Check(PE, design, level, Outcome(0, 0, 0, ""), "its lanes are checked as blocks at this level")
    text = emit_pe(design, shape, tools.yosys)
    return Check(PE, design, level, _run_pe(shape, design, lambda *jobs: _icarus_runs(text, *jobs)))


Runs = Callable[[PeShape, Design, Sequence[Operands]], Iterator[PeRun]]


def _behavioural_runs(shape: PeShape, design: Design, jobs: Sequence[Operands]) -> Iterator[PeRun]:
    for memories in (AtOnce(), AtRandom(1), AtRandom(2, 0.3)):
        yield run_behavioural_pe(design, shape, jobs, memories)


def _icarus_runs(text: str, shape: PeShape, _: Design, jobs: Sequence[Operands]) -> Iterator[PeRun]:
    for share in (1.0, 0.6):
        yield run_icarus_pe(text, shape, jobs, share)


def _run_pe(shape: PeShape, design: Design, runs: Runs) -> Outcome:
    jobs = pe_jobs(shape, design)
    wanted = [word for item in jobs for word in item.results]
    cycles = compared = mismatches = 0
    first = ""
    for run in runs(shape, design, jobs):
        cycles += run.finished[-1] + 1
        compared += len(wanted)
        wrong = [k for k, (found, word) in enumerate(zip(run.results, wanted, strict=True)) if found != word]
        mismatches += len(wrong)
        first = first or (f"result {wrong[0]}" if wrong else "")
    return Outcome(cycles, compared, mismatches, first)


def levels_named(names: Sequence[str] | None) -> list[Level]:
    """Levels by name, all without; ConfigError names the known ones."""
    known = {level.value: level for level in Level}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"unknown level {name!r}; known are {', '.join(known)}")
    return [known[name] for name in names] if names else list(Level)
