import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.engine.expert_pool import ExpertPool
from elmoe.errors import ConfigError

DECAY = 0.75


def new_pool(layers, experts, experts_per_tok, slots):
    return ExpertPool(layers, experts, experts_per_tok, slots, DECAY)


def routing(*experts):
    """One row, one layer."""
    return np.array(experts, dtype=np.int16).reshape(1, 1, -1)


def mask(experts, *members):
    out = np.zeros((1, experts), dtype=np.bool_)
    out[0, list(members)] = True
    return out


def members(pool, layer=0):
    return np.flatnonzero(pool.resident[layer]).tolist()


def test_the_hottest_are_wanted_and_enter_when_they_are_read():
    pool = new_pool(1, 6, 2, 3)
    assert members(pool) == [0, 1, 2]
    for experts in ((5, 4), (5, 4), (5, 1)):
        pool.observe(routing(*experts))
    wanted = pool.choose()
    assert np.flatnonzero(wanted[0]).tolist() == [1, 4, 5]
    pool.fill(wanted, mask(6, 5, 3))  # 4 was not read, 3 was read but is not wanted
    assert members(pool) == [0, 1, 5], "the wanted ones, then the hottest residents, ties to the lower number"


def test_hotness_fades_by_one_step_at_a_time():
    pool = new_pool(1, 4, 1, 2)
    pool.observe(np.array([[[3]], [[3]]], dtype=np.int16))
    pool.fade()
    assert pool.hotness.tolist() == [[0, 0, 0, 2 * DECAY]]


def test_layers_have_pools_of_their_own():
    pool = new_pool(2, 4, 1, 1)
    pool.observe(np.array([[[3], [2]]], dtype=np.int16))
    pool.fill(pool.choose(), np.ones((2, 4), dtype=np.bool_))
    assert (members(pool, 0), members(pool, 1)) == ([3], [2])


def test_shrinking_drops_the_coldest_and_growing_waits_for_a_pass():
    pool = new_pool(1, 6, 2, 4)
    pool.observe(routing(3, 1))
    pool.resize(2)
    assert members(pool) == [1, 3]
    pool.resize(5)
    assert members(pool) == [1, 3]
    pool.fill(pool.choose(), mask(6, 0, 4))
    assert members(pool) == [0, 1, 3, 4]


@pytest.mark.parametrize("slots", [1, 7])
def test_an_impossible_size_is_refused(slots):
    text = rf"an expert pool of {slots} per layer is impossible; 2 \(one token's experts\) to 6 \(all\) are possible"
    with pytest.raises(ConfigError, match=text):
        new_pool(1, 6, 2, slots)
    with pytest.raises(ConfigError, match=text):
        new_pool(1, 6, 2, 3).resize(slots)


@given(st.integers(2, 8), st.data())
def test_a_life_of_a_pool(experts, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    per_tok, layers = data.draw(st.integers(1, experts)), data.draw(st.integers(1, 3))
    sizes = st.integers(per_tok, experts)
    pool = new_pool(layers, experts, per_tok, data.draw(sizes))
    for action in data.draw(st.lists(st.sampled_from(["observe", "pass", "resize"]), max_size=12)):
        before, slots_before = pool.resident.copy(), pool.slots
        if action == "observe":
            pool.observe(rng.integers(experts, size=(3, layers, per_tok)).astype(np.int16))
            assert (pool.resident == before).all(), "the pool is fixed between passes"
        elif action == "resize":
            pool.resize(data.draw(sizes))
            assert not (pool.resident & ~before).any(), "nothing enters by a resize"
            assert (pool.resident.sum(axis=1) == np.minimum(before.sum(axis=1), pool.slots)).all()
            for layer in range(layers):
                left = pool.hotness[layer, before[layer] & ~pool.resident[layer]]
                stayed = pool.hotness[layer, pool.resident[layer]]
                assert left.max(initial=-1) <= stayed.min()
        else:
            hotness = pool.hotness.copy()
            wanted, read = pool.choose(), rng.random((layers, experts)) < 0.4
            assert (wanted.sum(axis=1) == pool.slots).all()
            for layer in range(layers):
                assert hotness[layer, ~wanted[layer]].max(initial=-1) <= hotness[layer, wanted[layer]].min()
            pool.fill(wanted, read)
            entered = pool.resident & ~before
            assert not (entered & ~(wanted & read)).any(), "only wanted and read experts enter"
            assert (pool.resident | ~(wanted & (before | read))).all(), "those that are wanted and at hand are in"
            assert (pool.resident.sum(axis=1) >= before.sum(axis=1)).all()
            assert pool.slots == slots_before
        assert (pool.resident.sum(axis=1) <= pool.slots).all()
        assert (pool.resident.sum(axis=1) >= per_tok).all()
