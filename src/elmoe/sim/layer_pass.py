"""One pass through the experts of one layer, expert by expert: what the cycle mode plays and the fast formula is given.

Knows nothing about machines or time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.layer import ExpertWork
from elmoe.sim.locality import power_law
from elmoe.sim.model import SimModel
from elmoe.sim.quantity import nearest

ORDERS = ("grouped", "interleaved")
PASSES = ("ar", "verify", "draft")


@dataclass(frozen=True)
class LayerPass:
    """One pass through the experts of one layer."""

    rows: tuple[int, ...]
    """Of each expert, by index; 0 where no token chose it."""
    hits: tuple[bool, ...]
    """Which experts have (part of) their weights in HB."""
    tokens: int
    """Rows of the layer's input."""
    hidden: int
    expert_hidden: int
    hb_bytes: int
    """Per hit, read from HB."""
    hit_ext_bytes: int
    """Per hit, read from EXT beside it: the LSB plane, or 0."""
    miss_bytes: int
    hb_bits: int
    """Weight bits multiplied from HB: 8 or 4."""
    miss_bits: int

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.hits):
            raise ConfigError(f"{len(self.rows)} experts have rows and {len(self.hits)} are hits or misses")
        if not all(0 <= rows <= self.tokens for rows in self.rows):
            raise ConfigError(f"rows of an expert must lie in 0..tokens = {self.tokens}")
        if not {self.hb_bits, self.miss_bits} <= {4, 8}:
            raise ConfigError(f"weights have 8 or 4 bits, not {self.hb_bits} and {self.miss_bits}")

    @property
    def split(self) -> bool:
        """Whether hits are read from both memories."""
        return self.hit_ext_bytes > 0

    def schedule(self, order: str) -> list[int]:
        """Experts that have rows, in the order in which they are computed."""
        if order not in ORDERS:
            raise ConfigError(f"unknown order {order!r}{nearest(order, ORDERS)}")
        chosen = [index for index, rows in enumerate(self.rows) if rows]
        return chosen if order == "interleaved" else sorted(chosen, key=lambda index: not self.hits[index])

    def work(self, ragged: bool = True) -> ExpertWork:
        """The same pass for the fast formula, [1]: with the rows of each expert, or spread evenly."""
        hits = [rows for rows, hit in zip(self.rows, self.hits, strict=True) if rows and hit]
        misses = [rows for rows, hit in zip(self.rows, self.hits, strict=True) if rows and not hit]
        return ExpertWork(
            hits=np.array([float(len(hits))]),
            misses=np.array([float(len(misses))]),
            rows=np.array([float(sum(self.rows))]),
            tokens=np.array([float(self.tokens)]),
            hidden=self.hidden,
            expert_hidden=self.expert_hidden,
            hb_bytes=self.hb_bytes,
            hit_ext_bytes=self.hit_ext_bytes,
            miss_bytes=self.miss_bytes,
            hb_bits=self.hb_bits,
            miss_bits=self.miss_bits,
            hit_rows=np.array([hits or [0]], dtype=np.float64) if ragged else None,
            miss_rows=np.array([misses or [0]], dtype=np.float64) if ragged else None,
        )


def draw_layer(
    model: SimModel, name: str, tokens: int, cached: float, seed: int = 0, exponent: float = 0.5
) -> LayerPass:
    """A pass of `PASSES` with routing drawn at random: every token takes its experts without replacement.

    cached: share of the experts that HB holds, the most popular ones. Their popularity falls with rank to the power of
    -exponent. `ar` reads them whole from HB; `verify` reads MSB planes from HB and LSB planes from EXT (models with
    MXFP4 experts: whole ones from HB); `draft` reads MSB planes only, of a pool of the cached experts (at least as many
    as a token takes). Same arguments, same pass. ConfigError for an unknown name or a share beyond 0..1.
    """
    if name not in PASSES:
        raise ConfigError(f"unknown pass {name!r}{nearest(name, PASSES)}")
    if not (0 <= cached <= 1 and tokens > 0):
        raise ConfigError(f"cached must lie in 0..1 and tokens be positive, not {cached:g} and {tokens}")
    rng = np.random.default_rng(seed)
    rank = rng.permutation(model.experts)
    held = max(round(cached * model.experts), model.experts_per_tok if name == "draft" else 0)
    hits = rank < held
    weights = power_law(np.asarray(exponent), model.experts)[rank]
    # The largest of log-weights plus Gumbel noise are draws without replacement.
    scores = np.log(weights) + rng.gumbel(size=(tokens, model.experts))
    if name == "draft":
        scores[:, ~hits] = -np.inf
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, : model.experts_per_tok]
    rows = np.bincount(chosen.ravel(), minlength=model.experts)
    return _layer_pass(model, name, tokens, rows, hits)


def counted_layer(model: SimModel, name: str, tokens: int, experts: int, hits: int, seed: int = 0) -> LayerPass:
    """A pass of `PASSES` over `experts` distinct experts, `hits` of which HB holds; rows fall on them at random.

    Every chosen expert has a row at least and `tokens` at most. Same arguments, same pass. ConfigError where the
    tokens cannot choose so many experts, or so few.
    """
    if name not in PASSES:
        raise ConfigError(f"unknown pass {name!r}{nearest(name, PASSES)}")
    total = tokens * model.experts_per_tok
    if not (0 <= hits <= experts <= model.experts and model.experts_per_tok <= experts <= total):
        raise ConfigError(f"{tokens} tokens cannot choose {experts} of {model.experts} experts with {hits} hits")
    rng = np.random.default_rng(seed)
    rows = np.ones(experts, dtype=np.int64)
    while (left := total - int(rows.sum())) > 0:
        room = rows < tokens
        rows[room] = np.minimum(rows[room] + rng.multinomial(left, np.full(room.sum(), 1 / room.sum())), tokens)
    where = rng.permutation(model.experts)[:experts]
    all_rows, held = np.zeros(model.experts, dtype=np.int64), np.zeros(model.experts, dtype=bool)
    all_rows[where], held[where[:hits]] = rows, True
    return _layer_pass(model, name, tokens, all_rows, held)


def _layer_pass(
    model: SimModel, name: str, tokens: int, rows: npt.NDArray[np.int64], hits: npt.NDArray[np.bool_]
) -> LayerPass:
    """Bytes and bits of a pass of `PASSES`; rows and hits by expert, [E]."""
    split = name == "verify" and not model.mxfp4_experts
    planes = split or name == "draft"
    return LayerPass(
        rows=tuple(int(count) for count in rows),
        hits=tuple(bool(hit) for hit in hits),
        tokens=tokens,
        hidden=model.hidden,
        expert_hidden=model.expert_hidden,
        hb_bytes=round(model.expert_draft_bytes if planes else model.expert_bytes),
        hit_ext_bytes=model.expert_params // 2 if split else 0,
        miss_bytes=round(model.expert_bytes),
        hb_bits=4 if planes else model.expert_bits,
        miss_bits=model.expert_bits,
    )
