"""Which expert records stay in the fast tier when the others must be read from disk.

MSB and LSB records are kept apart. A target pass needs both, a draft MSB records only, so what a byte is worth depends
on how often passes read the expert, and on what more experts in the draft are worth (`value_drafts`). The backend does
the moving: it keeps of what a pass reads anyway what is worth more than what is there, so nothing is read to be kept
alone. Knows nothing about files.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import Bool
from elmoe.backend.tiers import LSB, MSB, Keep, TierLayout, Tiers
from elmoe.engine.verify_set import SlowTier
from elmoe.models.footprint import Footprint
from elmoe.trace.schema import routing_counts

Float64 = npt.NDArray[np.float64]

QUICK, SLOW = 0.8, 0.98
"""Shares of the two estimates of how often an expert is read that survive a pass: what a text is about, and what texts
are about. Their mean is the estimate (docs/tiers.md has what it is worth)."""
REVIEW = 16
"""Target passes between two reviews of how the arena is divided."""
BETTER = 1.01
"""Worth of another division against the present one from which it is taken: moving records costs reads."""
LIKELY = 0.6
"""Chance from which an expert is read ahead where the draft does not tell."""
KNOWN = 128
"""Sureness of an expert that the draft asked for, of 255."""
LEAST_COVERAGE = 0.05
TIE = 1e-3
"""Where passes read everything, all bytes save alike and MSB records, of use to drafts as well, go first."""
ROUTER_ASKED = 32
"""Rows up to which the backend asks the next layer's router instead."""


class CachePolicy(Enum):
    """Which records stay."""

    BENEFIT = "benefit"
    """Those that save the most time per byte: whole experts for plain decoding, more MSB records where drafts pay."""
    HOTNESS = "hotness"
    """The paper's: MSB records of the hottest experts; LSB records never stay."""
    LRU = "lru"
    """Whole experts, the most recently read."""
    LFU = "lfu"
    """Whole experts, the most often read."""
    NONE = "none"
    """Nothing stays: every pass streams what it needs, and drafts are impossible. To compare with."""


