"""What a budget of fast memory holds, and which records passes find missing: the caches of a host, replayed.

Dense weights and KV cache come first, as in the paper; the rest holds expert records, MSB and LSB planes cached
separately. Knows nothing about time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import CapacityError, ConfigError
from elmoe.models.shape import KV_BYTES_PER_ELEMENT
from elmoe.sim.host.spec import Host
from elmoe.sim.model import BYTES_LSB, BYTES_MSB, SimModel
from elmoe.trace.replay import Accesses, Policy, residents

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """How the fast tier is used."""

    fast_bytes: int | None = None
    """All of it: dense weights, KV cache, expert records, buffers. None: all of the model is in it from the start."""
    policy: Policy | None = Policy.HOT
    """Which records stay; None: none does, every pass streams what it reads."""
    lsb_share: float = 1.0
    """LSB records held / MSB records held: 1 keeps whole experts, 0 MSB planes alone (what a draft needs)."""

    def __post_init__(self) -> None:
        if self.fast_bytes is not None and self.fast_bytes < 1:
            raise ConfigError(f"fast-bytes must be positive, not {self.fast_bytes}")
        if not 0 <= self.lsb_share <= 1:
            raise ConfigError(f"lsb-share must lie in 0..1, not {self.lsb_share:g}")


@dataclass(frozen=True)
class Slots:
    """Records per MoE layer that the fast tier holds, by pass [P]."""

    msb: Int64
    lsb: Int64


def slots(host: Host, model: SimModel, budget: Budget, kv_cells: Int64) -> Slots:
    """Records that `budget` leaves room for beside `kv_cells` [P] cells of KV cache.

    Raises CapacityError where not even one token's experts fit, or the budget is beyond the host's memory.
    """
    room = host.fast.capacity_gb * 1e9
    static = model.dense_bytes + model.embedding_bytes + host.engine.staging_mb * 1e6
    kv = kv_cells * float(KV_BYTES_PER_ELEMENT * (model.kv_elements + model.windowed_kv_elements))
    if budget.fast_bytes is None:
        if model.total_bytes + kv.max(initial=0.0) > room:
            raise CapacityError(
                f"{model.name}: {model.total_bytes / 1e9:.1f} GB of weights do not fit the {room / 1e9:g} GB of fast "
                f"memory of {host.name}; give a budget with --fast-bytes"
            )
        every = np.full(len(kv_cells), model.experts)
        return Slots(every, every)
    if budget.fast_bytes > room:
        raise CapacityError(
            f"{host.name} has {host.fast.capacity_gb:g} GB of fast memory; {budget.fast_bytes:,} bytes are beyond it"
        )
    msb_bytes, lsb_bytes = model.expert_params * BYTES_MSB, model.expert_params * BYTES_LSB
    per_slot = model.moe_layers * (msb_bytes + budget.lsb_share * lsb_bytes)
    left = budget.fast_bytes - static - kv
    msb = np.minimum(np.floor(left / per_slot), model.experts)
    least = model.experts_per_tok
    if msb.min(initial=least) < least:
        needed = static + float(kv.max()) + least * per_slot
        raise CapacityError(
            f"{model.name}: {budget.fast_bytes:,} bytes of fast memory are too few for dense weights, KV cache and the "
            f"experts of one token; give --fast-bytes at least {int(np.ceil(needed)):,}"
        )
    left_over = np.maximum(left - model.moe_layers * msb * msb_bytes, 0.0)
    lsb = np.minimum(np.floor(left_over / (model.moe_layers * lsb_bytes)), msb) if budget.lsb_share else 0.0 * msb
    return Slots(msb.astype(np.int64), lsb.astype(np.int64))


def misses(accesses: Accesses, held: Slots, budget: Budget) -> Iterator[tuple[Bool, Bool]]:
    """For each pass, the read experts whose MSB records are missing, and those whose LSB records are: [L, E] each."""
    if budget.policy is None:
        return ((read, read) for read in accesses.reads)
    if budget.fast_bytes is None:
        return ((nothing, nothing) for nothing in np.zeros_like(accesses.reads))
    msb = residents(accesses, held.msb, budget.policy)
    lsb = residents(accesses, held.lsb, budget.policy)
    return ((read & ~has_msb, read & ~has_lsb) for read, has_msb, has_lsb in zip(accesses.reads, msb, lsb, strict=True))
