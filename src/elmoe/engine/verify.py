"""Acceptance: which part of a draft tree is what the target would have written itself.

The rule is one for greedy and sampled decoding. At each node the target's own choice of the next token is known (an
argmax of its scores with the position's noise, see `sampler.py`). If a verified child carries that token, the walk goes
on there; otherwise the choice is the bonus token and the walk ends. So the emitted tokens are, one by one, the target's
choices: lossless by construction, whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elmoe.engine.draft import DraftTree


@dataclass(frozen=True)
class Verdict:
    """The outcome of verifying one tree."""

    path: list[int]
    """Accepted nodes, the root first."""
    bonus: int
    """The target's token after the last accepted node."""
    tested: int
    """Draft positions ruled on: one per node of the path that had verified children."""


def accept(tree: DraftTree, verified: Sequence[int], choose: Callable[[int], int]) -> Verdict:
    """Walk from the root along the target's choices.

    verified: the nodes that were in the verify pass, root included. choose: the target's next token after a
    verified node; called for the nodes of the path only.
    """
    child_of = {(tree.parents[node], tree.tokens[node]): node for node in verified if node}
    with_children = {tree.parents[node] for node in verified if node}
    path, tested = [0], 0
    while True:
        tested += path[-1] in with_children
        token = choose(path[-1])
        child = child_of.get((path[-1], token))
        if child is None:
            return Verdict(path, token, tested)
        path.append(child)
