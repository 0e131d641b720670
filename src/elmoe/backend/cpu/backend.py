"""The CPU backend: one native call per forward pass, at the speed of the memory.

The C++ core (`native/`) walks the layer program, groups rows by expert, reads every distinct expert once and adds
everything in an order that depends on the row alone, so a row's logits are bit-identical in any batch, tree and number
of threads. Environment: ELMOE_NUM_THREADS (default: the physical cores that affinity mask and cgroup allow), ELMOE_ISA
(avx512, avx2_vnni, avx2, portable; default: the best that the machine has).
"""

from __future__ import annotations

import os

import numpy as np

from elmoe.backend.cpu import _native
from elmoe.backend.cpu.build import build_model
from elmoe.backend.cpu.tiers import CpuTiers
from elmoe.backend.protocol import BestLogits, Bool, DraftQuality, ForwardResult, Int32, Rows
from elmoe.backend.rope import ROPE_BLOCK, rope_block
from elmoe.backend.tiers import Keep, no_values
from elmoe.backend.traffic import count_traffic, tiered_traffic
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import LSB_FILE, MSB_FILE, Plane, expert_title
from elmoe.checkpoint.manifest import AGAIN
from elmoe.errors import CapacityError, CheckpointError, ConfigError, ExpertReadError
from elmoe.models.footprint import footprint
from elmoe.quant.bitnested import STORED_DRAFT_BITS, Treatment

WeightBits = tuple[int, int, int]
"""(kind, bits kept, bits set) of a code's unsigned byte; see `WeightBits` in native/src/kernels.h."""

MSB_PLANE, BOTH_PLANES, MASKED = 0, 1, 2
TARGET_BITS: WeightBits = (BOTH_PLANES, 255, 0)


