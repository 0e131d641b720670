"""The proof on real weights: Elastic-SD writes the tokens of plain decoding, whatever the tree, the draft or the batch.

A compact version of `bench/lossless.py`. Plain decoding of each prompt alone is what everything is compared with.
"""

import numpy as np
import pytest

from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.text import Tokenizer
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Sampling
from elmoe.quant.bitnested import Treatment

PROMPTS = (
    "Once upon a time there was a lighthouse keeper who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "What is 17 times 24? Let us think step by step. 17 times 20 is",
    "User: My bicycle squeaks when I brake. What should I check?\nAssistant:",
    "The three largest cities of Japan are",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "Dear Ms. Okafor,\n\nThank you for your letter of 3 May.",
    "Q: A train leaves at 9:40 and arrives at 12:05. How long is the journey?\nA:",
    "1, 1, 2, 3, 5, 8, 13,",
    "for (int i = 0; i < n; ++i) {",
    "E = mc²: naïve café — “quoted” 漢字 🙂",
    "A",
)
BATCH_OF_16 = PROMPTS + PROMPTS[:4]
GREEDY = Generation(24, ignore_eos=True)
PLAIN = Speculation(mode=Mode.AR)


@pytest.fixture(scope="module")
def open_engine(tiny):
    """``open_engine(speculation, **options)``: engines that share the decoded weights."""
    backend, tokenizer = ReferenceBackend(tiny), Tokenizer.open(tiny.path)

    def make(speculation, **options):
        return Engine(backend, tokenizer, options=EngineOptions(speculation=speculation, **options))

    return make


@pytest.fixture(scope="module")
def alone(open_engine):
    engine = open_engine(PLAIN, max_batch=1)
    return {prompt: engine.generate([prompt], GREEDY)[0] for prompt in PROMPTS}


def speculation(tree, bits, treatment=Treatment.AUGMENT, experts=None):
    width, depth, verify = tree
    return Speculation(Mode.SD, width, depth, verify, DraftQuality(bits, treatment, experts))


CASES = [
    (16, 0.5, speculation((2, 4, 8), 4)),
    (16, 0.0, speculation((4, 3, 12), 2, experts=1)),
    (16, 1.0, speculation((1, 6, 6), 8, experts=4)),
    (4, 0.25, speculation((3, 2, 5), 3, Treatment.TRUNCATE, 2)),
    (4, 0.75, speculation((2, 5, 9), 6, Treatment.ROUND, 3)),
    (4, 0.125, speculation((1, 1, 1), 4, experts=1)),
    (1, 0.5, speculation((2, 3, 6), 7)),
    (1, 0.0, speculation((3, 4, 10), 5, Treatment.DEDICATED, 2)),
]


@pytest.mark.parametrize(("batch", "fraction", "settings"), CASES)
def test_greedy_speculation_equals_greedy_plain_decoding(open_engine, alone, batch, fraction, settings):
    prompts = {16: BATCH_OF_16, 4: PROMPTS[4:10], 1: PROMPTS[1:12:4]}[batch]
    engine = open_engine(settings, max_batch=batch, pool_fraction=fraction)
    outputs = engine.generate(prompts, GREEDY)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.token_ids == alone[prompt].token_ids
        assert output.text == alone[prompt].text
        assert output.acceptance.verify_steps > 0
    if settings.quality.bits >= 4 and fraction >= 0.5:
        assert engine.stats.acceptance.acceptance_rate > 0.5, "a good draft is accepted"


@pytest.mark.parametrize("batch", [4, 16])
def test_plain_decoding_in_a_batch_equals_plain_decoding_alone(open_engine, alone, batch):
    prompts = BATCH_OF_16[:batch]
    outputs = open_engine(PLAIN, max_batch=batch, prefill_chunk=5).generate(prompts, GREEDY)
    assert [output.token_ids for output in outputs] == [alone[prompt].token_ids for prompt in prompts]


def test_switching_speculation_off_and_on_inside_a_generation_changes_nothing(open_engine, alone):
    engine = open_engine(PLAIN, pool_fraction=0.25)
    requests = [engine.submit(engine.encode(prompt), GREEDY) for prompt in PROMPTS[:4]]
    settings = [PLAIN, speculation((2, 4, 8), 4), speculation((4, 2, 12), 2, experts=1)]
    step = 0
    while any(request.finish_reason is None for request in requests):
        engine.speculation = settings[step % 5 % 3]
        engine.step()
        step += 1
    for prompt, request in zip(PROMPTS, requests, strict=False):
        output = request.output()
        assert output.token_ids == alone[prompt].token_ids
        assert output.acceptance.ar_steps > 1
        assert output.acceptance.verify_steps > 1


def test_a_seed_has_one_text_with_and_without_speculation(open_engine):
    prompts = PROMPTS[:6]
    each = [
        Generation(16, Sampling(0.8, top_p=0.95, top_k=40 * (i % 2), seed=1000 + i), ignore_eos=True)
        for i in range(len(prompts))
    ]
    plain = open_engine(PLAIN, max_batch=3).generate(prompts, each)
    engine = open_engine(speculation((2, 4, 8), 4), max_batch=6)
    sampled = engine.generate(prompts, each)
    assert [output.token_ids for output in sampled] == [output.token_ids for output in plain]
    assert engine.stats.acceptance.acceptance_rate > 0.3, "the draft shares the noise"
    other = open_engine(PLAIN).generate(prompts[:1], Generation(20, Sampling(0.8, seed=7), ignore_eos=True))
    assert other[0].token_ids != plain[0].token_ids


def test_a_growing_context_under_a_byte_budget_changes_nothing(open_engine, alone):
    sizes = open_engine(PLAIN).backend.footprint
    budget = sizes.fast_bytes_needed(160) + 3 * sizes.expert_msb * sizes.moe_layers
    engine = open_engine(speculation((2, 3, 6), 4), fast_bytes=budget)
    slots = set()
    requests = [engine.submit(engine.encode(prompt), GREEDY) for prompt in PROMPTS[:4]]
    while any(request.finish_reason is None for request in requests):
        engine.step()
        slots.add(engine.pool.slots)
    assert len(slots) > 1
    for prompt, request in zip(PROMPTS, requests, strict=False):
        assert request.output().token_ids == alone[prompt].token_ids


def test_drafts_stay_inside_the_fast_tier_and_passes_read_each_expert_once(open_engine):
    class Records(list):
        record = list.append

    engine = open_engine(speculation((2, 4, 8), 4), pool_fraction=0.25)
    engine.recorder = records = Records()
    engine.generate(PROMPTS[:4], Generation(12, ignore_eos=True))
    sizes = engine.backend.footprint
    for record in records:
        assert (record.pool.sum(axis=1) <= 8).all()
        distinct = int(record.distinct_experts.sum())
        if record.kind.value == "draft":
            assert record.slow_bytes == 0
            assert record.fast_bytes == sizes.dense_msb + distinct * sizes.expert_msb
        else:
            experts = [np.unique(record.experts[:, layer]).size for layer in range(record.experts.shape[1])]
            assert record.distinct_experts.tolist() == experts
            weights = distinct * (sizes.expert_msb + sizes.expert_lsb)
            assert record.fast_bytes + record.slow_bytes == sizes.dense + weights
