"""How long one forward pass takes on a host, layer by layer, from what it reads and computes.

The overlap rules of the engine over tiers: a layer's norms, attention and router come first, while the disk reads at
most what was guessed (`EngineWork.prefetch_share`); then the missing records of its experts are read in the order in
which they are used, and experts are computed meanwhile, those first whose records are there. Every distinct expert is
read and computed once per pass. A draft touches the fast tier only. Knows nothing about caches, traces or engines.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.models.shape import KV_BYTES_PER_ELEMENT
from elmoe.sim.host.spec import Host
from elmoe.sim.model import BYTES_FULL, BYTES_LSB, BYTES_MSB, FP32_BYTES, SimModel

Floats = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PassLoad:
    """What one pass asks for."""

    rows: int
    """All of which want logits."""
    cells: float
    """KV cells seen, summed over rows."""
    distinct_cells: float
    """Those that no other row of the pass sees, too."""
    expert_rows: Floats
    """[L, E] rows of each expert; 0: not read."""
    missing_msb: Bool | None = None
    """[L, E] read experts whose MSB record is not in the fast tier; None: all are."""
    missing_lsb: Bool | None = None
    """Likewise their LSB record."""
    is_draft: bool = False
    """Computed from MSB planes."""


@dataclass(frozen=True)
class PassTime:
    """Seconds of one pass, and what it read."""

    seconds: float
    disk_seconds: float
    """During which the disk was read."""
    compute_seconds: float
    """Of products with weights, both kinds."""
    slow_bytes: float
    fast_bytes: float
    kv_bytes: float

    def __add__(self, other: PassTime) -> PassTime:
        return PassTime(
            self.seconds + other.seconds,
            self.disk_seconds + other.disk_seconds,
            self.compute_seconds + other.compute_seconds,
            self.slow_bytes + other.slow_bytes,
            self.fast_bytes + other.fast_bytes,
            self.kv_bytes + other.kv_bytes,
        )


NOTHING = PassTime(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class PassClock:
    """Times the passes of one model on one host."""

    def __init__(self, host: Host, model: SimModel) -> None:
        """Raises ConfigError for a model that is not modelled."""
        if model.mxfp4_experts:
            raise ConfigError(f"{model.name}: MXFP4 experts are not modelled on hosts: no probe times their kernel")
        self.host, self.model = host, model
        self.msb_bytes = model.expert_params * BYTES_MSB
        self.lsb_bytes = model.expert_params * BYTES_LSB
        self._layer_params = (model.attention_params + model.mlp_params) / model.layers

    def time(self, load: PassLoad) -> PassTime:
        """Play a pass."""
        work, model = self.host.work, self.model
        per_weight = BYTES_MSB if load.is_draft else BYTES_FULL
        distinct = int(np.count_nonzero(load.expert_rows))
        dense_bytes = model.dense_params * per_weight + model.router_params * FP32_BYTES
        weight_bytes = dense_bytes + distinct * model.expert_params * per_weight
        kv_bytes = load.distinct_cells * (model.kv_elements + model.windowed_kv_elements) * KV_BYTES_PER_ELEMENT
        beyond = self._beyond_cache(weight_bytes + kv_bytes)
        products = _Products(self.host, load.is_draft, beyond)
        before_ns = self._before_experts_ns(load, products, beyond * kv_bytes)
        layers = _play_layers(self.host, before_ns, *self._expert_ns(load, products))
        rows = np.array(float(load.rows))
        head_ns = model.head_params * products.weight_ns(rows) + self._logits(load.rows) * work.logit_ns
        dense_ns = (model.layers - model.moe_layers) * before_ns
        total_ns = work.pass_us * 1e3 + dense_ns + layers.total_ns + head_ns
        dense_layers_ns = model.layers * self._layer_params * products.weight_ns(rows)
        slow_bytes = self._slow_bytes(load)
        return PassTime(
            seconds=float(total_ns) * 1e-9,
            disk_seconds=layers.disk_ns * 1e-9,
            compute_seconds=float(layers.compute_ns + head_ns + dense_layers_ns) * 1e-9,
            slow_bytes=slow_bytes,
            fast_bytes=weight_bytes - slow_bytes,
            kv_bytes=kv_bytes,
        )

    def _beyond_cache(self, size_bytes: float) -> float:
        """Share of what a pass reads that the last-level cache does not hold: all of it from twice its size on."""
        cache = self.host.fast.cache_mb * 1e6
        return float(np.clip(size_bytes / cache - 1.0, 0.0, 1.0)) if cache else 1.0

    def _before_experts_ns(self, load: PassLoad, products: _Products, kv_bytes: float) -> float:
        """One layer's time until its experts are known, the mean over layers."""
        work, model = self.host.work, self.model
        together = work.threads * np.ceil(load.rows / work.threads)  # rows are dealt out whole
        attention = (model.attention_macs + model.windowed_attention_macs) * load.cells / work.attention_gmac_per_s
        router = together * model.hidden * model.experts / work.router_gmac_per_s
        return float(
            work.layer_us * 1e3
            + together * (work.row_us * 1e3 + model.hidden * work.hidden_ns)
            + self._layer_params * products.weight_ns(np.array(float(load.rows)))
            + (attention + kv_bytes / work.kv_gb_per_s) / model.layers
            + router
            + together * model.experts * work.choice_ns
        )

    def _expert_ns(self, load: PassLoad, products: _Products) -> tuple[Floats, Floats]:
        """Time [L, E] to compute each expert, and to read what is missing of it."""
        work, model = self.host.work, self.model
        slots = load.expert_rows * (model.hidden + model.expert_hidden) * work.slot_ns
        tasks = np.where(load.expert_rows > 0, work.expert_us * 1e3, 0.0)
        compute = model.expert_params * products.weight_ns(load.expert_rows) + slots + tasks
        read, fetched, records = np.zeros_like(compute), np.zeros_like(compute), np.zeros_like(compute)
        for missing, size in self._missing(load):
            read += np.where(missing, self.host.slow.read_ns(np.array(size)), 0.0)
            fetched += np.where(missing, size, 0.0)
            records += missing
        checkers = np.clip(records.sum(axis=1, keepdims=True), 1, work.threads)  # a record is one thread's
        return compute + fetched / (work.check_gb_per_s * checkers), read

    def _slow_bytes(self, load: PassLoad) -> float:
        return sum(float(np.count_nonzero(missing)) * size for missing, size in self._missing(load))

    def _missing(self, load: PassLoad) -> list[tuple[Bool, float]]:
        parts = ((load.missing_msb, self.msb_bytes), (load.missing_lsb, self.lsb_bytes))
        return [(missing, size) for missing, size in parts if missing is not None]

    def _logits(self, rows: int) -> float:
        return rows * self.model.head_params / self.model.hidden


