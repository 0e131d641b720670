from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from test_draft import trees

from elmoe.engine.draft import DraftTree
from elmoe.engine.verify import accept


def brute_force(tree, verified, choices):
    """The longest chain of verified nodes in which every token is the target's choice after its parent."""

    def holds(node):
        line = tree.lineage(node)
        if not set(line) <= set(verified):
            return False
        return all(choices[parent] == tree.tokens[child] for parent, child in pairwise(line))

    return max((tree.lineage(node) for node in verified if holds(node)), key=len)


@given(trees(), st.integers(1, 20), st.data())
def test_accept_equals_the_longest_chain_of_the_targets_choices(tree, count, data):
    verified = tree.best_nodes(count)
    choices = {}
    for node in verified:  # mostly a token of a child, so that paths grow
        children = [tree.tokens[child] for child in range(len(tree.tokens)) if tree.parents[child] == node]
        choices[node] = data.draw(st.sampled_from([*children, *children, 0, 5]))
    asked = []

    def choose(node):
        asked.append(node)
        return choices[node]

    verdict = accept(tree, verified, choose)
    assert verdict.path == brute_force(tree, verified, choices)
    assert asked == verdict.path, "the target's choice is asked for once per node of the path"
    assert verdict.bonus == choices[verdict.path[-1]]
    has_children = [any(tree.parents[child] == node for child in verified if child) for node in verdict.path]
    assert verdict.tested == sum(has_children)
    assert len(verdict.path) - 1 <= verdict.tested <= len(verdict.path)


def test_an_unverified_child_is_not_accepted():
    tree = DraftTree(0, width=2, depth=1)
    tree.begin_level()
    tree.grow([([3, 4], [-0.1, -0.2])])
    verdict = accept(tree, [0, 1], lambda node: 4)
    assert (verdict.path, verdict.bonus, verdict.tested) == ([0], 4, 1)


def test_a_lone_root_gives_its_bonus_token_and_tests_nothing():
    verdict = accept(DraftTree(0, 1, 0), [0], lambda node: 9)
    assert (verdict.path, verdict.bonus, verdict.tested) == ([0], 9, 0)
