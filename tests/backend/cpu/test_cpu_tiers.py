"""Experts that are read when a pass needs them: the same bits, every byte counted, nothing computed on garbage."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.family_models import FAMILY_MODELS
from backend.passes import chain_of, run_of, same_bits
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import DraftQuality, Rows
from elmoe.backend.tiers import MSB, Keep, TierLayout
from elmoe.checkpoint import direct
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.errors import ConfigError, ExpertReadError
from elmoe.models.footprint import Footprint, footprint

READERS = ("io_uring", "threads")
TOKENS = tuple(range(3, 43))


def quotas(sizes: Footprint, msb: int, lsb: int) -> npt.NDArray[np.int32]:
    """The same in all layers."""
    lsb = lsb if sizes.expert_lsb else 0
    return np.array([[msb] * sizes.moe_layers, [lsb] * sizes.moe_layers], dtype=np.int32)


def values(sizes: Footprint, seed: int = 0) -> npt.NDArray[np.float32]:
    """Of no meaning."""
    return np.random.default_rng(seed).random((2, 2, sizes.moe_layers, sizes.experts), dtype=np.float32)


def tiered(path: Path, msb: int | None = None, lsb: int = 0) -> CpuBackend:
    """A backend whose arena holds just these records per layer; msb: default one token's experts."""
    checkpoint = Checkpoint.open(path)
    sizes = footprint(checkpoint.shape, checkpoint.program)
    msb = sizes.experts_per_tok if msb is None else msb
    layout = TierLayout.of(sizes)
    segments = layout.segments_for(msb * sizes.moe_layers, lsb * sizes.moe_layers)
    backend = CpuBackend(checkpoint, segments * layout.segment_bytes)
    assert backend.tiers is not None
    backend.tiers.arrange(quotas(sizes, msb, lsb))
    return backend


