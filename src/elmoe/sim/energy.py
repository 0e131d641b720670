"""Energy of a phase by component: compute, external memory, HB, communication, static. Units: pJ, W, mJ.

Per-bit and per-operation energies are the machine's (`specs/*.toml`, each with source and status). Bits read by
near-memory units count as external memory, their arithmetic as compute. Knows nothing about time but what it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.sim.spec import Machine
from elmoe.sim.systems import Cost

Floats = npt.NDArray[np.float64]

PJ_PER_MJ = 1e9
BITS = 8


@dataclass(frozen=True)
class Energy:
    """mJ, arrays [N]."""

    compute: Floats
    ext: Floats
    hb: Floats
    comm: Floats
    static: Floats

    @property
    def total(self) -> Floats:
        """Sum of the components."""
        return self.compute + self.ext + self.hb + self.comm + self.static

    def __truediv__(self, tokens: Floats) -> Energy:
        return Energy(
            self.compute / tokens, self.ext / tokens, self.hb / tokens, self.comm / tokens, self.static / tokens
        )

    def columns(self) -> dict[str, Floats]:
        """Components and their sum by name."""
        return {name: getattr(self, name) for name in ("compute", "ext", "hb", "comm", "static", "total")}


def energy(machine: Machine, spent: Cost) -> Energy:
    """Energy of everything in `spent`; static power runs for its total time."""
    power, near, links = machine.power, machine.near, machine.links
    compute = spent.macs_w8 * power.mac_w8_pj + spent.macs_w4 * power.mac_w4_pj
    ext = spent.ext_bytes * BITS * machine.ext.energy_pj_per_bit
    if near is not None:
        compute = compute + spent.near_macs * near.mac_pj
        ext = ext + spent.near_bytes * BITS * near.energy_pj_per_bit
    hb = np.zeros_like(ext)
    comm = spent.ext_bytes * BITS * power.transport_pj_per_bit
    watts = power.static_w
    if machine.hb is not None:
        hb = spent.hb_bytes * BITS * machine.hb.energy_pj_per_bit
        watts += power.hb_static_w_per_gb * machine.hb.capacity_gb
    if links is not None:
        aggregation = spent.link_bytes * BITS * links.aggregation_pj_per_bit
        comm = comm + aggregation
    static = watts * spent.total_ns * 1e3  # W x ns = 1e3 pJ
    return Energy(*(part / PJ_PER_MJ for part in (compute, ext, hb, comm, static)))
