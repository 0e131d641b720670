"""Streams of burst addresses: what the DRAM model reads, and its tests and tables with it. Seeded, deterministic."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError

Int64 = npt.NDArray[np.int64]

UNITS = {"": 1, "K": 2**10, "M": 2**20}
FORMS = "seq, rand64, chunk4K (random, aligned), u4K (random, any 64 B), or bytes such as 128 (random, aligned)"
UNALIGNED_STEP = 64
"""Bytes between possible starts of an unaligned chunk."""


def chunk_of(pattern: str) -> tuple[int, bool]:
    """(bytes of a chunk, aligned to its size): 0 bytes for a sequential stream. ConfigError names the forms."""
    if pattern == "seq":
        return 0, True
    match = re.fullmatch(r"(rand|chunk|u|)(\d{1,15}(?:\.\d+)?)([KM]?)", pattern)
    size = int(float(match[2]) * UNITS[match[3]]) if match else 0
    if match is None or size < 1:
        raise ConfigError(f"unknown pattern {pattern!r}; known are {FORMS}")
    return size, match[1] != "u"


def stream(pattern: str, bursts: int, burst_bytes: int, capacity_bursts: int, seed: int) -> Int64:
    """[bursts] burst numbers: chunks one after another at random places, each read from its start to its end."""
    size, aligned = chunk_of(pattern)
    if not size:
        return np.arange(bursts, dtype=np.int64) % capacity_bursts
    return chunks(size, aligned, bursts, burst_bytes, capacity_bursts, seed)


def useful_share(size: int, aligned: bool, burst_bytes: int) -> float:
    """Bytes asked for over bytes of the bursts that carry them, on average over the places where a chunk may start."""
    starts = [0] if aligned else range(0, max(burst_bytes, UNALIGNED_STEP), UNALIGNED_STEP)
    bursts = [(start + size - 1) // burst_bytes - start // burst_bytes + 1 for start in starts]
    return size * len(bursts) / (sum(bursts) * burst_bytes)


def chunks(size: int, aligned: bool, bursts: int, burst_bytes: int, capacity_bursts: int, seed: int) -> Int64:
    """As `stream`, by size in bytes. Aligned chunks start at multiples of their size, others of 64 B."""
    capacity = capacity_bursts * burst_bytes
    if size > capacity:
        raise ConfigError(f"a chunk of {size} B does not fit a memory of {capacity} B")
    step = size if aligned else UNALIGNED_STEP
    per_chunk = -(-size // burst_bytes)
    count = -(-bursts // per_chunk)
    starts = np.random.default_rng(seed).integers(0, (capacity - size) // step + 1, count) * step
    first, last = starts // burst_bytes, (starts + size - 1) // burst_bytes
    lengths = np.minimum(last - first + 1, bursts)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    made: Int64 = np.repeat(first, lengths) + offsets
    return made[:bursts].astype(np.int64)
