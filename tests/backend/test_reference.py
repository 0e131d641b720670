"""The oracle on the built-in model: a row's bits never depend on the other rows of its pass."""

from dataclasses import replace

import numpy as np
import pytest

from backend.passes import HALF_OF_TINY as HALF
from backend.passes import POOL_OF_TINY, chain_of, int32, joined, picked, run_of, same_bits
from elmoe.backend.decoded import TARGET, Activations
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import CheckpointError
from elmoe.quant.arithmetic import linear as linear_by_definition
from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import Treatment

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 8192, 44)]
OTHER = [int(token) for token in np.random.default_rng(1).integers(3, 8192, 60)]
QUALITIES = [None, *(DraftQuality(bits, treatment) for bits in range(2, 8) for treatment in Treatment)]


@pytest.fixture(scope="module")
def backend(tiny):
    return ReferenceBackend(tiny)


@pytest.fixture(scope="module")
def alone(backend):
    """Target logits after every prefix of TOKENS, one row per pass, and the routing."""
    backend.allocate(90, len(TOKENS))
    results = [backend.forward(run_of([token], 90, position)) for position, token in enumerate(TOKENS)]
    backend.release(90)
    return np.concatenate([result.logits for result in results]), np.concatenate([r.experts for r in results])


# --- the target ---


@pytest.mark.parametrize("cuts", [[44], [1] * 44, [7, 30, 7], [31, 2, 11], [32, 12]], ids=str)
def test_prefill_in_any_chunks_equals_one_token_at_a_time(backend, alone, cuts):
    backend.allocate(0, 99)
    first, logits, experts = 0, [], []
    for count in cuts:
        result = backend.forward(run_of(TOKENS[first : first + count], 0, first))
        logits.append(result.logits)
        experts.append(result.experts)
        first += count
    assert same_bits(np.concatenate(logits), alone[0])
    assert same_bits(np.concatenate(experts), alone[1])


@pytest.mark.parametrize("prefix", [0, 5, 31, 32, 33, 40])
def test_a_verify_tree_equals_plain_decoding(backend, alone, prefix):
    """The true continuation is one branch of a tree with wrong branches, among other sequences, in scattered cells."""
    backend.allocate(0, 200)
    backend.allocate(1, 100)
    if prefix:
        backend.forward(run_of(TOKENS[:prefix], 0))
    backend.forward(run_of(OTHER[:20], 1))
    # The garbage of an earlier draft lies in the cells above.
    garbage = chain_of(OTHER[:40], prefix, list(range(prefix, prefix + 40)))
    backend.forward(garbage, HALF, DraftQuality(2))
    true = chain_of(TOKENS[prefix : prefix + 4], prefix, [prefix, prefix + 3, prefix + 2, prefix + 9])
    wrong = chain_of([TOKENS[prefix], 77, 78], prefix, [prefix, prefix + 1, prefix + 5])
    keep = [0, 1, 2, 3, 5, 6]  # the root stands once
    both = joined(true, wrong)
    tree = picked(both, keep)
    result = backend.forward(
        joined(
            chain_of(OTHER[20:22], 20, [20, 21], 1),
            tree,
        )
    )
    assert same_bits(result.logits[2:6], alone[0][prefix : prefix + 4])
    assert same_bits(result.experts[2:6], alone[1][prefix : prefix + 4])
    # Commit the true branch and go on plainly.
    source = int32([prefix, prefix + 3, prefix + 2, prefix + 9])
    backend.move(0, source, int32(range(prefix, prefix + 4)))
    if prefix + 4 < len(TOKENS):
        after = backend.forward(run_of(TOKENS[prefix + 4 :], 0, prefix + 4))
        assert same_bits(after.logits, alone[0][prefix + 4 :])


@pytest.mark.parametrize("others", [1, 3, 15])
def test_a_batch_changes_no_bit(backend, alone, others):
    for sequence in range(others + 1):
        backend.allocate(sequence, 60)
    count = 24
    filled = [run_of(TOKENS[:count], 0), *(run_of(OTHER[: count + s], s) for s in range(1, others + 1))]
    order = filled[1:] + filled[:1]
    got = backend.forward(joined(*order)).logits[-count:]
    assert same_bits(got, alone[0][:count])
    step = [run_of(TOKENS[count : count + 1], 0, count)]
    step += [run_of([OTHER[count + s]], s, count + s) for s in range(1, others + 1)]
    assert same_bits(backend.forward(joined(*step)).logits[0], alone[0][count])
    for sequence in range(others + 1):
        backend.release(sequence)


