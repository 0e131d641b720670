"""Every block of every design against the golden model: naive model, emitted Verilog, netlist of gates."""

from __future__ import annotations

from random import Random

import pytest

from elmoe.errors import ConfigError
from elmoe.rtl import dot, pe, scale, vectors
from elmoe.rtl.behaviour import run_behavioural
from elmoe.rtl.blocks import block_named, blocks
from elmoe.rtl.designs import Design
from elmoe.rtl.emit import FULL_ADDER_VERILOG, emit
from elmoe.rtl.icarus import Outcome, run_vectors
from elmoe.rtl.synth import synthesise
from elmoe.rtl.vectors import Vectors
from rtl.conftest import needs_icarus

EVERY = [(block.name, design) for block in blocks().values() for design in block.designs]
names = [f"{name}-{design.value}" for name, design in EVERY]
IN_VERILOG = [(name, d) for name, d in EVERY if name not in {"lane", "pair", "dot32_own_encoders"}]
"""Lanes run inside the PE (test_pe.py); the others for comparison in `make verify`."""
SHORT = {"scale": 2_000, "dot32": 1_700}
"""Cycles of the structural levels here; `make verify` runs them all."""


def given(name: str, design: Design) -> Vectors:
    whole = vectors.vectors(name, design)
    return whole.head(SHORT.get(name, len(whole)))


def assert_equal(found: Outcome) -> None:
    assert found.compared > 0
    assert found.mismatches == 0, found.first


@pytest.mark.parametrize(("name", "design"), EVERY, ids=names)
def test_naive_model(name, design):
    whole = vectors.vectors(name, design)
    if name == "unit":  # all of them in Verilog
        whole = Vectors(whole.inputs[::5], whole.expected[::5])
    elif name == "scale":
        whole = whole.head(6_000)
    assert_equal(run_behavioural(block_named(name), design, whole))


@needs_icarus
@pytest.mark.parametrize(("name", "design"), IN_VERILOG, ids=[f"{name}-{design.value}" for name, design in IN_VERILOG])
def test_emitted_verilog(name, design, yosys):
    made = emit(block_named(name), design, yosys)
    assert_equal(run_vectors(made.top, [made.verilog], made.ports, given(name, design)))


@needs_icarus
@pytest.mark.parametrize(
    ("name", "design"),
    [
        ("unit", Design.AUGMENTED),
        ("dot32", Design.AUGMENTED),
        ("column", Design.AUGMENTED),
    ],
)
def test_netlist_of_gates(name, design, yosys):
    made = emit(block_named(name), design, yosys)
    netlist = synthesise(made.verilog, made.top, yosys)
    assert_equal(run_vectors(made.top, [netlist.verilog, FULL_ADDER_VERILOG], made.ports, given(name, design)))


def test_units_see_every_input():
    whole = vectors.vectors("unit", Design.AUGMENTED)
    seen = {tuple(sorted(cycle.items())) for cycle in whole.inputs}
    assert len(seen) == 256 * 16 * 3  # activations, nibbles, roles
    assert len(whole) == 256 * 256 * 3  # every code in every role


def test_dot_products_see_every_code_in_every_lane():
    design = Design.AUGMENTED
    for precision in vectors._precisions(design):
        lanes: list[set[int]] = [set() for _ in range(32)]
        for item in vectors._passes(design, Random(1), [precision]):
            for lane, code in zip(lanes, item.codes, strict=True):
                lane.add(code)
        assert all(len(lane) == 256 for lane in lanes)


def test_vectors_know_the_pipeline():
    assert dot.DOT_LATENCY == vectors.DOT_CYCLES
    latencies = (vectors.SCALE_CYCLES, vectors.TERM_CYCLES, vectors.ADD_CYCLES)
    assert latencies == (scale.SCALE_LATENCY, scale.TERM_LATENCY, scale.ADD_LATENCY)
    assert pe.WRITE_CYCLES + 1 == pe.PIPELINE_CYCLES


def test_unknown_block():
    with pytest.raises(ConfigError, match="unknown block 'dot33'; known are unit, dot32, "):
        block_named("dot33")
