"""Weight tiles through WMEM's port: by hand, against a machine without one, and the second set of energies.

That the RTL takes the same cycles is `tests/rtl/test_cycles.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_cycle import ELMOE, EXT, HB, XPU, by, small

from elmoe.errors import ConfigError
from elmoe.sim.cycle import simulate_layer
from elmoe.sim.dataflow import Dataflow
from elmoe.sim.layer import expert_resources, layer_ns
from elmoe.sim.spec import Machine, load_machine

EXAMPLE = Path(__file__).parents[2] / "examples" / "elmoe_3d_rtl.toml"


def with_port(machine: Machine, port_bytes: int, pipeline: int = 12) -> Machine:
    return replace(
        machine, compute=machine.compute.changed("test", wmem_port_bytes=port_bytes, pipeline_cycles=pipeline)
    )


def test_by_hand():
    """One expert with one row, weights there at once: first tile, then one tile per load, the vector unit between."""
    machine = with_port(XPU, 128)
    played = simulate_layer(machine, small([1], [False], "ar"), 1e9)
    up, down = Dataflow(machine, 512, 256).data_tiles(0), Dataflow(machine, 512, 256).data_tiles(1)
    load, passes, pipeline, vector = 9, 2, 12, 8  # 1088 bytes in words of 128
    first_half = 1  # arrives within the first cycle
    assert played.total_ns == first_half + (up + down) * load + 2 * (passes + pipeline) + vector


def test_no_port_is_the_machine_as_it_was():
    layer = small([3, 20], [True, False], "verify")
    assert simulate_layer(with_port(ELMOE, 0, 0), layer, EXT, HB) == simulate_layer(ELMOE, layer, EXT, HB)


@pytest.mark.parametrize("kind", ["ar", "verify", "draft"])
@pytest.mark.parametrize("port", [64, 128])
def test_narrower_is_slower_and_the_formula_follows(kind, port):
    layer = small([5, 40, 1, 17], [True, True, kind == "draft", kind == "draft"], kind)
    narrow, wide = with_port(ELMOE, port), with_port(ELMOE, 2 * port)
    times = [simulate_layer(machine, layer, EXT, HB).total_ns for machine in (wide, narrow)]
    assert times[0] <= times[1] * 1.02, "a wider port may change which stream goes first"
    formula = float(layer_ns(expert_resources(narrow, layer.work(), EXT, HB))[0])
    assert formula == pytest.approx(times[1], rel=0.1)


def test_products_do_not_overlap_and_all_are_done():
    machine = with_port(ELMOE, 128)
    played = simulate_layer(machine, small([9, 33, 2, 50], [True, False, True, False]), EXT, HB)
    spans = by(played, "PE")
    assert all(earlier.end_ns <= later.start_ns for earlier, later in pairwise(spans))
    without = simulate_layer(ELMOE, small([9, 33, 2, 50], [True, False, True, False]), EXT, HB)
    assert (played.macs_w8, played.macs_w4) == (without.macs_w8, without.macs_w4)
    assert (played.ext_bytes, played.hb_bytes) == (without.ext_bytes, without.hb_bytes)


def test_tiles_begin_with_a_word():
    flow = Dataflow(with_port(ELMOE, 128), 512, 256)
    assert (flow.load_cycles(576), flow.load_cycles(1088), flow.load_cycles(512)) == (5, 9, 4)
    assert flow.tiles_per_half(576) == 8192 // (5 * 128)
    assert Dataflow(ELMOE, 512, 256).load_cycles(576) == 0
    assert flow.paced_ns(np.array([1.0, 7.0]), 3 * 512 * 256 * 576 / 1024).tolist() == [5.0, 7.0]


def test_the_example_is_the_rtl():
    from elmoe.rtl.tile import PIPELINE_CYCLES, PeShape

    compute = load_machine(str(EXAMPLE)).compute
    assert compute.wmem_port_bytes * 8 == PeShape().port_bits
    assert compute.pipeline_cycles == PIPELINE_CYCLES
    assert (compute.rows, compute.columns) == (PeShape().rows, PeShape().columns)


def test_energies_of_the_rtl():
    sliced, native = (load_machine(name).with_mac_energy("rtl").power for name in ("elmoe-3d", "hb-xpu"))
    assert sliced.mac_w4_pj < native.mac_w8_pj < sliced.mac_w8_pj
    assert native.mac_w4_pj == native.mac_w8_pj
    assert sliced.quantities["mac_w4_pj"].status.value == "extrapolated"
    assert "bench/rtl.py" in sliced.quantities["mac_w4_pj"].source
    assert sliced.transport_pj_per_bit == load_machine("elmoe-3d").power.transport_pj_per_bit
    assert load_machine("xpu").with_mac_energy("literature") == load_machine("xpu")
    with pytest.raises(ConfigError, match="unknown mac-energy 'rlt'; did you mean 'rtl'"):
        load_machine("xpu").with_mac_energy("rlt")


def test_energies_are_the_model_s():
    """The file is what `pe_model` says today."""
    from elmoe.rtl.designs import Design, Precision
    from elmoe.rtl.pe_model import mac_parts, measured, total

    power = load_machine("elmoe-3d").with_mac_energy("rtl").power
    low, high = total(mac_parts(Design.AUGMENTED, Precision.W4, measured()))
    assert power.mac_w4_pj == pytest.approx((low + high) / 2e3, abs=1e-4)