def test_only_the_wanted_logits_are_returned(backend, alone):
    backend.allocate(0, 50)
    rows = run_of(TOKENS[:6])
    some = replace(rows, logits=int32([4, 1]))
    assert same_bits(backend.forward(some).logits, alone[0][[4, 1]])
    none = replace(rows, logits=int32([]))
    assert backend.forward(none).logits.shape == (0, 8192)


@pytest.mark.parametrize("draft", [None, DraftQuality()], ids=["target", "draft"])
@pytest.mark.parametrize("count", [1, 3, 8192, 10**6])
def test_the_best_logits_are_the_top_of_all(backend, draft, count):
    backend.allocate(0, 50)
    rows = replace(run_of(TOKENS[:5]), logits=int32([3, 0, 4]))
    logits = backend.forward(rows, HALF, draft).logits
    result = backend.forward(replace(rows, best=count), HALF, draft)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    assert result.logits.shape == (0, 8192)
    assert result.best.tokens.tolist() == order.tolist()
    assert same_bits(result.best.logits, np.take_along_axis(logits, order, axis=1))
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(result.best.log_total, exact, rtol=0, atol=4e-6)
    assert (result.best.tokens.dtype, result.best.log_total.dtype) == (np.int32, np.float32)


def test_the_best_logits_of_a_row_have_the_same_bits_alone(backend):
    backend.allocate(0, 50)
    together = backend.forward(replace(run_of(TOKENS), best=4)).best
    for row in (0, 17, 43):
        alone = backend.forward(replace(run_of(TOKENS[row : row + 1], 0, row), best=4)).best
        for name in ("tokens", "logits", "log_total"):
            assert same_bits(getattr(together, name)[row : row + 1], getattr(alone, name))


def test_equal_logits_are_ranked_by_their_token(tiny):
    fresh = ReferenceBackend(tiny)
    fresh._weights._vectors["final_norm"] = np.zeros(256, dtype=np.float32)
    fresh.allocate(0, 4)
    best = fresh.forward(replace(run_of(TOKENS[:2]), best=3)).best
    assert best.tokens.tolist() == [[0, 1, 2]] * 2
    assert (best.logits == 0).all()
    np.testing.assert_allclose(best.log_total, np.log(8192), rtol=1e-6)


def test_no_best_logits_where_no_row_wants_them(backend):
    backend.allocate(0, 50)
    best = backend.forward(replace(run_of(TOKENS[:3]), logits=int32([]), best=2)).best
    assert (best.tokens.shape, best.logits.shape, best.log_total.shape) == ((0, 2), (0, 2), (0,))


# --- the draft ---


@pytest.mark.parametrize("quality", QUALITIES[1:], ids=lambda q: f"{q.bits}-{q.treatment.value}")
def test_a_draft_row_has_the_same_bits_in_any_tree_and_batch(backend, quality):
    prefix = 20
    backend.allocate(0, 60)
    backend.allocate(1, 60)
    backend.forward(joined(run_of(TOKENS[:prefix]), run_of(OTHER[:33], 1)))
    chain = TOKENS[prefix : prefix + 3]

    one_by_one = []
    for row in range(3):
        whole = chain_of(chain, prefix, [prefix, prefix + 1, prefix + 2])
        single = picked(whole, [row])
        one_by_one.append(backend.forward(single, HALF, quality))
    assert not (np.concatenate([result.read for result in one_by_one]) & ~np.tile(HALF, (3, 1))).any()

    together = backend.forward(
        joined(chain_of(OTHER[33:36], 33, [36, 33, 40], 1), chain_of(chain, prefix, [25, 30, 22])), HALF, quality
    )
    for row, result in enumerate(one_by_one):
        assert same_bits(together.logits[3 + row], result.logits[0])
        assert same_bits(together.experts[3 + row], result.experts[0])


def test_an_undegraded_draft_with_all_experts_is_the_target(backend, alone):
    backend.allocate(0, 50)
    result = backend.forward(run_of(TOKENS), np.ones(POOL_OF_TINY, dtype=np.bool_), DraftQuality(8))
    assert same_bits(result.logits, alone[0])


def test_a_pool_does_not_change_the_target(backend, alone):
    backend.allocate(0, 50)
    result = backend.forward(run_of(TOKENS), HALF)
    assert same_bits(result.logits, alone[0])
    assert (result.read & ~HALF).any()


def test_a_stored_width_draft_never_touches_an_lsb_record(tiny, monkeypatch):
    def poison(*_):
        raise AssertionError("an LSB record was read")

    monkeypatch.setattr(Checkpoint, "expert_lsb", poison)
    fresh = ReferenceBackend(tiny)
    fresh.allocate(0, 50)
    fresh.forward(run_of(TOKENS), HALF, DraftQuality())
    with pytest.raises(AssertionError, match="an LSB record was read"):
        fresh.forward(run_of(TOKENS), HALF)


