"""How long a machine takes for an operator, and on which of its resources: EXT, HB, PEs, links, near-memory units.

Operators run one after another; inside one, all resources work at the same time and the slowest sets the pace. A
machine with near-memory compute gives each operator to whichever of xPU and near memory is faster, or to both, as a
scheduler would. Knows nothing about schemes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from elmoe.sim.dataflow import ACTIVATION_BYTES
from elmoe.sim.efficiency import efficiency
from elmoe.sim.layer import Resources, expert_resources, layer_ns
from elmoe.sim.schemes import Dense, Experts, Operator
from elmoe.sim.spec import Machine, Memory, NearMemory

Floats = npt.NDArray[np.float64]

GATHERS = 2
"""Per layer, dense weights being split by output column: the input of the output projection, and its result."""
BOUNDS = ("ext", "hb", "pe", "link", "near")
FP16_PASSES = 2
"""FP16 keys and values take as many passes of the array as two 8-bit products (assumed)."""


@dataclass(frozen=True)
class Cost:
    """Busy time by resource, what moved, and the time that counts. Arrays [N]; costs add up."""

    total_ns: Floats
    ext_ns: Floats
    hb_ns: Floats
    pe_ns: Floats
    link_ns: Floats
    near_ns: Floats
    ext_bytes: Floats
    hb_bytes: Floats
    link_bytes: Floats
    near_bytes: Floats
    macs_w8: Floats
    macs_w4: Floats
    near_macs: Floats
    bound_ns: Floats
    """[N, 5] total_ns by the resource that set the pace, in the order of BOUNDS."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(Cost)})

    def times(self, count: int) -> Cost:
        """The cost of `count` repetitions."""
        return Cost(**{item.name: getattr(self, item.name) * count for item in fields(Cost)})


@dataclass(frozen=True)
class Bandwidth:
    """Effective bandwidths in GB/s (bytes per ns): peak times the DRAM model's efficiency."""

    ext: float
    hb: float


def effective_bandwidth(machine: Machine) -> Bandwidth:
    """From the DRAM model's efficiency table; EXT no faster than the streamline that carries it to the PEs."""
    hb = _effective(machine.hb) if machine.hb is not None else 1.0
    ext = _effective(machine.ext)
    if machine.links is not None:
        ext = min(ext, machine.links.streamline_gb_per_s)
    return Bandwidth(ext, hb)


def _effective(memory: Memory) -> float:
    share = efficiency(
        memory.device,
        mapping=memory.mapping,
        queue=memory.queue,
        refresh=memory.refresh,
        chunk_bytes=np.array([float(memory.chunk_bytes)]),
        aligned=True,  # weights are laid out for the machine
    )
    return memory.gb_per_s * float(share[0])


def cost(machine: Machine, bandwidth: Bandwidth, operator: Operator, near_reach: Floats) -> Cost:
    """What one operator costs, all of its layers. near_reach: share of the weights that near memory holds."""
    layers = operator.layers if isinstance(operator, Experts) else 1
    host = _resources(machine, bandwidth, operator)
    here = _on_host(host, layers)
    if machine.near is None:
        return here
    return _with_near_memory(machine.near, host, here, layers, near_reach)


def _resources(machine: Machine, bandwidth: Bandwidth, operator: Operator) -> Resources:
    if isinstance(operator, Experts):
        return expert_resources(machine, operator.work, bandwidth.ext, bandwidth.hb)
    return _dense_resources(machine, bandwidth, operator)


def _dense_resources(machine: Machine, bandwidth: Bandwidth, operator: Dense) -> Resources:
    compute, pes = machine.compute, machine.compute.pes
    if operator.bits == 16:
        cycles = FP16_PASSES * operator.macs / compute.macs_per_ns(8) * compute.clock_ghz
    else:
        padded = np.ceil(operator.rows / compute.rows) * compute.rows / operator.rows
        cycles = operator.macs * padded / compute.macs_per_ns(operator.bits) * compute.clock_ghz
    port = np.zeros_like(operator.macs)
    link_ns = port
    if machine.links is not None and operator.exchanges:
        share = GATHERS * ACTIVATION_BYTES * (pes - 1) / pes
        port = operator.exchanges * operator.rows * operator.hidden * share
        link_ns = port / machine.links.aggregation_gb_per_s
    zero = np.zeros_like(operator.macs)
    macs = operator.macs * (FP16_PASSES if operator.bits == 16 else 1)
    return Resources(
        ext_ns=operator.ext_bytes / bandwidth.ext,
        hb_ns=operator.hb_bytes / bandwidth.hb,
        pe_ns=cycles / compute.clock_ghz,
        link_ns=link_ns,
        ext_bytes=operator.ext_bytes,
        hb_bytes=operator.hb_bytes,
        link_bytes=port * pes,
        macs=zero if operator.bits == 4 else macs,
        macs_w4=macs if operator.bits == 4 else zero,
    )


