"""Routing-aware verification: what is verified, by expected tokens per second of reading."""

from __future__ import annotations

from math import log

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.engine.draft import DraftTree
from elmoe.engine.verify_set import SlowTier, choose_nodes, routing_of

LAYERS, EXPERTS = 2, 8


def tree_of(nodes: list[tuple[int, float, list[int] | None]]) -> DraftTree:
    """Nodes (parent, chance given the parent, experts in both layers or None), the root's experts first."""
    tree = DraftTree(0, width=4, depth=4)
    for number, (parent, chance, experts) in enumerate(nodes):
        if number:
            tree.tokens.append(number)
            tree.parents.append(parent)
            tree.depths.append(tree.depths[parent] + 1)
            tree.scores.append(tree.scores[parent] + log(chance))
        if experts is not None:
            tree.routing[number] = np.array([experts, experts], dtype=np.int16)
    return tree


def slow(cold: npt.ArrayLike = 1.0, base: float = 1.0) -> SlowTier:
    """One second per byte; every expert costs `cold` bytes."""
    return SlowTier(np.broadcast_to(np.asarray(cold, dtype=np.float64), (LAYERS, EXPERTS)).copy(), 1.0, base)


def test_all_nodes_are_verified_where_nothing_is_read() -> None:
    tree = tree_of([(-1, 1, [0]), (0, 0.01, [1]), (0, 0.5, [2]), (2, 0.1, None)])
    assert choose_nodes([tree], [8], slow(cold=0.0)) == [[0, 1, 2, 3]]
    assert choose_nodes([tree], [2], slow(cold=0.0)) != [[0, 1, 2, 3]]


def test_of_two_nodes_the_one_that_reads_less_goes_first() -> None:
    tree = tree_of([(-1, 1, [0, 1]), (0, 0.45, [2, 3]), (0, 0.40, [0, 1])])
    assert tree.best_nodes(1) == [0, 1]
    assert choose_nodes([tree], [1], slow()) == [[0, 2]]


def test_a_node_that_costs_more_than_it_gives_is_left_out() -> None:
    tree = tree_of([(-1, 1, [0, 1]), (0, 0.9, [0, 1]), (1, 0.05, [6, 7])])
    assert choose_nodes([tree], [8], slow()) == [[0, 1]]


def test_an_expert_that_another_sequence_reads_is_free() -> None:
    alone = tree_of([(-1, 1, [0, 1]), (0, 0.3, [4, 5])])
    other = tree_of([(-1, 1, [4, 5]), (0, 0.01, [6, 7])])
    assert choose_nodes([alone], [4], slow(base=0.1)) == [[0]]
    assert choose_nodes([alone, other], [4, 4], slow(base=0.1)) == [[0, 1], [0]]


def test_leaves_that_the_draft_has_not_run_over_are_reckoned_by_what_nodes_bring() -> None:
    costly = tree_of([(-1, 1, [0, 1]), (0, 0.9, [2, 3]), (1, 0.2, None)])
    cheap = tree_of([(-1, 1, [0, 1]), (0, 0.9, [0, 1]), (1, 0.2, None)])
    assert choose_nodes([costly], [8], slow(base=0.5)) == [[0, 1]]
    assert choose_nodes([cheap], [8], slow(base=0.5)) == [[0, 1, 2]]


def test_what_was_announced_is_counted_by_layer_and_expert() -> None:
    tree = tree_of([(-1, 1, [0, 1]), (0, 0.9, [1, 2]), (1, 0.5, None)])
    counts = routing_of([tree], [[0, 1, 2]], EXPERTS)
    assert counts is not None
    assert counts.tolist() == [[1, 2, 1, 0, 0, 0, 0, 0]] * LAYERS
    assert routing_of([tree_of([(-1, 1, None)])], [[0]], EXPERTS) is None


trees = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.floats(0.01, 1.0),
        st.none() | st.lists(st.integers(0, EXPERTS - 1), min_size=2, max_size=2, unique=True),
    ),
    max_size=12,
)


@given(
    st.lists(trees, min_size=1, max_size=4),
    st.integers(0, 10),
    st.lists(st.floats(0, 5), min_size=EXPERTS, max_size=EXPERTS),
    st.floats(0.01, 20),
)
def test_sets_are_trees_within_bounds_and_never_give_less_than_plain_decoding(
    drafted: list[list[tuple[int, float, list[int] | None]]], most: int, cold: list[float], base: float
) -> None:
    built = []
    for nodes in drafted:
        built.append(
            tree_of([(-1, 1.0, [0, 1]), *((parent % (i + 1), p, e) for i, (parent, p, e) in enumerate(nodes))])
        )
    chosen = choose_nodes(built, [most] * len(built), slow(cold, base))
    for tree, nodes in zip(built, chosen, strict=True):
        assert nodes == sorted(set(nodes))
        assert nodes[0] == 0
        assert len(nodes) <= most + 1
        assert all(tree.parents[node] in nodes for node in nodes[1:])


@pytest.mark.parametrize("most", [0, 3])
def test_the_same_input_gives_the_same_set(most: int) -> None:
    nodes = [(-1, 1.0, [0, 1]), (0, 0.5, [2, 3]), (0, 0.5, [2, 3]), (1, 0.5, None)]
    first = choose_nodes([tree_of(nodes), tree_of(nodes)], [most, most], slow(base=3))
    assert first == choose_nodes([tree_of(nodes), tree_of(nodes)], [most, most], slow(base=3))
