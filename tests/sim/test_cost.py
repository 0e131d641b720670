"""Cost per token, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from elmoe.sim.cost import cost_usd_per_million_tokens, hardware_usd, prices
from elmoe.sim.spec import SYSTEMS, load_machine


def test_a_machine_costs_the_sum_of_its_parts() -> None:
    found, machine = prices(), load_machine("elmoe-3d").with_hb_gb(8)
    logic = 32 * found.pe_mm2 * found.logic_usd_per_mm2
    by_hand = logic + 64 * found.ext_usd_per_gb + 8 * found.hb_usd_per_gb + found.bonding_usd + found.board_usd
    assert hardware_usd(machine, found) == pytest.approx(by_hand)
    near, plain = (hardware_usd(load_machine(name), found) for name in ("xpu-nmp", "xpu"))
    assert near - plain == pytest.approx(16 * found.near_usd_per_gb)


def test_electricity_and_hardware_per_million_tokens() -> None:
    """1 J per token at 1 token/s: a million tokens take 1 MJ; the machine's life is years x utilisation."""
    found, machine = prices(), load_machine("xpu")
    cost = cost_usd_per_million_tokens(machine, np.array([1.0]), np.array([1000.0]))
    assert cost["energy"][0] == pytest.approx(1e6 / 3.6e6 * found.power_overhead * found.electricity_usd_per_kwh)
    life_s = found.years * 365.25 * 86400 * found.utilisation
    assert cost["hardware"][0] == pytest.approx(hardware_usd(machine, found) / life_s * 1e6)
    assert cost["total"] == pytest.approx(cost["energy"] + cost["hardware"])


def test_faster_is_cheaper_and_every_system_has_a_price() -> None:
    slow, fast = cost_usd_per_million_tokens(load_machine("xpu"), np.array([10.0, 20.0]), np.array([5.0, 5.0]))["total"]
    assert fast < slow
    assert all(hardware_usd(load_machine(name), prices()) > 100 for name in SYSTEMS)