class _Products:
    """The matrix products of a pass: weights from RAM for the share that the cache does not hold, else from there."""

    def __init__(self, host: Host, is_draft: bool, beyond: float) -> None:
        self._kernel = host.draft if is_draft else host.target
        self._fast, self._beyond = host.fast, beyond
        self.weight_bytes = BYTES_MSB if is_draft else BYTES_FULL

    def weight_ns(self, rows: Floats) -> Floats:
        """Time per weight of products of `rows` [...] rows; 0 for none."""
        cached = self._kernel.weight_ns(rows)
        read = np.where(rows > 0, self.weight_bytes / self._fast.gb_per_s, 0.0)
        return self._beyond * self._fast.streamed_ns(read, cached) + (1.0 - self._beyond) * cached


@dataclass(frozen=True)
class _Played:
    """All MoE layers of a pass."""

    total_ns: float
    disk_ns: float
    compute_ns: float


def _play_layers(host: Host, before_ns: float, compute: Floats, read: Floats) -> _Played:
    """Each layer's time before its experts, then its reads and computation [L, E] overlapped.

    Experts are computed one after the other, those whose records are there first, a missing one from when it has
    arrived: the layer ends with the last computation, ``max_j(arrival_j + computation from j on)``. While both go on,
    both are slower.
    """
    missing, read = read > 0, read / host.engine.read_efficiency
    compute_ns, read_ns = compute.sum(axis=1), read.sum(axis=1)  # [L]
    idle_before = 1.0 - host.engine.prefetch_share
    latency = np.where(missing.any(axis=1), idle_before * host.slow.latency_us * 1e3, 0.0)
    slower = _stretched(compute_ns, read_ns + latency, host.engine.compute_while_reading)
    slower_read = _stretched(read_ns + latency, compute_ns, host.engine.read_while_computing)
    compute = compute * slower[:, None]
    ahead = host.engine.prefetch_share * before_ns
    arrival = (latency[:, None] + read.cumsum(axis=1)) * slower_read[:, None] - ahead
    late = np.where(missing, compute, 0.0)
    from_here = late[:, ::-1].cumsum(axis=1)[:, ::-1]
    waiting = np.where(missing, np.maximum(arrival, 0.0) + from_here, 0.0).max(axis=1)
    experts_ns = np.maximum(compute.sum(axis=1), waiting)
    disk_ns = float(((read_ns + latency) * slower_read).sum())
    return _Played(len(compute) * before_ns + float(experts_ns.sum()), disk_ns, float(compute.sum()))


def _stretched(own_ns: Floats, other_ns: Floats, kept: float) -> Floats:
    """How many times as long [L] the work of `own_ns` takes if it keeps a share of its speed during `other_ns`."""
    beside = np.minimum(own_ns / kept, other_ns)  # of its time
    longer = own_ns + beside * (1.0 - kept)
    return np.where(own_ns > 0, longer / np.where(own_ns > 0, own_ns, 1.0), 1.0)
