"""Cycle counts of the RTL and of the simulator's cycle mode on the same schedules of tiles: equal, to the cycle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.pe_bench import PeRun, run_behavioural_pe
from elmoe.rtl.tile import PIPELINE_CYCLES, Operands, PeShape, operands
from elmoe.rtl.verify import random_layer
from elmoe.rtl.wmem import DoubleBuffer, StreamedTask
from elmoe.sim.cycle import LayerTiming, simulate_layer
from elmoe.sim.dataflow import DOWN, GATE_UP, Dataflow
from elmoe.sim.layer_pass import LayerPass
from elmoe.sim.spec import Machine, load_machine

FLAT = PeShape(rows=2, columns=4, port_bits=128, row_blocks=2)
TALL = PeShape(rows=1, columns=4, port_bits=128, row_blocks=12)
"""Many blocks of rows per tile: products take longer than loading."""
D, F = 96, 96
"""Three groups per column tile: long enough for its results to leave meanwhile, which the simulator does not model."""
BYTES = {Precision.W8: 8.5 / 8, Precision.W4: 4.5 / 8}


def machine(shape: PeShape, wmem_bytes: int) -> Machine:
    """One PE behind one memory."""
    base, why = load_machine("xpu"), "test"
    compute = base.compute.changed(
        why,
        pes=1,
        rows=shape.rows,
        columns=shape.columns,
        inputs=32,
        cycles_w4=1,
        wmem_bytes=wmem_bytes,
        wmem_port_bytes=shape.port_bits // 8,
        pipeline_cycles=PIPELINE_CYCLES,
    )
    return replace(base, compute=compute)


def played(
    made: Machine, rows: list[int], precision: Precision, gb_per_s: float
) -> tuple[LayerTiming, Dataflow, LayerPass]:
    """The experts of a layer, all misses, in the simulator."""
    bits = 8 if precision is Precision.W8 else 4
    layer = LayerPass(
        rows=tuple(rows),
        hits=(False,) * len(rows),
        tokens=max(rows),
        hidden=D,
        expert_hidden=F,
        hb_bytes=0,
        hit_ext_bytes=0,
        miss_bytes=round(3 * D * F * BYTES[precision]),
        hb_bits=4,
        miss_bits=bits,
    )
    return simulate_layer(made, layer, gb_per_s), Dataflow(made, D, F), layer


def schedule(
    shape: PeShape, layer: LayerPass, flow: Dataflow, precision: Precision
) -> tuple[list[StreamedTask], list[Operands]]:
    """The simulator's order: gate/up of an expert before down of the one before."""
    experts = layer.schedule("grouped")
    tasks: list[StreamedTask] = []
    jobs: list[Operands] = []
    places: dict[int, int] = {}
    for now, before in zip([*experts, None], [None, *experts], strict=True):
        for expert, step in ((now, GATE_UP), (before, DOWN)):
            if expert is None:
                continue
            rows = layer.rows[expert]
            share = layer.miss_bytes * 2 // 3
            outputs, inputs = flow.shape(step)
            if step == GATE_UP:
                places[expert] = len(tasks)
            tasks.append(
                StreamedTask(
                    tiles=flow.data_tiles(step),
                    tile_words=shape.tile_words(precision),
                    weight_bytes=share if step == GATE_UP else layer.miss_bytes - share,
                    tiles_per_half=flow.tiles_per_half(flow.tile_bytes(layer.miss_bytes)),
                    waits_for=places[expert] if step == DOWN else None,
                    vector_cycles=int(flow.owned_vector_ns(np.asarray(float(rows)))) if step == GATE_UP else 0,
                )
            )
            x, w = random_layer(rows, outputs, inputs, seed=expert)
            jobs.append(operands(shape, Design.AUGMENTED, precision, x, w))
    return tasks, jobs


@pytest.mark.parametrize(
    ("shape", "rows", "gb_per_s", "wmem_bytes", "precision"),
    [
        (FLAT, [1, 4], 1e6, 4096, Precision.W4),  # bound by WMEM's port
        (FLAT, [4], 1e6, 4096, Precision.W8),
        (FLAT, [2, 0, 4], 9.7, 4096, Precision.W4),  # bound by the memory
        (FLAT, [2], 9.7, 4096, Precision.W8),
        (FLAT, [3], 14.3, 1024, Precision.W8),  # small halves, near the port's pace
        (TALL, [11, 12], 1e6, 4096, Precision.W4),  # bound by the array
        (TALL, [12], 1e6, 4096, Precision.W8),
    ],
)
def test_rtl_and_simulator_agree_to_the_cycle(shape, rows, gb_per_s, wmem_bytes, precision):
    timing, flow, layer = played(machine(shape, wmem_bytes), rows, precision, gb_per_s)
    tasks, jobs = schedule(shape, layer, flow, precision)
    memory = DoubleBuffer(tasks, gb_per_s)
    run = run_behavioural_pe(Design.AUGMENTED, shape, jobs, memory)
    assert run.results == [word for job in jobs for word in job.results]
    assert timing.total_ns == max(memory.task_finished[-1], run.finished[-1])
    assert spans(run, memory, jobs) == [
        (event.start_ns, event.end_ns) for event in timing.events if event.resource == "PE"
    ]
    fetched = [event.end_ns for event in timing.events if event.resource == "EXT"]
    assert fetched == pytest.approx(memory.arrived)


def spans(run: PeRun, memory: DoubleBuffer, jobs: list[Operands]) -> list[tuple[int, int]]:
    """First and last cycle of products of every half of WMEM, from the RTL's own events."""
    found, tile = [], 0
    for half in memory.halves:
        job = jobs[half.task].job
        cycles = job.blocks * (2 if job.precision is Precision.W8 else 1)
        found.append((run.advanced[tile], run.advanced[tile + half.tiles - 1] + cycles))
        tile += half.tiles
    return found
