"""Synthesis: transistors without a library, area with one, the same in every run; and energy by hand."""

from __future__ import annotations

import pytest

from elmoe.errors import ConfigError, InternalError
from elmoe.rtl import yosys as yosys_module
from elmoe.rtl.blocks import block_named
from elmoe.rtl.cell_models import cell_models
from elmoe.rtl.designs import Design
from elmoe.rtl.emit import emit
from elmoe.rtl.energy import energy
from elmoe.rtl.icarus import run_vectors
from elmoe.rtl.liberty import Library, read_library
from elmoe.rtl.synth import TRANSISTORS, overhead_percent, synthesise
from elmoe.rtl.tables import interpolated, transition_energy
from elmoe.rtl.timing import simple_sdf
from elmoe.rtl.vectors import Vectors, vectors
from elmoe.rtl.yosys import find_yosys
from rtl.conftest import needs_icarus
from rtl.small_library import small_library


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    path = tmp_path_factory.mktemp("library") / "small.lib"
    path.write_text(small_library(), encoding="utf-8")
    return read_library([path])


def made(name, design, yosys, library=None):
    text = emit(block_named(name), design, yosys)
    return text, synthesise(text.verilog, text.top, yosys, library)


def test_emitted_verilog_and_netlists_repeat_to_the_byte(yosys, library):
    for cells in (None, library):
        (first, one), (second, two) = (made("unit", Design.AUGMENTED, yosys, cells) for _ in range(2))
        assert first.verilog == second.verilog
        assert one.verilog == two.verilog
        assert one.by_cell == two.by_cell


def test_transistors(yosys):
    """The claim in its smallest form: what alignment and the constant bit add to a dot product."""
    sizes = {design: made("dot32", design, yosys)[1].transistors for design in (Design.AUGMENTED, Design.CONVENTIONAL)}
    assert 30_000 < sizes[Design.CONVENTIONAL] < 45_000
    assert abs(sizes[Design.AUGMENTED] / sizes[Design.CONVENTIONAL] - 1) < 0.005


def test_designs_in_order(yosys):
    units = {design: made("unit", design, yosys)[1].transistors for design in Design}
    ordered = [Design.NATIVE_4X8, Design.CONVENTIONAL, Design.AUGMENTED, Design.NATIVE_8X8]
    assert sorted(units, key=units.get) == ordered


def test_counted_by_hand(yosys):
    text = "module m(input clk, input a, input b, output reg q); always @(posedge clk) q <= ~(a & b); endmodule\n"
    found = synthesise(text, "m", yosys)
    assert found.by_cell == {"$_DFF_P_": 1, "$_NAND_": 1}
    assert found.transistors == TRANSISTORS["$_DFF_P_"] + TRANSISTORS["$_NAND_"]


def test_area_with_a_library(yosys, library):
    text = "module m(input clk, input a, input b, output reg q); always @(posedge clk) q <= a & b; endmodule\n"
    found = synthesise(text, "m", yosys, library)
    assert found.by_cell == {"DFFN": 1, "INV": 2, "NAND2": 1}, "the flip-flop inverts, which is still the smaller way"
    assert found.area_um2 == 5 + 2 * 1 + 2
    assert found.transistors is None


def test_full_adders_become_the_library_s(yosys, library):
    _, found = made("unit", Design.NATIVE_8X8, yosys, library)
    assert found.by_cell["FULLADD"] > 40
    assert set(found.by_cell) <= set(library.cells)


@needs_icarus
def test_a_mapped_netlist_computes(yosys, library):
    text, found = made("unit", Design.AUGMENTED, yosys, library)
    whole = vectors("unit", Design.AUGMENTED)
    part = Vectors(whole.inputs[::61], whole.expected[::61])
    outcome = run_vectors(text.top, [found.verilog, cell_models(library, found.by_cell)], text.ports, part)
    assert outcome.compared == len(part)
    assert outcome.mismatches == 0, outcome.first


