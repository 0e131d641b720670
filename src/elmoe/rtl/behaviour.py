"""Running behavioural blocks on vectors in Amaranth's own simulator. Signed outputs come as integers."""

from __future__ import annotations

from typing import Any

from elmoe.rtl.blocks import Block, ports_of
from elmoe.rtl.designs import Design
from elmoe.rtl.icarus import Outcome
from elmoe.rtl.vectors import Vectors


def run_behavioural(block: Block, design: Design, given: Vectors) -> Outcome:
    """Simulate the behavioural block."""
    from amaranth.sim import Simulator

    dut = block.build(design, False)
    ports = ports_of(dut)
    compared = mismatches = 0
    first = ""

    async def bench(ctx: Any) -> None:
        nonlocal compared, mismatches, first
        before: dict[str, int] = {}
        for cycle, (inputs, expected) in enumerate(zip(given.inputs, given.expected, strict=True)):
            for name, value in inputs.items():
                if before.get(name) != value:
                    ctx.set(getattr(dut, name), value)
            before = inputs
            for name, wanted in (expected or {}).items():
                mask = (1 << ports.outputs[name]) - 1
                found = int(ctx.get(getattr(dut, name))) & mask
                compared += 1
                if found != wanted & mask:
                    mismatches += 1
                    first = first or f"cycle {cycle}: {name} is {found:x}, not {wanted & mask:x}"
            await ctx.tick()

    simulator = Simulator(_clocked(dut))
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    return Outcome(len(given), compared, mismatches, first)


def _clocked(dut: Any) -> Any:
    """With a clock domain also where the block has no register."""
    from amaranth.hdl import ClockDomain, Module

    top = Module()
    top.domains.sync = ClockDomain("sync")
    top.submodules.block = dut
    return top
