"""Token files on the training device, and rows of whole documents drawn from a mixture of them.

A row starts with a document, as a prompt does, and goes on with documents of any source, so that what came before says
nothing about what comes next. Everything is a vectorised gather on the device: drawing costs microseconds a row.
Knows nothing about text; `prepare.py` writes the files.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from token_files import END, read_tokens

DRAWN_AT_ONCE = 4096
"""Rows that are drawn together."""
CALIBRATION_ROUNDS = 8
"""Documents are cut at the end of a row, long ones more often: how often each source is drawn makes up for that."""


def read_mixture(path: Path) -> dict[str, float]:
    """Source -> share of the training tokens, as in mixture.toml; they sum to 1."""
    shares = {name: float(share) for name, share in tomllib.loads(path.read_text())["share"].items()}
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()}


@dataclass
class Source:
    """One source's documents, END after each, as a stretch of `Corpus.tokens`."""

    name: str
    share: float
    starts: Tensor
    """[documents] int64: where each begins in `Corpus.tokens`."""
    lengths: Tensor
    """[documents] int64, END included."""


class Corpus:
    """The training sources of a mixture on one device."""

    def __init__(
        self, folder: Path, mixture: dict[str, float], T: int, device: torch.device, seed: int, one_source: float = 0.0
    ) -> None:
        """Args:
        folder: holds NAME.train.bin, uint16 tokens.
        mixture: shares of the sources; each needs its file.
        T: tokens a row.
        device: where tokens live and rows are drawn.
        seed: of the draws.
        one_source: share of the rows whose documents all come from one source.

        """
        self.T, self.device, self.one_source = T, device, one_source
        self.generator = torch.Generator(device).manual_seed(seed)
        self.sources: list[Source] = []
        pieces, base = [], 0
        for name, share in mixture.items():
            path = folder / f"{name}.train.bin"
            if not path.exists():
                raise SystemExit(f"{path}: missing; run prepare.py, or leave {name} out of mixture.toml")
            tokens = read_tokens(path)
            ends = np.flatnonzero(tokens == END) + 1
            starts = np.concatenate([[0], ends[:-1]])
            at = [torch.from_numpy(array.astype(np.int64)).to(device) for array in (starts + base, ends - starts)]
            self.sources.append(Source(name, share, *at))
            pieces.append(tokens.view(np.int16))
            base += tokens.size
        slack = np.full(T + 1, END, np.int16)  # a document drawn last may be read past its end
        self.tokens = torch.from_numpy(np.concatenate([*pieces, slack])).to(device)
        fill = torch.tensor([float(s.lengths.clamp(max=T).float().mean()) for s in self.sources], device=device)
        self._shares = torch.tensor([s.share for s in self.sources], device=device)
        self._rates = self._shares / fill
        """How often a document of a source is drawn, against the others."""
        self._documents_per_row = min(256, int(2 * (T + 1) * float((self._shares / fill).sum())) + 4)
        for _ in range(CALIBRATION_ROUNDS):
            self._rates *= (self._shares / self.drawn_shares(DRAWN_AT_ONCE).clamp(min=1e-6)).clamp(0.5, 2)
        self._rows: Tensor | None = None
        self._next = 0

    @property
    def epochs_per_token(self) -> dict[str, float]:
        """How often a training token passes over each source, times the tokens trained."""
        return {s.name: s.share / float(s.lengths.sum()) for s in self.sources}

    def batch(self, rows: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets, [rows, T] int64 each."""
        if self._rows is None or self._next + rows > len(self._rows):
            self._rows, self._next = self.draw(max(rows, DRAWN_AT_ONCE)), 0
        drawn = self._rows[self._next : self._next + rows].long() & 0xFFFF
        self._next += rows
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()

    def draw(self, rows: int) -> Tensor:
        """[rows, T + 1] int16: documents one after another, the last one cut."""
        index, _ = self._plan(rows)
        return self.tokens[index]

    def drawn_shares(self, rows: int) -> Tensor:
        """[sources]: the share of the tokens that each source has in freshly drawn rows."""
        _, source = self._plan(rows)
        return source.flatten().bincount(minlength=len(self.sources)) / source.numel()

    def _plan(self, rows: int) -> tuple[Tensor, Tensor]:
        """Index into `tokens` and source number of every place, [rows, T + 1] each."""
        count, T = self._documents_per_row, self.T
        shape = rows, count
        which = torch.multinomial(self._rates, rows * count, True, generator=self.generator).view(shape)
        alone = torch.multinomial(self._shares, rows, True, generator=self.generator)[:, None]
        is_alone = torch.rand((rows, 1), device=self.device, generator=self.generator) < self.one_source
        which = torch.where(is_alone, alone, which)
        starts, lengths = torch.empty_like(which), torch.empty_like(which)
        for number, source in enumerate(self.sources):
            chosen = torch.randint(len(source.starts), shape, device=self.device, generator=self.generator)
            mine = which == number
            starts = torch.where(mine, source.starts[chosen], starts)
            lengths = torch.where(mine, source.lengths[chosen], lengths)
        # Of a document longer than a row, half of the draws begin inside, else its end would never be read.
        surplus = (lengths - T).clamp(min=0)
        inside = torch.rand(shape, device=self.device, generator=self.generator)
        skip = ((2 * inside - 1).clamp(min=0) * surplus).long()
        starts, lengths = starts + skip, lengths - skip
        ends = lengths.cumsum(1)
        position = torch.arange(T + 1, device=self.device).expand(rows, T + 1).contiguous()
        document = torch.searchsorted(ends, position, right=True).clamp(max=count - 1)
        begin = (ends - lengths).gather(1, document)
        index = starts.gather(1, document) + position - begin
        return index.clamp(max=len(self.tokens) - 1), which.gather(1, document)
