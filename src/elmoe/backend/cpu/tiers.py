"""The tiers of the cpu backend: the native store of a model's expert records, as the engine sees it."""

from __future__ import annotations

import os
from dataclasses import fields

import numpy as np

from elmoe.backend.cpu import _native
from elmoe.backend.protocol import Bool, Int32
from elmoe.backend.tiers import TierCounters, TierLayout
from elmoe.checkpoint.direct import open_direct
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import LSB_FILE, MSB_FILE
from elmoe.errors import ConfigError
from elmoe.models.footprint import Footprint, activation_bytes

READERS = ("", "io_uring", "threads")


class CpuTiers:
    """See `elmoe.backend.tiers.Tiers`."""

    def __init__(self, model: _native.Model, checkpoint: Checkpoint, sizes: Footprint, expert_bytes: int) -> None:
        """Give `model`, whose experts have no memory, an arena of at most `expert_bytes`.

        Environment: ELMOE_READER (io_uring, threads; default: the first that works). Raises StorageError, ConfigError.
        """
        self.layout = TierLayout.of(sizes)
        self._model, self._checkpoint = model, checkpoint
        reader = os.environ.get("ELMOE_READER", "")
        if reader not in READERS:
            raise ConfigError(f"ELMOE_READER must be one of {', '.join(READERS[1:])}, not {reader!r}")
        msb, direct = open_direct(checkpoint.path / MSB_FILE)
        lsb = open_direct(checkpoint.path / LSB_FILE)[0] if self.layout.planes == 2 else -1
        try:
            model.set_store(
                msb_file=msb,
                lsb_file=lsb,
                direct=direct,
                segment_bytes=self.layout.segment_bytes,
                segments=self.layout.segments(expert_bytes),
                staging=self.layout.staging,
                reader=reader,
            )
        except RuntimeError as error:
            raise ConfigError(f"ELMOE_READER={reader}: {error}") from error

    @property
    def reader(self) -> str:
        """`io_uring` (with registered buffers where the system allows them) or `threads`."""
        return self._model.store_reader()

    def activation_bytes(self, rows: int, logits: int) -> int:
        """An upper estimate."""
        return activation_bytes(self._checkpoint.shape, self._checkpoint.program, rows, logits)

    def arrange(self, quotas: Int32) -> None:
        """See `Tiers.arrange`; what `TierLayout.segments_for` says does not fit is refused with ValueError."""
        self._model.arrange_store(np.ascontiguousarray(quotas, dtype=np.int32))

    def kept(self) -> Bool:
        """[P, L, E], both planes."""
        return self._model.kept()

    def counters(self) -> TierCounters:
        """So far."""
        counted = self._model.store_counters()
        return TierCounters(**{field.name: counted[field.name] for field in fields(TierCounters)})