class TieredPool:
    """Decides for a backend with tiers; has the doors of `ExpertPool`."""

    def __init__(self, tiers: Tiers, sizes: Footprint, segments: int, policy: CachePolicy, decay: float) -> None:
        """segments: of the arena that may be used. decay: share of the hotness that survives a step."""
        self.tiers, self.sizes, self.policy, self.decay = tiers, sizes, policy, decay
        grid = sizes.moe_layers, sizes.experts
        self.hotness = np.zeros(grid, dtype=np.float64)
        self.resident: Bool = np.zeros(grid, dtype=np.bool_)
        """[L, E] MSB records that stay: what drafts may use."""
        self.draft_bytes = 0.0
        """What drafts with all experts would save of a target pass's reads, against drafts with none."""
        self._quick = np.zeros(grid, dtype=np.float64)
        self._slow = np.zeros(grid, dtype=np.float64)
        self._count = np.zeros(grid, dtype=np.int64)
        self._latest = np.zeros(grid, dtype=np.int64)
        self._fit = ReadCost()
        self._passes = 0
        self._segments = 0
        self._quotas = np.full((2, sizes.moe_layers), -1, dtype=np.int32)
        self.resize(segments)

    @property
    def slots(self) -> int:
        """The fewest MSB records that may stay in a layer."""
        return int(self._quotas[MSB].min())

    @property
    def quotas(self) -> npt.NDArray[np.int32]:
        """[planes, layers] records that may stay."""
        return self._quotas

    @property
    def size(self) -> int:
        """Segments."""
        return self._segments

    @property
    def ready(self) -> bool:
        """Whether every layer has enough experts for a draft."""
        return bool((self.resident.sum(axis=1) >= self.sizes.experts_per_tok).all())

    def resize(self, segments: int) -> None:
        """Use so many segments; what is worth least leaves at once."""
        self._segments = segments
        self._arrange(self._divided())

    def observe(self, experts: npt.NDArray[np.int16]) -> None:
        """Count original routing decisions [R, L, A]."""
        self.hotness += routing_counts(experts, self.sizes.experts)

    def fade(self) -> None:
        """End an engine step."""
        self.hotness *= self.decay

    def choose(self) -> Bool:
        """The residents; what enters is decided record by record while a pass reads."""
        return self.resident

    def fill(self, _wanted: Bool, read: Bool) -> None:
        """After a target pass that read the experts `read` [L, E]."""
        self._passes += 1
        self._quick += (1 - QUICK) * (read - self._quick)
        self._slow += (1 - SLOW) * (read - self._slow)
        self._count += read
        self._latest[read] = self._passes
        if self.policy is CachePolicy.BENEFIT and self._passes % REVIEW == 0:
            self._review()
        self.refresh()

    def refresh(self) -> None:
        """See what is there now."""
        self.resident = self.tiers.kept()[MSB]

    def chances(self) -> Float64:
        """[L, E] that a target pass reads an expert."""
        return (self._quick + self._slow) / 2

    def count_read(self, seconds: float, slow_bytes: int) -> None:
        """A target pass took `seconds` and read `slow_bytes`."""
        self._fit.observe(float(slow_bytes), seconds)

    def value_drafts(self, elasticity: float) -> None:
        """elasticity: by what share a step gives more tokens for one percent more of the routing that the residents
        cover, per percent; 0 in plain decoding. Then more coverage saves that share of what target passes read.
        """
        worth = elasticity * self._fit.mean_bytes / max(self.coverage(), LEAST_COVERAGE)
        self.draft_bytes += (1 - SLOW) * (worth - self.draft_bytes)  # single trials must not turn the arena over

    def slow_tier(self, base_seconds: float) -> SlowTier:
        """What reading costs a step whose draft took `base_seconds`."""
        fixed, per_byte = self._fit.costs()
        return SlowTier(self.cold_bytes(), per_byte, base_seconds + fixed)

    def keep(self, rows: int, announced: npt.NDArray[np.int64] | None) -> Keep:
        """For a pass over `rows` rows. announced: [L, E] how many of them asked for an expert in the draft."""
        values = np.empty((2, 2, *self.hotness.shape), dtype=np.float32)
        if self.policy in (CachePolicy.BENEFIT, CachePolicy.NONE):
            chance = self.chances()
            read = chance + ((1 - QUICK) * (1 - self._quick) + (1 - SLOW) * (1 - self._slow)) / 2
            draft = self._draft_value()
            values[0, MSB], values[0, LSB] = chance + draft, chance
            values[1, MSB], values[1, LSB] = read + draft, read
        elif self.policy is CachePolicy.HOTNESS:
            values[:] = self.hotness
        else:
            values[:] = self._order()[:, None]
        return Keep(values, self._expected(rows, announced))

    def cold_bytes(self) -> Float64:
        """[L, E] what a target pass would read of an expert."""
        kept = self.tiers.kept()
        return ~kept[MSB] * float(self.sizes.expert_msb) + ~kept[LSB] * float(self.sizes.expert_lsb)

    def coverage(self) -> float:
        """Share of the routing decisions, as they were lately, that the residents cover."""
        total = self.hotness.sum()
        return float((self.hotness * self.resident).sum() / total) if total else 0.0

    def _order(self) -> npt.NDArray[np.float32]:
        """[2, L, E] places of the records by recency or frequency as they are, and once this pass has read them; of
        equals the later one is worth more, experts being read in ascending order, as in `trace/replay.py`.
        """
        experts, now = self.sizes.experts, self._passes + 1
        later = self._latest * experts + np.arange(experts)
        latest = now * experts + np.arange(experts)
        keys = np.stack([later, np.broadcast_to(latest, later.shape)], axis=1)  # [L, 2, E]
        if self.policy is CachePolicy.LFU:
            keys += np.stack([self._count, self._count + 1], axis=1) * ((now + 1) * experts)
        places = keys.reshape(len(keys), -1).argsort(axis=1).argsort(axis=1)  # small numbers: exact in FP32
        return places.reshape(keys.shape).transpose(1, 0, 2).astype(np.float32)

    def _expected(self, rows: int, announced: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint8] | None:
        if announced is None and rows <= ROUTER_ASKED:
            return None
        chance = self.chances()
        expected = np.where(chance > LIKELY, (KNOWN - 1) * chance, 0.0).astype(np.uint8)
        if announced is not None:
            known = KNOWN + np.minimum(announced, 255 - KNOWN)
            expected = np.where(announced > 0, known, expected).astype(np.uint8)
        return expected

    def _draft_value(self) -> Float64:
        """[L, E] slow bytes that an MSB record saves through drafts, per byte of its own."""
        total = self.hotness.sum(axis=1, keepdims=True)
        share = self.hotness / np.maximum(total, 1e-9)
        return share * (self.draft_bytes / self.sizes.moe_layers / self.sizes.expert_msb + TIE)

    # --- how the arena is divided ---

    def _divided(self) -> npt.NDArray[np.int32]:
        """Equal quotas of all layers: whole experts, or MSB records alone."""
        quotas = np.zeros((2, self.sizes.moe_layers), dtype=np.int32)
        if self.policy is not CachePolicy.NONE:
            whole = self.policy is not CachePolicy.HOTNESS
            quotas[:] = np.array(records_per_layer(self.sizes, self.tiers.layout, self._segments, whole))[:, None]
        return quotas

    def _review(self) -> None:
        """Divide anew by what records are worth, if that is worth it."""
        layout, sizes = self.tiers.layout, self.sizes
        if layout.planes == 1:
            return
        chance = self.chances()
        worth = [(chance + self._draft_value()) * sizes.expert_msb, chance * sizes.expert_lsb]
        sums = [np.concatenate([[0.0], np.sort(each, axis=None)[::-1].cumsum()]) for each in worth]
        records = sizes.moe_layers * sizes.experts

        def held(segments: int, plane: int) -> int:
            return min(max(segments * layout.per_segment(plane) - layout.staging, 0), records)

        least = layout.segments_for(sizes.experts_per_tok * sizes.moe_layers, 0)
        rest = -(-layout.staging // layout.per_segment(LSB))
        options = range(least - rest, self._segments - rest + 1)
        value = {m: sums[MSB][held(m, MSB)] + sums[LSB][held(self._segments - m, LSB)] for m in options}
        best = max(value, key=lambda m: value[m])
        now = -(-(int(self._quotas[MSB].sum()) + layout.staging) // layout.per_segment(MSB))
        if value[best] <= BETTER * value.get(now, 0.0):
            best = now
        counts = held(best, MSB), held(self._segments - best, LSB)
        quotas = np.stack([_by_layer(each, count) for each, count in zip(worth, counts, strict=True)])
        quotas[MSB] = _at_least(quotas[MSB], sizes.experts_per_tok)
        self._arrange(quotas)

    def _arrange(self, quotas: npt.NDArray[np.int32]) -> None:
        if not np.array_equal(quotas, self._quotas):
            self.tiers.arrange(quotas)
            self._quotas = quotas
            self.refresh()


class ReadCost:
    """What a target pass takes: seconds = fixed + per_byte * slow bytes, fitted to recent passes."""

    LEAST_SHARE = 0.5
    """Of a pass's time at least this goes with its bytes: the fit of passes that all read alike says nothing."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)
        """Weights, bytes, seconds, bytes squared, bytes x seconds; older passes count less."""

    def observe(self, slow_bytes: float, seconds: float) -> None:
        """Take a pass."""
        one = np.array([1.0, slow_bytes, seconds, slow_bytes * slow_bytes, slow_bytes * seconds])
        self._sums = SLOW * self._sums + one

    @property
    def mean_bytes(self) -> float:
        """Of a pass."""
        return float(self._sums[1] / max(self._sums[0], 1.0))

    def costs(self) -> tuple[float, float]:
        """(fixed seconds, seconds per byte)."""
        weight, x, y, xx, xy = self._sums
        if x <= 0:
            return float(y / max(weight, 1.0)), 0.0
        mean, ratio = y / weight, y / x
        spread = xx - x * x / weight
        slope = (xy - x * y / weight) / spread if spread > 1e-3 * xx else ratio
        per_byte = min(max(slope, self.LEAST_SHARE * ratio), ratio)
        return float(mean - per_byte * x / weight), float(per_byte)


def records_per_layer(sizes: Footprint, layout: TierLayout, segments: int, whole: bool) -> tuple[int, int]:
    """(MSB, LSB) records of each layer that so many segments hold, layers alike; whole: both of an expert, as far as
    possible. At least the MSB records of the experts that a token uses.
    """
    layers, least = sizes.moe_layers, sizes.experts_per_tok
    whole = whole and layout.planes == 2
    msb = sizes.experts
    while msb > least and layout.segments_for(msb * layers, msb * layers if whole else 0) > segments:
        msb -= 1
    lsb = msb if whole else 0
    while lsb > 0 and layout.segments_for(msb * layers, lsb * layers) > segments:
        lsb -= 1
    return msb, lsb


def _by_layer(worth: Float64, count: int) -> npt.NDArray[np.int32]:
    """How many of the `count` most worthy of [L, E] each layer has."""
    if count >= worth.size:
        return np.full(len(worth), worth.shape[1], dtype=np.int32)
    chosen = np.argsort(-worth, axis=None, kind="stable")[:count]
    return np.bincount(chosen // worth.shape[1], minlength=len(worth)).astype(np.int32)


def _at_least(quotas: npt.NDArray[np.int32], least: int) -> npt.NDArray[np.int32]:
    """No layer below `least`, at the cost of those that have the most."""
    quotas = quotas.copy()
    while quotas.min() < least:
        quotas[quotas.argmin()] += 1
        quotas[quotas.argmax()] -= 1
    return quotas
