"""Driving a PE: memories that stream jobs, weights and activations in, and what came out when.

The same jobs run in Amaranth's simulator (behavioural lanes) and in Icarus Verilog (emitted lanes). Memories decide
when a word is there: at once, at random, or as a model of WMEM says (the comparison with `sim/cycle.py`).
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from elmoe.errors import InternalError
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.emit import verilog
from elmoe.rtl.icarus import simulate
from elmoe.rtl.tile import PIPELINE_CYCLES, Job, Operands, PeShape
from elmoe.rtl.yosys import Yosys

STREAMS = ("job", "weights", "activations")
RESET_CYCLES = PIPELINE_CYCLES + 2
"""Delayed control has no reset of its own: `rst` is held until it is flushed."""
PATIENCE_CYCLES = 5_000
"""Without any progress a run has failed."""


class Memories(Protocol):
    """What stands around the PE."""

    def ready(self, stream: str, index: int, cycle: int) -> bool:
        """Whether word `index` of a stream is offered; once offered it stays."""

    def accepts(self, cycle: int) -> bool:
        """Whether a result would be taken."""

    def advanced(self, cycle: int) -> None:
        """The next tile has left its shadow registers for the active ones."""

    def finished(self, cycle: int) -> None:
        """The next tile's sums are in the accumulators."""


class AtOnce:
    """Everything is there."""

    def ready(self, _stream: str, _index: int, _cycle: int) -> bool:
        """Always."""
        return True

    def accepts(self, _cycle: int) -> bool:
        """Always."""
        return True

    def advanced(self, cycle: int) -> None:
        """Nothing follows."""

    def finished(self, cycle: int) -> None:
        """Nothing follows."""


class AtRandom(AtOnce):
    """Words come, and results go, in a share of the cycles."""

    def __init__(self, seed: int, share: float = 0.6) -> None:
        self._random, self._share = random.Random(seed), share

    def ready(self, _stream: str, _index: int, _cycle: int) -> bool:
        """By chance."""
        return self._random.random() < self._share

    def accepts(self, _cycle: int) -> bool:
        """By chance."""
        return self._random.random() < self._share


@dataclass
class PeRun:
    """What a PE did."""

    results: list[int] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)
    """Cycles in which tiles became active."""
    finished: list[int] = field(default_factory=list)


def job_bits(job: Job) -> int:
    """The payload of the job stream."""
    wide = int(job.precision is Precision.W8)
    return job.groups | job.column_tiles << 16 | job.blocks << 32 | wide << 40


def stream_words(jobs: Sequence[Operands]) -> dict[str, list[int]]:
    """Words of the input streams, jobs one after another."""
    return {
        "job": [job_bits(item.job) for item in jobs],
        "weights": [word for item in jobs for word in item.weight_words],
        "activations": [word for item in jobs for word in item.activation_words],
    }


def run_behavioural_pe(
    design: Design, shape: PeShape, jobs: Sequence[Operands], memories: Memories | None = None
) -> PeRun:
    """Run jobs in Amaranth's simulator. Raises InternalError when nothing moves any more."""
    from amaranth.sim import Simulator

    from elmoe.rtl.pe import Pe

    dut, run, memories = Pe(design, shape), PeRun(), memories or AtOnce()
    words, wanted = stream_words(jobs), sum(len(item.results) for item in jobs)

    async def bench(ctx: Any) -> None:
        streams = [_Feed(getattr(dut, name), name, words[name], memories) for name in STREAMS]
        cycle = quiet = 0
        while len(run.results) < wanted and quiet < PATIENCE_CYCLES:
            for feed in streams:
                feed.offer(ctx, cycle)
            ctx.set(dut.results.ready, accepts := memories.accepts(cycle))
            moved = [feed.taken(ctx) for feed in streams]
            if ctx.get(dut.results.valid) and accepts:
                run.results.append(int(ctx.get(dut.results.payload)))
                moved.append(True)
            advanced, finished = ctx.get(dut.advanced), ctx.get(dut.finished)
            await ctx.tick()
            for event, cycles, tell in (
                (advanced, run.advanced, memories.advanced),
                (finished, run.finished, memories.finished),
            ):
                if event:
                    cycles.append(cycle)
                    tell(cycle)
            cycle, quiet = cycle + 1, 0 if any(moved) else quiet + 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    if len(run.results) < wanted:
        raise InternalError(f"the PE gave {len(run.results)} of {wanted} results and stopped")
    return run


