"""What a budget of fast memory holds, and which records passes find missing: the caches of a host, replayed.

Dense weights and KV cache come first, as in the paper; the rest holds expert records, MSB and LSB planes cached
separately. Knows nothing about time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import CapacityError, ConfigError
from elmoe.models.shape import KV_BYTES_PER_ELEMENT
from elmoe.sim.host.spec import Host
from elmoe.sim.model import BYTES_LSB, BYTES_MSB, SimModel
from elmoe.trace.replay import Accesses, Policy, residents

PAGE = 4096
LEAST_PASSING, MOST_PASSING = 2, 64
Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """How the fast tier is used."""

    fast_bytes: int | None = None
    """All of it: dense weights, KV cache, expert records, buffers. None: all of the model is in it from the start."""
    policy: Policy | None = Policy.BENEFIT
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
    """Records per MoE layer that stay in the fast tier, by pass [P]."""

    msb: Int64
    lsb: Int64


@dataclass(frozen=True)
class Arena:
    """Fast memory for expert records, in segments for one plane each; some records only pass through it.

    Segments and the records in passing are laid out as the engine does it over a file.
    """

    msb_bytes: int
    lsb_bytes: int
    """Of a record as it is read: whole pages."""
    segment_bytes: int
    passing: int
    """Records of each plane through which what does not stay passes."""

    @classmethod
    def of(cls, host: Host, model: SimModel) -> Arena:
        """Eight MSB records take about as much as nine LSB records."""
        msb, lsb = (math.ceil(model.expert_params * size / PAGE) * PAGE for size in (BYTES_MSB, BYTES_LSB))
        wanted = math.ceil(host.engine.in_flight_mb * 1e6 / (msb + lsb))
        most = min(MOST_PASSING, max(LEAST_PASSING, model.experts // 4))
        return cls(msb, lsb, max(8 * msb, 9 * lsb), min(max(wanted, LEAST_PASSING), most))

    def segments_for(self, msb: int, lsb: int) -> int:
        """Segments that so many records take that stay."""
        planes = ((msb, self.msb_bytes), (lsb, self.lsb_bytes))
        return sum(math.ceil((count + self.passing) / (self.segment_bytes // size)) for count, size in planes)

    def records(self, expert_bytes: float, model: SimModel, lsb_share: float) -> tuple[int, int]:
        """(MSB, LSB) records per layer that fit; fewer than none where not even those in passing do."""
        segments = int(expert_bytes // self.segment_bytes)
        layers = model.moe_layers

        def fits(msb: int) -> bool:
            return self.segments_for(msb * layers, int(lsb_share * msb) * layers) <= segments

        msb = bisect_left(range(model.experts + 1), True, key=lambda count: not fits(count)) - 1
        lsb = int(lsb_share * msb)
        while lsb_share and 0 <= lsb < msb and self.segments_for(msb * layers, (lsb + 1) * layers) <= segments:
            lsb += 1
        return msb, lsb


def slots(
    host: Host, model: SimModel, budget: Budget, kv_cells: Int64, largest_pass: tuple[int, int] = (0, 0)
) -> Slots:
    """Records that `budget` leaves room for beside `kv_cells` [P] cells of KV cache.

    largest_pass: rows that a pass may have, and rows of logits, for which the engine sets memory aside.

    Raises CapacityError where not even one token's experts fit, or the budget is beyond the host's memory.
    """
    room = host.fast.capacity_gb * 1e9
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
    static = model.dense_bytes + model.embedding_bytes + _activation_bytes(model, *largest_pass)
    arena, least = Arena.of(host, model), model.experts_per_tok
    needed = static + arena.segments_for(least * model.moe_layers, 0) * arena.segment_bytes + kv.max(initial=0.0)
    if budget.policy is not None and budget.fast_bytes < needed:
        raise CapacityError(
            f"{model.name}: {budget.fast_bytes:,} bytes of fast memory are too few for dense weights, KV cache and the "
            f"experts of one token; give --fast-bytes at least {math.ceil(needed):,}"
        )
    found, which = np.unique(kv, return_inverse=True)
    each = np.array([arena.records(budget.fast_bytes - static - own, model, budget.lsb_share) for own in found])
    held = np.maximum(each.reshape(-1, 2), [least, 0])[which]
    return Slots(held[:, 0], held[:, 1])


def _activation_bytes(model: SimModel, rows: int, logits: int) -> float:
    """What a pass keeps beside weights and KV, about as the engine counts it."""
    width = model.hidden + max(model.attention_params / model.layers / model.hidden, 2 * model.expert_hidden)
    experts = (model.experts_per_tok + 2) * (model.hidden + model.expert_hidden)
    floats = 4 * model.hidden + 2 * width + 4 * model.experts + experts
    return rows * 4 * floats + logits * 8 * model.head_params / model.hidden


def misses(accesses: Accesses, held: Slots, budget: Budget) -> Iterator[tuple[Bool, Bool]]:
    """For each pass, the read experts whose MSB records are missing, and those whose LSB records are: [L, E] each."""
    if budget.policy is None:
        return ((read, read) for read in accesses.reads)
    if budget.fast_bytes is None:
        return ((nothing, nothing) for nothing in np.zeros_like(accesses.reads))
    msb, lsb = (_residents(accesses, records, budget.policy) for records in (held.msb, held.lsb))
    return ((read & ~has_msb, read & ~has_lsb) for read, has_msb, has_lsb in zip(accesses.reads, msb, lsb, strict=True))


def _residents(accesses: Accesses, records: Int64, policy: Policy) -> Iterator[Bool]:
    """Masks [L, E]. `Policy.BENEFIT` gives each layer its share of one arena, by what its experts are worth."""
    if policy is not Policy.BENEFIT:
        return residents(accesses, records, policy)
    passes, layers, experts = accesses.reads.shape
    together = Accesses(
        reads=accesses.reads.reshape(passes, 1, -1),
        hints=accesses.hints.reshape(passes, 1, -1),
        seen=accesses.seen.reshape(passes, 1, -1),
        steps=accesses.steps,
    )
    return (held.reshape(layers, experts) for held in residents(together, layers * records, policy))
