"""Long checks of `make verify`: every vector at every level, the full-size PE, and the figures that ASAP7's cells give.

In `make test` all of it is skipped unless ELMOE_LONG is set; what needs ASAP7 is also skipped where that is not there.
"""

from __future__ import annotations

import os

import pytest

from elmoe.rtl.blocks import block_named, blocks
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.emit import emit, verilog
from elmoe.rtl.pe_bench import run_icarus_pe
from elmoe.rtl.synth import synthesise
from elmoe.rtl.tile import PeShape
from elmoe.rtl.timing import analyse
from elmoe.rtl.verify import Level, Tools, check_block, check_pe, random_operands
from rtl.conftest import needs_icarus, needs_opensta

pytestmark = [
    pytest.mark.verify,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("ELMOE_LONG" not in os.environ, reason="long; run make verify"),
]
EVERY = [(block.name, design) for block in blocks().values() for design in block.designs]
names = [f"{name}-{design.value}" for name, design in EVERY]


@pytest.fixture(scope="module")
def netlists(asap7, yosys):
    """Block and design -> netlist, made once."""
    made = {}

    def of(name, design):
        if (name, design) not in made:
            text = emit(block_named(name), design, yosys)
            made[name, design] = synthesise(text.verilog, text.top, yosys, asap7)
        return made[name, design]

    return of


@needs_icarus
@pytest.mark.parametrize("level", [Level.BEHAVIOURAL, Level.VERILOG, Level.NETLIST])
@pytest.mark.parametrize(("name", "design"), EVERY, ids=names)
def test_every_vector_without_a_library(name, design, level):
    found = check_block(block_named(name), design, level, Tools())
    assert (found.outcome.mismatches, found.skipped) == (0, ""), found.outcome.first


@needs_icarus
@needs_opensta
@pytest.mark.parametrize("level", [Level.NETLIST, Level.SDF])
@pytest.mark.parametrize("name", ["unit", "dot32", "scale", "lane"])
def test_every_vector_on_asap7(name, level, asap7):
    found = check_block(block_named(name), Design.AUGMENTED, level, Tools(library=asap7))
    assert (found.outcome.mismatches, found.skipped) == (0, ""), found.outcome.first


@needs_icarus
@pytest.mark.parametrize("design", [Design.AUGMENTED, Design.CONVENTIONAL])
def test_the_small_pe(design):
    found = check_pe(design, Level.VERILOG, Tools())
    assert found.outcome.mismatches == 0


@needs_icarus
def test_the_full_pe(yosys):
    """16 x 32 x 32, behavioural lanes: gates of 512 lanes are more than Icarus Verilog holds in memory."""
    from elmoe.rtl.pe import Lane, Pe

    shape, design = PeShape(), Design.AUGMENTED
    lane = verilog(Lane(design, False, shape.slots), "lane", yosys)
    text = lane + verilog(Pe(design, shape, lanes="lane"), "pe", yosys, reset=True)
    sizes = ((Precision.W8, (20, 64, 64)), (Precision.W4, (16, 32, 64)))
    jobs = [random_operands(shape, design, precision, size, 1) for precision, size in sizes]
    run = run_icarus_pe(text, shape, jobs)
    assert run.results == [word for job in jobs for word in job.results]


def test_area_figures(netlists):
    """Those of the issue: dot32 at most 469 um2, augmentation within half a percent, 1 GHz (below)."""
    dot = {design: netlists("dot32", design).area_um2 for design in Design}
    assert dot[Design.AUGMENTED] <= 469
    assert abs(dot[Design.AUGMENTED] / dot[Design.CONVENTIONAL] - 1) < 0.005
    column = {design: netlists("nibble_column", design).area_um2 for design in (Design.AUGMENTED, Design.CONVENTIONAL)}
    array = {design: 512 * dot[design] + 32 * column[design] for design in column}
    assert array[Design.AUGMENTED] / array[Design.CONVENTIONAL] - 1 < 0.005
    assert dot[Design.NATIVE_4X8] < dot[Design.CONVENTIONAL] < dot[Design.NATIVE_8X8]


@needs_opensta
@pytest.mark.parametrize(("name", "design"), EVERY, ids=names)
def test_one_gigahertz_before_layout(netlists, asap7, name, design):
    found = analyse(netlists(name, design), block_named(name).file_name(design), asap7)
    assert found.slack_ps >= 0, (found.start, found.end)
