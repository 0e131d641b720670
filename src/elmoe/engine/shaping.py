"""What a request does to its logits before a token is chosen: penalties, biases, and the mask of a grammar.

All of it depends on the tokens before the row alone, so a row of a draft tree is shaped by the request's tokens and
the path to its node. Draft and target rows are shaped alike: a draft proposes what the target may choose, and the
target's choice after a node is what plain decoding would choose there. Nothing is kept of a path, so a rejected node
leaves no trace. Knows nothing about trees, passes or models.

Source of the penalties: the OpenAI API (presence, frequency: over generated tokens), CTRL (arXiv 1909.05858;
repetition: over prompt and generated tokens). They apply in the order repetition, frequency and presence, bias, mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from elmoe.backend.protocol import Bool, Int32
from elmoe.engine.sampler import Sampling, Shape
from elmoe.quant.bitnested import Float32


class Constraint(Protocol):
    """Which tokens may come next, by a grammar. Stands after the tokens that it was given."""

    def mask(self, path: Sequence[int]) -> Bool | None:
        """Tokens [V] allowed after the tokens so far and `path`; None: any, also where the path has left the grammar
        (behind a stop token, where nothing is read any more).
        """

    def append(self, token: int) -> None:
        """Go on by a token that `mask` allowed."""

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but a stop token."""


class Shaper:
    """The logits of one request."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], vocab: int, constraint: Constraint | None = None
    ) -> None:
        """vocab: number of logits; a token of `prompt` or of a bias is below it."""
        self._sampling, self.constraint = sampling, constraint
        self._masks: dict[tuple[int, ...], Bool | None] = {}
        self._bias_tokens = np.array([token for token, _ in sampling.logit_bias], dtype=np.intp)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self._counts: Int32 | None = None
        self._seen: Bool | None = None
        if sampling.penalises:
            self._counts, self._seen = np.zeros(vocab, dtype=np.int32), np.zeros(vocab, dtype=np.bool_)
            self._seen[np.asarray(prompt, dtype=np.intp)] = True

    def append(self, token: int) -> None:
        """A token was generated."""
        self._masks.clear()
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self.constraint is not None:
            self.constraint.append(token)

    def after(self, path: Sequence[int]) -> Shape:
        """How the logits are shaped that follow the request's tokens and `path`."""
        return partial(self._shape, tuple(path))

    def _shape(self, path: tuple[int, ...], logits: Float32) -> Float32:
        shaped = self._penalised(path, logits)
        if len(self._biases):
            np.add.at(shaped, self._bias_tokens, self._biases)
        mask = self._mask(path)
        return shaped if mask is None else np.where(mask, shaped, np.float32(-np.inf))

    def _penalised(self, path: tuple[int, ...], logits: Float32) -> Float32:
        """A copy of the logits, less the penalties."""
        sampling, shaped = self._sampling, logits.copy()
        if self._counts is None or self._seen is None:
            return shaped
        counts, seen = self._counts, self._seen
        if path:
            counts, seen = counts.copy(), seen.copy()
            np.add.at(counts, list(path), 1)
            seen[list(path)] = True
        if sampling.repetition_penalty != 1:
            factor = np.float32(sampling.repetition_penalty)
            shaped[seen] = np.where(shaped[seen] > 0, shaped[seen] / factor, shaped[seen] * factor)
        generated = np.flatnonzero(counts)
        shaped[generated] -= np.float32(sampling.frequency_penalty) * counts[generated].astype(np.float32)
        shaped[generated] -= np.float32(sampling.presence_penalty)
        return shaped

    def _mask(self, path: tuple[int, ...]) -> Bool | None:
        """Kept until the next token: the verify pass asks for nodes that were masked while drafting."""
        if self.constraint is None:
            return None
        if path not in self._masks:
            self._masks[path] = self.constraint.mask(path)
        return self._masks[path]