def test_the_order_of_the_original_scores_is_kept_inside_the_pool(backend):
    """The first MoE block sees the same input whatever the pool: find its ranking one expert at a time."""
    backend.allocate(0, 8)
    row, quality = run_of([TOKENS[0]]), DraftQuality(8, experts_per_tok=1)
    pool, ranking = np.ones(POOL_OF_TINY, dtype=np.bool_), []
    for _ in range(32):
        result = backend.forward(row, pool, quality)
        (best,) = np.flatnonzero(result.read[0])
        ranking.append(int(best))
        pool[0, best] = False
        pool[1:] = True
        if len(ranking) == 28:  # the last ones cannot be told apart from an empty pool
            break
    assert result.experts[0, 0].tolist() == ranking[:4], "the original routing is recorded, best first"
    rng = np.random.default_rng(2)
    for count in (1, 2, 3, 4, None, 9):
        pool = rng.random(POOL_OF_TINY) < 0.4
        pool[:, ranking[-4:]] = True
        result = backend.forward(row, pool, DraftQuality(8, experts_per_tok=count))
        inside = [expert for expert in ranking if pool[0, expert]][: min(count or 4, 4)]
        if len(inside) == min(count or 4, 4):
            assert sorted(np.flatnonzero(result.read[0])) == sorted(inside)
        assert not (result.read & ~pool).any()
        assert (result.read.sum(axis=1) == min(count or 4, 4)).all()
        assert result.experts[0, 0].tolist() == ranking[:4]


# --- arithmetic ---


@pytest.mark.parametrize("quality", [TARGET, DraftQuality(), DraftQuality(3, Treatment.DEDICATED)], ids=str)
def test_products_are_those_of_the_definition(backend, quality):
    rng = np.random.default_rng(3)
    program = backend.program
    matrices = [(linear, backend._weights.linear(linear, quality)) for linear in program.linears[1:6]]
    block = program.moe_blocks[4]
    matrices += zip((block.expert.gate_up, block.expert.down), backend._weights.expert(block, 9, quality), strict=True)
    for linear, decoded in matrices:
        x = (rng.standard_normal((5, linear.inputs)) * 10.0 ** rng.uniform(-3, 3, (5, 1))).astype(np.float32)
        codes = decoded.codes.reshape(-1, linear.outputs).T.astype(np.int8)
        want = linear_by_definition(*quantize_activations(x), codes, decoded.scales.T.astype(np.float16))
        assert np.array_equal(backend._product(x, decoded), want)


def test_products_in_parts_are_the_same(backend, monkeypatch):
    linear = backend.program.linears[1]
    x = np.random.default_rng(4).standard_normal((9, linear.inputs)).astype(np.float32)
    want = backend._product(x, backend._weights.linear(linear, TARGET))
    monkeypatch.setattr("elmoe.backend.products.PRODUCT_ELEMENTS", 1)
    assert same_bits(backend._product(x, backend._weights.linear(linear, TARGET)), want)


@pytest.fixture
def products(tiny, monkeypatch):
    """Every (input, weight, output) of the linear layers of one real pass, with INT8 activations."""
    fresh, seen = ReferenceBackend(tiny), []
    product = fresh._product

    def spy(x, weight):
        y = product(x, weight)
        seen.append((x, weight, y))
        return y

    monkeypatch.setattr(fresh, "_product", spy)
    fresh.allocate(0, 50)
    fresh.forward(run_of(TOKENS))
    return seen


def test_int8_activations_stay_within_their_rigorous_bound_of_fp32_ones(products):
    """|y_int8 - y| <= sum over groups of (s_g / 2) * sum |w|, plus FP32 rounding."""
    assert len(products) > 100
    for x, weight, y in products:
        G, _, N = weight.codes.shape
        w = (weight.codes * weight.scales[:, None, :]).astype(np.float64)  # [G, 32, N]
        exact = x.astype(np.float64) @ w.reshape(-1, N)
        steps = np.abs(x.reshape(len(x), G, 32)).max(axis=2).astype(np.float64) / 127
        bound = steps / 2 @ np.abs(w).sum(axis=1)
        rounding = (G + 40) * 2.0**-23 * (np.abs(x).astype(np.float64) @ np.abs(w).reshape(-1, N))
        assert (np.abs(y - exact) <= bound + rounding + 1e-30).all()