def _on_host(found: Resources, layers: int) -> Cost:
    """What is not hidden behind the slowest resource counts as a wait for it."""
    times = np.stack(np.broadcast_arrays(found.ext_ns, found.hb_ns, found.pe_ns, found.link_ns), axis=-1)
    total = layer_ns(found)
    bound = np.zeros((*total.shape, len(BOUNDS)))
    np.put_along_axis(bound, times.argmax(axis=-1)[..., None], total[..., None], axis=-1)
    zero = np.zeros_like(total)
    return Cost(
        total_ns=total,
        ext_ns=found.ext_ns,
        hb_ns=found.hb_ns,
        pe_ns=found.pe_ns,
        link_ns=found.link_ns,
        near_ns=zero,
        ext_bytes=found.ext_bytes,
        hb_bytes=found.hb_bytes,
        link_bytes=found.link_bytes,
        near_bytes=zero,
        macs_w8=found.macs,
        macs_w4=found.macs_w4,
        near_macs=zero,
        bound_ns=bound,
    ).times(layers)


def _with_near_memory(near: NearMemory, found: Resources, here: Cost, layers: int, reach: Floats) -> Cost:
    """The faster of: all on the xPU; a share near memory while the xPU reads the rest over what bus is left.

    Without a bus of its own (external_share 0) the xPU reads its part before or after the near-memory units.
    """
    macs = found.macs + found.macs_w4
    near_ns = np.maximum(found.ext_bytes / (near.gb_per_s * near.efficiency), 2e-3 * macs / near.tops)
    bus = near.external_share or 1.0
    rest_ns = np.maximum(found.ext_ns / bus, found.pe_ns) + found.exposed_ns
    if near.external_share:
        share = np.minimum(reach, rest_ns / np.maximum(near_ns + rest_ns, 1e-300))
        near_part, rest_part = share * near_ns, (1.0 - share) * rest_ns
        split_ns = np.maximum(near_part, rest_part)
        near_paced = np.where(near_part >= rest_part * (1 - 1e-9), split_ns, 0.0)
    else:
        share = np.minimum(reach, 1.0) * np.ones_like(near_ns)
        near_paced = share * near_ns
        split_ns = near_paced + (1.0 - share) * rest_ns
    use = (split_ns * layers < here.total_ns) & (found.ext_bytes > 0)
    share = np.where(use, share, 0.0)
    total = np.where(use, split_ns * layers, here.total_ns)
    bound = np.zeros_like(here.bound_ns)
    slower = np.where(found.ext_ns / bus >= found.pe_ns, BOUNDS.index("ext"), BOUNDS.index("pe"))
    np.put_along_axis(bound, slower[..., None], (split_ns - near_paced)[..., None], axis=-1)
    bound[..., BOUNDS.index("near")] = near_paced
    bound = np.where(use[..., None], bound * layers, here.bound_ns)
    left = 1.0 - share
    return Cost(
        total_ns=total,
        ext_ns=here.ext_ns * np.where(use, left / bus, 1.0),
        hb_ns=here.hb_ns,
        pe_ns=here.pe_ns * left,
        link_ns=here.link_ns,
        near_ns=share * near_ns * layers,
        ext_bytes=here.ext_bytes * left,
        hb_bytes=here.hb_bytes,
        link_bytes=here.link_bytes,
        near_bytes=here.ext_bytes * share,
        macs_w8=here.macs_w8 * left,
        macs_w4=here.macs_w4 * left,
        near_macs=macs * layers * share,
        bound_ns=bound,
    )
