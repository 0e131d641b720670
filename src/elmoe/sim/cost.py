"""What a token costs: electricity, and the machine's price spread over the tokens of its life.

Prices are data (`specs/cost.toml`): orders of magnitude that nobody quotes for such machines, each with its reason.
Knows nothing about how time and energy come about.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from elmoe.sim.quantity import Spec, quantity
from elmoe.sim.spec import Machine

Floats = npt.NDArray[np.float64]

SECONDS_PER_YEAR = 365.25 * 86_400
MJ_PER_KWH = 3.6e9
"""Millijoules."""
MILLION = 1e6


@dataclass(frozen=True)
class Prices(Spec):
    """``specs/cost.toml``."""

    electricity_usd_per_kwh: float = quantity("USD/kWh", above=0)
    power_overhead: float = quantity("1", minimum=1)
    """Watts drawn from the grid per watt of the accelerator: conversion, cooling, host."""
    pe_mm2: float = quantity("mm2", above=0)
    logic_usd_per_mm2: float = quantity("USD/mm2", above=0)
    ext_usd_per_gb: float = quantity("USD/GB", above=0)
    hb_usd_per_gb: float = quantity("USD/GB", above=0)
    near_usd_per_gb: float = quantity("USD/GB", minimum=0)
    """What near-memory units add to a GB that they reach."""
    bonding_usd: float = quantity("USD", minimum=0)
    """Hybrid bonding and its yield, for machines with HB."""
    board_usd: float = quantity("USD", minimum=0)
    """Package, board, power supply, share of a host."""
    years: float = quantity("year", above=0)
    utilisation: float = quantity("1", above=0, maximum=1)


@cache
def prices() -> Prices:
    """The shipped ones."""
    table = tomllib.loads((files("elmoe.sim") / "specs" / "cost.toml").read_text(encoding="utf-8"))
    return Prices.from_table(table["prices"], "cost.toml: prices")


def hardware_usd(machine: Machine, found: Prices) -> float:
    """Price of a machine."""
    price = found.board_usd + machine.compute.pes * found.pe_mm2 * found.logic_usd_per_mm2
    price += machine.ext.capacity_gb * found.ext_usd_per_gb
    if machine.hb is not None:
        price += found.bonding_usd + machine.hb.capacity_gb * found.hb_usd_per_gb
    if machine.near is not None:
        price += machine.near.capacity_gb * found.near_usd_per_gb
    return price


def cost_usd_per_million_tokens(machine: Machine, tokens_per_s: Floats, energy_mj: Floats) -> dict[str, Floats]:
    """By part: [N] tokens per second of the whole batch, [N] energy per token in mJ -> [N] USD per million tokens."""
    found = prices()
    life_seconds = found.years * SECONDS_PER_YEAR * found.utilisation
    energy = energy_mj * MILLION / MJ_PER_KWH * found.power_overhead * found.electricity_usd_per_kwh
    hardware = hardware_usd(machine, found) / (tokens_per_s * life_seconds) * MILLION
    return {"energy": energy, "hardware": hardware, "total": energy + hardware}