def test_fp32_activations_are_plain_products_and_give_nearly_the_same_logits(tiny, alone):
    plain = ReferenceBackend(tiny, Activations.FP32)
    plain.allocate(0, 50)
    logits = plain.forward(run_of(TOKENS)).logits
    decoded = plain._weights.linear(plain.program.linears[1], TARGET)
    x = np.random.default_rng(5).standard_normal((3, 256)).astype(np.float32)
    exact = x.astype(np.float64) @ decoded.codes[0].astype(np.float64)
    np.testing.assert_allclose(plain._product(x, decoded), exact, atol=1e-4)
    error = np.abs(logits - alone[0]).mean(axis=1) / logits.std(axis=1)
    assert error.mean() < 0.08
    assert error.max() < 0.3, "the first of these random tokens, alone in its context, is the farthest off"
    assert not same_bits(logits, alone[0])


# --- memory ---


def tiles(rows, inputs):
    return -(-rows // 16) * -(-inputs // 64)


def test_traffic_of_one_pass_by_hand(backend):
    """Tiles of 16 x 64: 576 bytes of MSBs and scales, 512 bytes of LSBs; FP32 vectors; FP16 keys and values."""
    layers, experts = POOL_OF_TINY
    dense = tiles(8192, 256) + layers * (tiles(512, 256) + tiles(256, 256))  # qkv: 4 + 2 + 2 heads of 64
    vectors = 4 * (layers * (256 + 64 + 64 + 256 + experts * 256) + 256)
    expert = tiles(2 * 128, 256) + tiles(256, 128)
    kv = layers * 2 * 2 * 64 * 2
    backend.allocate(0, 50)
    backend.forward(run_of(TOKENS[:10]))

    target = backend.forward(run_of(TOKENS[10:13], 0, 10), HALF)
    inside, outside = int((target.read & HALF).sum()), int((target.read & ~HALF).sum())
    assert outside > 0
    assert target.traffic.fast_bytes == dense * (576 + 512) + vectors + inside * expert * 576
    assert target.traffic.slow_bytes == inside * expert * 512 + outside * expert * (576 + 512)
    assert target.traffic.kv_bytes == 13 * kv

    draft = backend.forward(chain_of(TOKENS[10:13], 10, [10, 14, 12]), HALF, DraftQuality())
    assert draft.traffic.fast_bytes == dense * 576 + vectors + int(draft.read.sum()) * expert * 576
    assert draft.traffic.slow_bytes == 0
    assert draft.traffic.kv_bytes == 13 * kv
    used = np.zeros(POOL_OF_TINY, dtype=np.bool_)
    for layer in range(POOL_OF_TINY[0]):
        used[layer, target.experts[:, layer].ravel()] = True
    assert (target.read == used).all(), "each distinct expert once, and no other"


def test_move_copies_as_if_all_at_once(backend):
    backend.allocate(0, 8)
    backend.forward(run_of(TOKENS[:6]))
    before = [(layer.keys.copy(), layer.values.copy()) for layer in backend._kv[0]]
    backend.move(0, int32([1, 2, 5, 0]), int32([0, 1, 2, 7]))
    for layer, (keys, values) in zip(backend._kv[0], before, strict=True):
        for source, destination in {1: 0, 2: 1, 5: 2, 0: 7, 3: 3, 4: 4}.items():
            assert (layer.keys[..., destination] == keys[..., source]).all()
            assert (layer.values[:, destination] == values[:, source]).all()


def test_caches_come_and_go(backend, alone):
    backend.release(12345)  # unknown: nothing to do
    backend.allocate(0, 10)
    backend.forward(run_of(OTHER[:10]))
    backend.allocate(0, 50)
    assert same_bits(backend.forward(run_of(TOKENS)).logits, alone[0])
    backend.release(0)
    assert 0 not in backend._kv


def test_keys_and_values_are_fp16_and_saturate(tiny, monkeypatch):
    fresh = ReferenceBackend(tiny)
    fresh._weights._vectors["layers.0.attention.key_norm"] = np.full(64, 1e6, dtype=np.float32)
    fresh.allocate(0, 4)
    fresh.forward(run_of(TOKENS[:4]))
    keys = fresh._kv[0][0].keys
    assert np.abs(keys).max() == 65504
    assert (keys == keys.astype(np.float16)).all()


@pytest.mark.parametrize("best", [0, 1])
def test_logits_that_are_not_finite_are_an_error(tiny, best):
    fresh = ReferenceBackend(tiny)
    fresh._weights._vectors["final_norm"] = np.full(256, np.inf, dtype=np.float32)
    fresh.allocate(0, 4)
    with (
        np.errstate(all="ignore"),
        pytest.raises(CheckpointError, match=r"tiny.elmoe: logits are not finite; the weights are damaged"),
    ):
        fresh.forward(replace(run_of(TOKENS[:2]), best=best))
