"""Streams of burst addresses: where chunks start, how long they are, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.errors import ConfigError
from elmoe.sim.request_stream import chunk_of, chunks, stream, useful_share


@pytest.mark.parametrize(
    ("pattern", "size", "aligned"),
    [
        ("seq", 0, True),
        ("rand64", 64, True),
        ("chunk4K", 4096, True),
        ("chunk1.5M", 3 * 2**19, True),
        ("chunk100", 100, True),
        ("u6144", 6144, False),
        ("u4K", 4096, False),
        ("128", 128, True),
        ("2K", 2048, True),
    ],
)
def test_patterns(pattern: str, size: int, aligned: bool) -> None:
    assert chunk_of(pattern) == (size, aligned)


@pytest.mark.parametrize(
    "pattern", ["", "sequential", "chunk", "chunk4G", "chunk-4K", "chunk4k", "u", "rand", "chunk0", "chunk0.5", "4K 4K",
                "chunk" + "9" * 400, "nan", "chunkinf", "1e3"]
)  # fmt: skip
def test_unknown_patterns_are_refused_with_what_is_known(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown pattern '.*'; known are seq, rand64, chunk4K"):
        chunk_of(pattern)


def test_a_sequence_starts_over_at_the_end() -> None:
    assert stream("seq", 7, 32, 4, seed=1).tolist() == [0, 1, 2, 3, 0, 1, 2]


@settings(max_examples=30)
@given(st.integers(1, 4000), st.booleans(), st.integers(1, 400), st.sampled_from([32, 64, 128]), st.integers(0, 2**40))
def test_chunks_lie_inside_and_are_whole(size: int, aligned: bool, bursts: int, burst_bytes: int, seed: int) -> None:
    """Runs of consecutive bursts, each at a start the pattern allows; only the last chunk may be cut."""
    capacity = 128
    made = chunks(size, aligned, bursts, burst_bytes, capacity, seed)
    assert (made.shape, made.dtype) == ((bursts,), np.int64)
    assert made.min() >= 0
    assert made.max() < capacity
    step, place = size if aligned else 64, 0
    while place < bursts:
        starts = [start for start in range(0, capacity * burst_bytes, step) if start // burst_bytes == made[place]]
        lengths = {(start + size - 1) // burst_bytes - start // burst_bytes + 1 for start in starts}
        fits = [n for n in lengths if (np.diff(made[place : place + n]) == 1).all()]
        assert fits, f"no chunk starts at burst {made[place]}"
        if len(lengths) > 1:
            return  # cannot be told apart from outside
        place += fits[0]


def test_unaligned_chunks_start_at_any_64_bytes() -> None:
    """In bursts of 128 B half of the 256 B chunks begin in the middle of a burst and touch three."""
    made = chunks(256, False, 30_000, 128, 2**20, seed=1)
    runs = np.diff(np.flatnonzero(np.diff(made, prepend=-9, append=-9) != 1))
    assert set(runs[:-1].tolist()) <= {2, 3, 4, 5, 6}, "now and then one follows another"
    assert np.mean(runs[:-1] == 2) == pytest.approx(0.5, abs=0.02)
    assert {int(first) % 2 for first in made[::3]} == {0, 1}


def test_aligned_chunks_start_at_multiples_of_their_size() -> None:
    made = chunks(4096, True, 128 * 50, 32, 2**20, seed=1).reshape(50, 128)
    assert (made[:, 0] % 128 == 0).all()
    assert (made == made[:, :1] + np.arange(128)).all()
    assert len(set(made[:, 0].tolist())) > 45


def test_all_places_are_as_likely() -> None:
    made = chunks(64, True, 2 * 64_000, 32, 64, seed=1)[::2]
    counts = np.bincount(made // 2, minlength=32)
    assert counts.min() > 0.9 * 2000
    assert counts.max() < 1.1 * 2000


def test_a_stream_is_its_seeds() -> None:
    one, same, other = (stream("u4K", 1000, 32, 2**20, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert (stream("chunk4K", 300, 32, 2**20, 1) == stream("chunk4K", 600, 32, 2**20, 1)[:300]).mean() >= 128 / 300


def test_a_long_chunk_costs_only_what_is_read_of_it() -> None:
    made = chunks(2**39, True, 10, 32, 2**35, seed=1)
    assert (np.diff(made) == 1).all()


def test_a_chunk_that_does_not_fit() -> None:
    assert chunks(128, True, 4, 32, 4, seed=1).tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="a chunk of 129 B does not fit a memory of 128 B"):
        chunks(129, True, 4, 32, 4, seed=1)


def test_useful_share_of_bursts() -> None:
    """Aligned chunks waste what does not fill a burst; of unaligned ones half need one burst of 128 B more."""
    assert useful_share(4096, True, 32) == useful_share(4096, False, 32) == 1.0
    assert useful_share(64, True, 128) == 0.5
    assert useful_share(8192, False, 128) == 64 / 64.5
    assert useful_share(64, False, 128) == 0.5
