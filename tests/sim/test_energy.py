"""Energy by component, by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.sim.energy import Energy, energy
from elmoe.sim.spec import SYSTEMS, load_machine
from elmoe.sim.systems import BOUNDS, Cost


def spent(**values: float) -> Cost:
    """Zeros but for `values`."""
    made = {item.name: np.array([float(values.get(item.name, 0))]) for item in fields(Cost)}
    return Cost(**(made | {"bound_ns": np.zeros((1, len(BOUNDS)))}))


def test_bits_by_hand() -> None:
    """1 GB: 8e9 bits at 3.88 pJ/bit outside are 31.04 mJ, at 0.43 in HB 3.44; EXT bits travel to the PEs."""
    machine = load_machine("elmoe-3d")
    found = energy(machine, spent(ext_bytes=1e9, hb_bytes=1e9))
    assert found.ext[0] == pytest.approx(31.04)
    assert found.hb[0] == pytest.approx(3.44)
    assert found.comm[0] == pytest.approx(8 * machine.power.transport_pj_per_bit)
    assert found.compute[0] == found.static[0] == 0


def test_links_compute_and_static_by_hand() -> None:
    machine = load_machine("elmoe-3d")
    assert machine.links is not None
    assert machine.hb is not None
    power = machine.power
    found = energy(machine, spent(link_bytes=1e9, macs_w8=1e9, macs_w4=2e9, total_ns=1e6))
    assert found.comm[0] == pytest.approx(8 * machine.links.aggregation_pj_per_bit)
    assert found.compute[0] == pytest.approx(power.mac_w8_pj + 2 * power.mac_w4_pj)
    assert found.static[0] == pytest.approx(power.static_w + 4 * power.hb_static_w_per_gb), "1 ms: mJ are W"
    large = energy(machine.with_hb_gb(8), spent(total_ns=1e6))
    assert large.static[0] - found.static[0] == pytest.approx(4 * power.hb_static_w_per_gb)


def test_near_memory_by_hand() -> None:
    """Its bits count as external memory, its arithmetic as compute."""
    machine = load_machine("xpu-pim")
    assert machine.near is not None
    found = energy(machine, spent(near_bytes=1e9, near_macs=1e9, ext_bytes=1e9))
    assert found.ext[0] == pytest.approx(8 * (machine.near.energy_pj_per_bit + 3.88))
    assert found.compute[0] == pytest.approx(machine.near.mac_pj)
    assert found.comm[0] == pytest.approx(8 * machine.power.transport_pj_per_bit), "what the xPU reads"
    assert found.hb[0] == 0


@given(
    st.sampled_from(SYSTEMS),
    st.tuples(*[st.floats(0, 1e12)] * 8),
    st.floats(0.5, 100),
)
def test_components_sum_and_scale(system: str, amounts: tuple[float, ...], tokens: float) -> None:
    names = ("total_ns", "ext_bytes", "hb_bytes", "link_bytes", "near_bytes", "macs_w8", "macs_w4", "near_macs")
    cost = spent(**dict(zip(names, amounts, strict=True)))
    found = energy(load_machine(system), cost)
    parts = [getattr(found, item.name)[0] for item in fields(Energy)]
    assert min(parts) >= 0
    assert found.total[0] == pytest.approx(sum(parts))
    assert energy(load_machine(system), cost.times(3)).total[0] == pytest.approx(3 * found.total[0])
    each = {name: values[0] for name, values in (found / np.array([tokens])).columns().items()}
    assert each["total"] == pytest.approx(found.total[0] / tokens)
    assert each["total"] == pytest.approx(sum(each[item.name] for item in fields(Energy)))


def test_a_machine_that_costs_nothing_to_leave_on() -> None:
    machine = load_machine("xpu")
    idle = replace(machine, power=replace(machine.power, static_w=0.0))
    assert energy(idle, spent(total_ns=1e9)).total[0] == 0
