import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from elmoe.engine.draft import DraftTree


@st.composite
def trees(draw, max_width=4, max_depth=5, vocab=6):
    """A grown tree: any log-probabilities, ties included; sometimes fewer candidates than the width."""
    width, depth = draw(st.integers(1, max_width)), draw(st.integers(0, max_depth))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tree = DraftTree(int(rng.integers(vocab)), width, depth)
    for _ in range(depth):
        frontier = tree.begin_level()
        proposals = []
        for _ in frontier:
            count = int(rng.integers(1, min(width, vocab) + 1))
            log_probabilities = -np.sort(rng.integers(0, 4, count) / 2.0)
            proposals.append((rng.permutation(vocab)[:count], log_probabilities))
        tree.grow(proposals)
    return tree


def test_grows_level_by_level_the_best_nodes_first():
    tree = DraftTree(7, width=2, depth=2)
    assert tree.begin_level() == [0]
    tree.grow([(np.array([3, 4]), np.array([-0.1, -2.0]))])
    assert tree.begin_level() == [1, 2]
    tree.grow([(np.array([5, 6]), np.array([-0.5, -3.0])), (np.array([5, 8]), np.array([-0.2, -0.3]))])
    assert tree.begin_level() == []
    assert tree.tokens == [7, 3, 4, 5, 6, 5, 8]
    assert tree.parents == [-1, 0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(tree.scores, [0, -0.1, -2.0, -0.6, -3.1, -2.2, -2.3])
    assert tree.forwarded == [0, 1, 2]
    assert tree.best_nodes(3) == [0, 1, 2, 3]
    assert tree.lineage(6) == [0, 2, 6]


def test_a_tree_of_depth_zero_is_its_root():
    tree = DraftTree(7, width=3, depth=0)
    assert tree.begin_level() == []
    assert tree.best_nodes(8) == [0]


def test_log_probabilities_above_zero_do_not_lift_a_child_above_its_parent():
    tree = DraftTree(0, 1, 1)
    tree.begin_level()
    tree.grow([(np.array([1]), np.array([1e-12]))])
    assert tree.scores == [0.0, 0.0]


@given(trees(), st.integers(1, 30))
def test_best_nodes_are_a_tree_with_the_best_scores(tree, count):
    best = tree.best_nodes(count)
    assert best == sorted(set(best))
    assert best[0] == 0
    assert len(best) == min(count + 1, len(tree.tokens))
    assert all(tree.parents[node] in best for node in best[1:])
    left_out = [tree.scores[node] for node in range(1, len(tree.tokens)) if node not in best]
    assert max(left_out, default=-np.inf) <= min((tree.scores[node] for node in best[1:]), default=np.inf)


@given(trees())
def test_scores_never_rise_along_a_path_and_depths_count_it(tree):
    for node in range(1, len(tree.tokens)):
        parent = tree.parents[node]
        assert parent < node
        assert tree.scores[node] <= tree.scores[parent]
        assert tree.depths[node] == tree.depths[parent] + 1 == len(tree.lineage(node)) - 1
        assert tree.depths[node] <= tree.depth


@given(trees())
def test_the_draft_runs_over_at_most_width_nodes_a_level_parents_before_children(tree):
    assert len(tree.forwarded) == len(set(tree.forwarded))
    assert len(tree.forwarded) <= (1 + tree.width * (tree.depth - 1) if tree.depth else 0)
    for index, node in enumerate(tree.forwarded[1:], start=1):
        assert tree.parents[node] in tree.forwarded[:index]
    for depth in range(tree.depth):
        assert sum(tree.depths[node] == depth for node in tree.forwarded) <= tree.width
