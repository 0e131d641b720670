import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mock_backend import MockBackend
from test_draft import trees

from elmoe.engine.draft import DraftTree
from elmoe.engine.kv_cache import RowBuilder, SequenceCache, scratch_cells


def grown():
    """Root 9; children 3, 4; children of 3: 5; of 4: 6."""
    tree = DraftTree(9, width=2, depth=2)
    tree.begin_level()
    tree.grow([([3, 4], [-0.1, -0.2])])
    tree.begin_level()
    tree.grow([([5], [-0.1]), ([6], [-0.1])])
    return tree


def test_rows_of_a_run_see_all_before_them_and_themselves():
    builder = RowBuilder()
    builder.add_run(SequenceCache(4, 10, committed=3), [7, 8], want_last=True)
    builder.add_run(SequenceCache(2, 10), [6], want_last=False)
    rows = builder.build()
    assert rows.tokens.tolist() == [7, 8, 6]
    assert rows.sequences.tolist() == [4, 4, 2]
    assert rows.positions.tolist() == rows.cells.tolist() == [3, 4, 0]
    assert rows.prefix.tolist() == [4, 5, 1]
    assert rows.path.shape == (3, 0)
    assert rows.logits.tolist() == [1]
    assert rows.best == 0


def test_rows_of_nodes_see_the_committed_cells_and_their_lineage():
    tree, builder = grown(), RowBuilder()
    builder.add_nodes(SequenceCache(1, 20, committed=5), tree, [0, 2, 4], [0, 2, 4])
    rows = builder.build(best=3)
    assert rows.tokens.tolist() == [9, 4, 6]
    assert rows.positions.tolist() == [5, 6, 7]
    assert rows.cells.tolist() == [5, 6, 7]
    assert rows.prefix.tolist() == [5, 5, 5]
    assert rows.path.tolist() == [[5, -1, -1], [5, 6, -1], [5, 6, 7]]
    assert rows.logits.tolist() == [0, 1, 2]
    assert rows.best == 3
    assert {value.dtype for name, value in vars(rows).items() if name != "best"} == {np.dtype(np.int32)}


def test_a_commit_moves_the_accepted_nodes_down_in_order():
    backend, cache = MockBackend(), SequenceCache(0, 10, committed=3)
    backend.allocate(0, 10)
    backend.sequences[0].tokens[:] = np.arange(10)
    cache.commit_tree(backend, [0, 1, 2, 3, 4], [0, 2, 4])
    assert backend.sequences[0].tokens[:6].tolist() == [0, 1, 2, 3, 5, 7]
    assert cache.committed == 6


@given(trees(), st.integers(1, 20), st.data())
def test_drafting_and_verifying_stay_inside_the_scratch_cells(tree, count, data):
    cache = SequenceCache(0, 100, committed=data.draw(st.integers(0, 5)))
    limit = cache.committed + scratch_cells(tree.width, tree.depth, count)
    for nodes in (tree.forwarded, tree.best_nodes(count)):
        if not nodes:
            continue
        builder = RowBuilder()
        builder.add_nodes(cache, tree, nodes, nodes)
        assert builder.build().cells.max() < limit