def decode(backend: CpuBackend, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    """Logits of a prompt, plain steps, a tree-like chain and a draft wherever one is possible."""
    backend.allocate(0, 64)
    backend.allocate(1, 64)
    found, sizes = [], backend.footprint
    place, rng = 0, np.random.default_rng(seed)
    for count in (9, 1, 1, 5, 1, 12):
        tokens = [TOKENS[i] for i in range(place, place + count)]
        rows = run_of(tokens, first=place)
        expected = rng.integers(0, 255, (sizes.moe_layers, sizes.experts)).astype(np.uint8) if count % 2 else None
        found.append(backend.forward(rows, keep=Keep(values(sizes, place), expected)).logits)
        place += count
        found.append(
            backend.forward(chain_of(TOKENS[:4], place, range(place, place + 4)), keep=Keep(values(sizes))).logits
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built-in model."""
    copy = tmp_path_factory.mktemp("tiers") / "tiny.elmoe"
    shutil.copytree(resolve("tiny"), copy)
    return copy


@pytest.fixture
def copy(tmp_path: Path, folder: Path) -> Path:
    """One to be damaged."""
    shutil.copytree(folder, tmp_path / "tiny.elmoe")
    return tmp_path / "tiny.elmoe"


# --- the same bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_experts_read_from_disk_give_the_bits_of_mapped_ones(
    family_checkpoints: dict[str, Checkpoint], name: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELMOE_READER", reader)
    mapped = decode(CpuBackend(family_checkpoints[name]))
    for msb, lsb in ((None, 0), (4, 2)):
        backend = tiered(family_checkpoints[name].path, msb, lsb)
        assert backend.tiers is not None
        assert backend.tiers.reader.startswith(reader)
        assert all(map(same_bits, decode(backend), mapped))
        assert backend.tiers.counters().bytes_read > 0


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_drafts_over_what_stays_read_nothing_and_give_the_same_bits(
    family_checkpoints: dict[str, Checkpoint], name: str
) -> None:
    mapped, backend = CpuBackend(family_checkpoints[name]), tiered(family_checkpoints[name].path)
    rows = run_of(TOKENS[:20])
    for each in (mapped, backend):
        each.allocate(0, 64)
        each.forward(rows, keep=Keep(values(each.footprint)))
    assert backend.tiers is not None
    pool = backend.tiers.kept()[MSB]
    assert (pool.sum(axis=1) == backend.footprint.experts_per_tok).all()
    before = backend.tiers.counters()
    draft = chain_of(TOKENS[:5], 20, range(20, 25))
    one, two = mapped.forward(draft, pool, DraftQuality()), backend.forward(draft, pool, DraftQuality())
    assert same_bits(one.logits, two.logits)
    assert two.traffic.slow_bytes == 0
    assert backend.tiers.counters().bytes_read == before.bytes_read


@settings(max_examples=12)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 8), st.integers(4, 20), st.integers(0, 12), st.integers(0, 2**31)),
        min_size=1,
        max_size=6,
    )
)
def test_any_division_of_the_arena_at_any_time_changes_no_bit(
    folder: Path, steps: list[tuple[int, int, int, int]]
) -> None:
    mapped, backend = CpuBackend(Checkpoint.open(folder)), tiered(folder, 20, 12)
    assert backend.tiers is not None
    for each in (mapped, backend):
        each.allocate(0, 64)
    place = 0
    for count, msb, lsb, seed in steps:
        backend.tiers.arrange(quotas(backend.footprint, msb, lsb))
        rows = run_of(TOKENS[:count], first=place)
        keep = Keep(values(backend.footprint, seed))
        assert same_bits(mapped.forward(rows).logits, backend.forward(rows, keep=keep).logits)
        kept = backend.tiers.kept().sum(axis=2)
        assert (kept <= quotas(backend.footprint, msb, lsb)).all()
        place += count


# --- counted --------------------------------------------------------------------------------------------------------


def kernel_bytes() -> int:
    """What the kernel read for this process from the disk."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes"):
            return int(line.split()[1])
    raise AssertionError


@pytest.mark.parametrize("reader", READERS)
def test_counters_are_those_of_the_kernel(folder: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMOE_READER", reader)
    backend = tiered(folder, 6, 3)
    assert backend.tiers is not None
    before = kernel_bytes()
    decode(backend)
    counted, kernel = backend.tiers.counters().bytes_read, kernel_bytes() - before
    if not kernel:
        pytest.skip("this file system's reads are not accounted")
    assert abs(kernel - counted) <= 0.02 * counted


def test_every_needed_record_is_read_once_and_traffic_adds_up(folder: Path) -> None:
    backend = tiered(folder, 4, 0)
    backend.allocate(0, 64)
    sizes, layout = backend.footprint, TierLayout.of(backend.footprint)
    result = backend.forward(run_of(TOKENS[:16]), keep=Keep(values(sizes)))
    assert backend.tiers is not None
    counters = backend.tiers.counters()
    wanted = int(result.read.sum())
    assert (counters.msb_misses, counters.lsb_misses) == (wanted, wanted)
    in_vain = counters.prefetched - counters.prefetch_used
    assert counters.bytes_read <= wanted * sum(layout.strides) + in_vain * max(layout.strides)
    assert result.traffic.slow_bytes == counters.bytes_read
    assert result.traffic.fast_bytes == sizes.dense


def test_keeping_records_costs_no_reads(folder: Path) -> None:
    """The same pass, once where nothing that it reads is worth keeping and once where everything is."""
    read = []
    for fresh in (0.0, 1.0):
        backend = tiered(folder, 8, 8)
        sizes, worth = backend.footprint, values(footprint(*_shape(folder)))
        backend.allocate(0, 64)
        assert backend.tiers is not None
        backend.forward(run_of(TOKENS[:12]), keep=Keep(worth))
        before = backend.tiers.counters()
        worth[0], worth[1] = 0.5, fresh
        nothing = np.zeros((sizes.moe_layers, sizes.experts), dtype=np.uint8)  # nor anything read ahead
        backend.forward(run_of(TOKENS[12:20], first=12), keep=Keep(worth, nothing))
        after = backend.tiers.counters()
        read.append(after.bytes_read - before.bytes_read)
        assert (after.admitted > before.admitted) == bool(fresh)
    assert read[0] == read[1] > 0


def _shape(folder: Path) -> tuple[object, object]:
    checkpoint = Checkpoint.open(folder)
    return checkpoint.shape, checkpoint.program


def test_what_is_worth_most_stays(folder: Path) -> None:
    backend = tiered(folder, 5, 3)
    sizes = backend.footprint
    backend.allocate(0, 64)
    worth = values(sizes)
    worth[0] = worth[1]
    result = backend.forward(run_of(TOKENS), keep=Keep(worth))
    assert backend.tiers is not None
    kept = backend.tiers.kept()
    for plane, count in enumerate((5, 3)):
        for layer in range(sizes.moe_layers):
            read = np.flatnonzero(result.read[layer])
            best = read[np.argsort(-worth[0, plane, layer, read])[:count]]
            assert set(np.flatnonzero(kept[plane, layer])) == set(best.tolist())


def test_reading_ahead_is_counted_and_a_wrong_guess_harmless(folder: Path) -> None:
    right, wrong, backend = CpuBackend(Checkpoint.open(folder)), tiered(folder), tiered(folder)
    rows = run_of(TOKENS[:8])
    for each in (right, wrong, backend):
        each.allocate(0, 64)
    want = right.forward(rows)
    worth = values(backend.footprint)
    assert same_bits(backend.forward(rows, keep=Keep(worth, want.read.astype(np.uint8))).logits, want.logits)
    assert same_bits(wrong.forward(rows, keep=Keep(worth, (~want.read).astype(np.uint8))).logits, want.logits)
    assert backend.tiers is not None
    assert wrong.tiers is not None
    good, bad = backend.tiers.counters(), wrong.tiers.counters()
    assert good.prefetched == good.prefetch_used > 0
    assert bad.prefetched > 0
    assert bad.prefetch_used == 0
    assert bad.bytes_read > good.bytes_read


# --- faults ---------------------------------------------------------------------------------------------------------


def expert_that_is_read(folder: Path, rows: Rows) -> tuple[int, int]:
    backend = CpuBackend(Checkpoint.open(folder))
    backend.allocate(0, 64)
    layer, expert = np.argwhere(backend.forward(rows).read)[-1]
    return int(layer), int(expert)


@pytest.mark.parametrize("plane", ["msb", "lsb"])
def test_a_record_that_changes_while_the_model_is_open_is_never_computed_with(copy: Path, plane: str) -> None:
    backend = tiered(copy)
    backend.allocate(0, 64)
    rows, worth = run_of(TOKENS[:8]), Keep(values(backend.footprint))
    want = backend.forward(rows, keep=worth)
    layer, expert = np.argwhere(want.read)[-1]
    extent = backend.checkpoint.expert_extent(plane, int(layer), int(expert))  # type: ignore[arg-type]
    with (copy / extent.file).open("r+b") as file:
        file.seek(extent.offset + 100)
        byte = file.read(1)[0]
        file.seek(extent.offset + 100)
        file.write(bytes([byte ^ 1]))
    assert backend.tiers is not None
    backend.tiers.arrange(quotas(backend.footprint, 0, 0))  # so that it is read again
    said = (
        rf"{extent.file}: {plane.upper()} record of expert {expert} in MoE block {layer} is damaged \(CRC-32 mismatch\)"
    )
    with pytest.raises(ExpertReadError, match=said) as caught:
        backend.forward(rows, keep=worth)
    assert 0 < len(caught.value.rows) <= 8
    with (copy / extent.file).open("r+b") as file:
        file.seek(extent.offset + 100)
        file.write(bytes([byte]))
    assert same_bits(backend.forward(rows, keep=worth).logits, want.logits), "usable afterwards"


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_truncated_while_the_model_is_open(
    copy: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELMOE_READER", reader)
    backend = tiered(copy)
    backend.allocate(0, 64)
    os.truncate(copy / "experts_lsb.bin", 4096)
    with pytest.raises(ExpertReadError, match=r"experts_lsb\.bin: the file ends inside the LSB record .+ replaced"):
        backend.forward(run_of(TOKENS[:8]), keep=Keep(values(backend.footprint)))


def test_a_file_that_is_replaced_goes_on_as_it_was(copy: Path, folder: Path) -> None:
    backend, whole = tiered(copy), CpuBackend(Checkpoint.open(folder))
    for each in (backend, whole):
        each.allocate(0, 64)
    other = copy / "other"
    other.write_bytes(bytes(8192))
    other.replace(copy / "experts_msb.bin")
    rows = run_of(TOKENS[:8])
    assert same_bits(backend.forward(rows, keep=Keep(values(backend.footprint))).logits, whole.forward(rows).logits)


def test_only_rows_that_need_the_expert_are_named(copy: Path) -> None:
    mapped = CpuBackend(Checkpoint.open(copy))
    mapped.allocate(0, 64)
    rows = run_of(TOKENS[:8])
    chosen = mapped.forward(rows).experts[:, 0]  # [R, A] of the first block
    expert = int(chosen[0, 0])
    extent = mapped.checkpoint.expert_extent("msb", 0, expert)
    with (copy / extent.file).open("r+b") as file:
        file.seek(extent.offset)
        file.write(bytes(64))
    backend = tiered(copy)
    backend.allocate(0, 64)
    with pytest.raises(ExpertReadError) as caught:
        backend.forward(rows, keep=Keep(values(backend.footprint)))
    assert list(caught.value.rows) == np.flatnonzero((chosen == expert).any(axis=1)).tolist()


def test_without_direct_io_it_warns_and_computes_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def no_direct(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags)

    monkeypatch.setattr(direct.os, "open", no_direct)
    with pytest.warns(RuntimeWarning, match=r"\.bin: this file system has no direct I/O"):
        backend = tiered(folder)
    monkeypatch.undo()
    assert all(map(same_bits, decode(backend), decode(CpuBackend(Checkpoint.open(folder)))))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_division_that_does_not_fit_is_refused(folder: Path) -> None:
    backend = tiered(folder, 4, 0)
    assert backend.tiers is not None
    with pytest.raises(ValueError, match=r"the arena has \d segments, not"):
        backend.tiers.arrange(quotas(backend.footprint, 32, 32))


def test_a_pool_that_is_not_there_is_refused(folder: Path) -> None:
    backend = tiered(folder)
    backend.allocate(0, 64)
    with pytest.raises(ValueError, match="an expert that is not in fast memory"):
        backend.forward(run_of(TOKENS[:4]), np.ones((8, 32), dtype=np.bool_), DraftQuality())


def test_drafts_that_would_read_the_slow_tier_are_refused(folder: Path) -> None:
    backend = tiered(folder)
    with pytest.raises(ConfigError, match="a draft has 4 bits, not 5"):
        backend.forward(run_of(TOKENS[:4]), None, DraftQuality(5))


def test_an_unknown_reader_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMOE_READER", "floppy")
    with pytest.raises(ConfigError, match="ELMOE_READER must be one of io_uring, threads, not 'floppy'"):
        tiered(folder)


def test_closed_backends_leave_no_descriptors(folder: Path) -> None:
    def count() -> int:
        backend = tiered(folder)
        del backend
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    assert count() == count() == count()