class CpuBackend:
    """See `elmoe.backend.protocol.Backend`."""

    def __init__(self, checkpoint: Checkpoint, expert_bytes: int | None = None) -> None:
        """expert_bytes: the most memory that experts may take; the others stay in the files. None: all are mapped."""
        self.checkpoint = checkpoint
        self.shape = checkpoint.shape
        self.footprint = footprint(checkpoint.shape, checkpoint.program)
        self.tiers: CpuTiers | None = None
        if expert_bytes is not None:
            checkpoint.load_dense()
        try:
            self._model, self._ropes = build_model(checkpoint, experts_mapped=expert_bytes is None)
            if expert_bytes is not None:
                self.tiers = CpuTiers(self._model, checkpoint, self.footprint, expert_bytes)
            self.threads = _native.threads()
        except ValueError as error:  # ELMOE_ISA or ELMOE_NUM_THREADS
            raise ConfigError(str(error)) from error
        self._rope_blocks = dict.fromkeys(self._ropes, 0)

    @property
    def isa(self) -> str:
        """The instruction-set path that computes."""
        return self._model.isa

    def phase_seconds(self) -> dict[str, float]:
        """Seconds spent in each phase of a layer, summed over all passes so far (as the first thread saw them)."""
        return self._model.phase_seconds()

    def allocate(self, sequence: int, cells: int) -> None:
        """Give `sequence` a KV cache of `cells` cells: FP16, memory taken as cells are written.

        Raises CapacityError when there is no address space left for it.
        """
        try:
            for rope, number in self._ropes.items():
                while self._rope_blocks[rope] * ROPE_BLOCK < min(cells, self.shape.max_context):
                    self._model.extend_rope(number, rope_block(rope, self._rope_blocks[rope]))
                    self._rope_blocks[rope] += 1
            self._model.allocate(sequence, cells)
        except MemoryError:
            self._model.release(sequence)
            raise CapacityError(f"no memory for a KV cache of {cells} tokens") from None

    def release(self, sequence: int) -> None:
        """Drop the KV cache of `sequence`."""
        self._model.release(sequence)

    def move(self, sequence: int, source: Int32, destination: Int32) -> None:
        """Copy KV cells ``source[i] -> destination[i]``, as if all at once."""
        self._model.move(sequence, source, destination)

    def copy(self, source: int, destination: int, cells: int) -> None:
        """Copy the first `cells` KV cells of one sequence to those of another."""
        self._model.copy(source, destination, cells)

    def forward(
        self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None, keep: Keep | None = None
    ) -> ForwardResult:
        """Run the model over `rows`; see `Backend.forward`.

        Raises ExpertReadError for an expert that cannot be read or is damaged (found whenever it is read), ConfigError
        for a draft quality that only the reference backend has, CheckpointError for logits that are not finite.
        """
        most = self.shape.experts_per_tok
        values = expected = None
        if self.tiers is not None:
            self._check_tiered(draft)
            values = no_values(*self._grid) if keep is None else keep.values
            expected = None if keep is None else keep.expected
            before = self.tiers.counters()
        logits, tokens, best, log_total, experts, read, finite, fault = self._model.forward(
            rows.tokens,
            rows.sequences,
            rows.positions,
            rows.cells,
            rows.prefix,
            rows.path,
            rows.logits,
            pool if draft is not None else None,
            TARGET_BITS if draft is None else weight_bits(draft),
            most if draft is None else min(draft.experts_per_tok or most, most),
            min(rows.best, self.shape.vocab),
            values,
            expected,
        )
        if fault is not None:
            raise self._read_error(*fault)
        if not finite:
            raise CheckpointError(f"{self.checkpoint.path.name}: logits are not finite; the weights are damaged")
        traffic = count_traffic(self.footprint, rows, read, pool, draft)
        if self.tiers is not None:
            traffic = tiered_traffic(self.footprint, traffic.kv_bytes, draft, before, self.tiers.counters())
        return ForwardResult(
            logits=logits,
            experts=experts,
            read=read,
            traffic=traffic,
            best=BestLogits(tokens, best, log_total) if rows.best else None,
        )

    @property
    def _grid(self) -> tuple[int, int]:
        return self.footprint.moe_layers, self.footprint.experts

    def _check_tiered(self, draft: DraftQuality | None) -> None:
        """A draft touches the fast tier only, and what is there of most experts is their MSB records."""
        one_plane = self.footprint.expert_lsb == 0
        if draft is not None and draft.bits != STORED_DRAFT_BITS and not one_plane:
            raise ConfigError(
                f"with experts in the slow tier a draft has {STORED_DRAFT_BITS} bits, not {draft.bits}: "
                "others would read it"
            )

    def _read_error(self, plane: Plane, block: int, expert: int, code: int, rows: list[int]) -> ExpertReadError:
        title, folder = expert_title(plane, block, expert), self.checkpoint.path
        if code == _native.BAD_CHECKSUM:
            what = f"{title} is damaged (CRC-32 mismatch); {AGAIN}"
        elif code == _native.END_OF_FILE:
            what = f"the file ends inside the {title}; was it replaced while the model was open?"
        else:
            what = f"{title} cannot be read: {os.strerror(code)}"
        return ExpertReadError(f"{folder / (MSB_FILE if plane == 'msb' else LSB_FILE)}: {what}", rows)


def weight_bits(quality: DraftQuality) -> WeightBits:
    """How the kernels see the weights of a draft.

    The stored width reads MSB planes alone; other LSB-augmented widths mask the merged byte (code + 128): the upper
    `bits` are kept and the next lower one is set. Raises ConfigError for the treatments that only exist to be compared.
    """
    if quality.bits == 8:
        return TARGET_BITS
    if quality.treatment is not Treatment.AUGMENT:
        raise ConfigError(
            f"the cpu backend drafts with LSB-augmented weights only, not {quality.treatment.value}; "
            "use --backend reference to compare treatments"
        )
    if quality.bits == STORED_DRAFT_BITS:
        return MSB_PLANE, 255, 0
    dropped = 8 - quality.bits
    return MASKED, 255 >> dropped << dropped, 1 << (dropped - 1)


def read_bandwidth(size_bytes: int = 1 << 30, repeats: int = 5) -> float:
    """Median rate, in GB/s, at which all threads of the backend read `size_bytes` of memory."""
    return size_bytes / 1e9 / float(np.median(_native.time_reads(size_bytes, repeats)))