@needs_icarus
def test_energy_by_hand(yosys, library, tmp_path):
    """Two inverters around a flip-flop, toggling in every cycle."""
    from elmoe.rtl.blocks import Ports

    text = "module m(input clk, input d, output reg q); always @(posedge clk) q <= ~d; endmodule\n"
    found = synthesise(text, "m", yosys, library)
    assert found.by_cell == {"DFFN": 1, "INV": 2}
    cycles = 28
    given = Vectors([{"d": k % 2} for k in range(cycles)], [None] * cycles)
    vcd = tmp_path / "run.vcd"
    run_vectors("m", [found.verilog, cell_models(library, found.by_cell)], Ports({"d": 1}, {"q": 1}), given, vcd=vcd)
    spent = energy(found.netlist, vcd, cycles, library)
    assert spent.toggles == pytest.approx(4, rel=0.1)
    assert spent.clock_fj == pytest.approx(2 * 0.25)
    assert spent.internal_fj == pytest.approx(0.75 + 2 * 0.5, rel=0.1)
    # Three nets with one sink of 1 fF, in the upper bound with 0.5 fF of wire, at 0.5 V; the output has no sink.
    assert spent.net_fj == pytest.approx(3 * 0.5 * 0.5**2 * 1.5, rel=0.1)
    assert spent.lower_fj < spent.upper_fj


def test_tables(library):
    table = library.cell("INV").outputs[0].group.first("internal_power").first("rise_power")
    assert interpolated(table, 55, 4) == 0.5
    assert transition_energy(library.cell("DFFN"), "CK", 0) == (0.25, 0.25)
    table.attributes["values"] = "0,9,0,9"
    assert interpolated(table, 10, 5.5) == 4.5
    assert interpolated(table, 10, 1000) == 9


def test_delays_for_icarus():
    text = """(DELAYFILE (TIMESCALE 1ps)
 (CELL (CELLTYPE "top") (INSTANCE) (DELAY (ABSOLUTE (INTERCONNECT a u1.A (1.0::2.0)))))
 (CELL (CELLTYPE "FA") (INSTANCE u1) (DELAY (ABSOLUTE
    (COND (~B & CI) (IOPATH A S (10.0::20.0) (30.0::40.0)))
    (IOPATH A S (50.0::60.0) (5.0::6.0))
    (IOPATH (posedge CK) Q (7.0::8.0)))))
)"""
    assert simple_sdf(text).splitlines()[4:7] == [
        ' (CELL (CELLTYPE "FA") (INSTANCE u1) (DELAY (ABSOLUTE',
        "  (IOPATH A S (0.060000) (0.040000))",
        "  (IOPATH CK Q (0.008000) (0.008000))",
    ]
    assert "INTERCONNECT" not in simple_sdf(text)


def test_overheads():
    rows = [
        {"block": "a", "design": "augmented", "area_um2": 11.0, "transistors": None},
        {"block": "a", "design": "conventional", "area_um2": 10.0, "transistors": None},
        {"block": "b", "design": "augmented", "area_um2": None, "transistors": 7},
    ]
    assert overhead_percent(rows) == {"a": pytest.approx(10.0)}


def test_yosys_s_own_error_is_shown(yosys, tmp_path):
    with pytest.raises(InternalError, match=r"yosys 0\.\d+ failed: ERROR: No such command: nonsense"):
        yosys.run(["nonsense"], tmp_path)


def script(tmp_path, answer: str):
    path = tmp_path / "yosys"
    path.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            "echo 'Yosys 0.23 (git sha1 7ce5011c2)'",
            "yosys 0.23 is too old, 0.45 is needed; leave --yosys out and pip install",
        ),
        ("echo hello", "is no Yosys that answers with its version"),
        ("exit 3", "is no Yosys that answers with its version"),
    ],
)
def test_unsupported_yosys(tmp_path, answer, complaint):
    with pytest.raises(ConfigError, match=complaint):
        find_yosys(script(tmp_path, answer))


def test_missing_yosys(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be started: No such file or directory; leave --yosys out"):
        find_yosys(str(tmp_path / "nothing"))
    monkeypatch.setattr(yosys_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"yosys is not installed; pip install elmoe\[rtl\]"):
        find_yosys()


def test_a_yosys_of_one_s_own(tmp_path, yosys):
    """Called like a binary: with -V, and with -s and a script."""
    import shlex

    python, _, code = yosys.command
    start = f"{shlex.quote(python)} -c {shlex.quote(code)}"
    mine = find_yosys(script(tmp_path, f'if [ "$1" = -V ]; then echo Yosys 0.70; else {start} "$2"; fi'))
    assert mine.version == "0.70"
    assert emit(block_named("unit"), Design.AUGMENTED, mine) == emit(block_named("unit"), Design.AUGMENTED, yosys)