class _Feed:
    """One input stream."""

    def __init__(self, port: Any, name: str, words: Sequence[int], memories: Memories) -> None:
        self.port, self.name, self.words, self.memories = port, name, words, memories
        self.index = 0
        self.offered = False
        self._shown = -1

    def offer(self, ctx: Any, cycle: int) -> None:
        """Show the next word when it is there."""
        left = self.index < len(self.words)
        self.offered = left and (self.offered or self.memories.ready(self.name, self.index, cycle))
        ctx.set(self.port.valid, self.offered)
        if self.offered and self._shown != self.index:
            payload = self.port.payload
            ctx.set(payload.as_value() if hasattr(payload, "as_value") else payload, self.words[self.index])
            self._shown = self.index

    def taken(self, ctx: Any) -> bool:
        """Whether the PE takes it in this cycle."""
        if not (self.offered and ctx.get(self.port.ready)):
            return False
        self.index, self.offered = self.index + 1, False
        return True


def emit_pe(design: Design, shape: PeShape, yosys: Yosys) -> str:
    """Verilog of the whole PE as modules `pe` and `lane`."""
    from elmoe.rtl.pe import Lane, Pe

    lane = verilog(Lane(design, True, shape.slots), "lane", yosys)
    return lane + verilog(Pe(design, shape, lanes="lane"), "pe", yosys, reset=True)


def run_icarus_pe(text: str, shape: PeShape, jobs: Sequence[Operands], share: float = 1.0) -> PeRun:
    """Run jobs on emitted Verilog; words come and results go in a share of the cycles."""
    words, wanted = stream_words(jobs), sum(len(item.results) for item in jobs)
    widths = {"job": 41, "weights": shape.port_bits, "activations": shape.rows * (8 * 32 + 32)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stream, values in words.items():
            text_words = "\n".join(f"{value:x}" for value in values)
            (folder / f"{stream}.hex").write_text(text_words + "\n", encoding="utf-8")
        counts = {stream: (widths[stream], len(values)) for stream, values in words.items()}
        bench = _pe_testbench(counts, 32 * shape.columns, wanted, round(share * 256))
        output = simulate(folder, {"testbench.v": bench, "pe.v": text})
    run = PeRun([int(x, 16) for x in re.findall(r"^result (\w+)$", output, re.MULTILINE)])
    run.advanced, run.finished = (
        [int(x) for x in re.findall(rf"^{event} (\d+)$", output, re.MULTILINE)] for event in ("advanced", "finished")
    )
    if len(run.results) < wanted:
        raise InternalError(f"the emitted PE gave {len(run.results)} of {wanted} results and stopped")
    return run


def _pe_testbench(streams: dict[str, tuple[int, int]], result_bits: int, wanted: int, share: int) -> str:
    declared, offered, looked, taken, pins = [], [], [], [], []
    for name, (width, count) in streams.items():
        declared.append(
            f"reg [{width - 1}:0] {name}_words [0:{count - 1}]; integer {name}_index = 0; "
            f"reg {name}_valid = 0, {name}_taken; "
            f'wire {name}_ready; initial $readmemh("{name}.hex", {name}_words);'
        )
        offered.append(
            f"{name}_valid = {name}_index < {count} && ({name}_valid || $unsigned($random(seed)) % 256 < {share});"
        )
        looked.append(f"{name}_taken = {name}_valid && {name}_ready;")
        taken.append(f"if ({name}_taken) begin {name}_index = {name}_index + 1; {name}_valid = 0; idle = 0; end")
        pins.append(
            f".{name}__valid({name}_valid), .{name}__ready({name}_ready), .{name}__payload({name}_words[{name}_index])"
        )
    return f"""`timescale 1ns/1ps
module testbench;
  reg clk = 0, rst = 1, results_ready = 0; integer seed = 7, cycle = 0, idle = 0, got = 0;
  wire results_valid, advanced, finished; wire [{result_bits - 1}:0] results;
  {chr(10).join(declared)}
  pe dut(.clk(clk), .rst(rst), {", ".join(pins)}, .results__valid(results_valid), .results__ready(results_ready),
         .results__payload(results), .advanced(advanced), .finished(finished));
  initial begin
    repeat ({RESET_CYCLES}) begin #0.5 clk = 1; #0.5 clk = 0; end
    rst = 0;
    while (got < {wanted} && idle < {PATIENCE_CYCLES}) begin
      {" ".join(offered)}
      results_ready = $unsigned($random(seed)) % 256 < {share};
      #0.4 idle = idle + 1;
      if (results_valid && results_ready) begin $display("result %0h", results); got = got + 1; idle = 0; end
      if (advanced) $display("advanced %0d", cycle);
      if (finished) $display("finished %0d", cycle);
      {" ".join(looked)}
      #0.1 clk = 1; #0.1 {" ".join(taken)}
      #0.4 clk = 0; cycle = cycle + 1;
    end
    $finish;
  end
endmodule
"""
