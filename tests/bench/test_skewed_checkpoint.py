"""Models with skewed, local routing: calibrated popularity and reuse, shared experts, a text that walks the cycle."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elmoe import Engine, EngineOptions, Generation, Mode, Sampling, Speculation
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError
from elmoe.quant.tiles import plane_bytes, unpack, unpack_draft
from elmoe.sim.locality import fit_reuse, lru_hit_rate, lru_miss_rate, unique_inside

DIMENSIONS = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in DIMENSIONS.items() if name != "max_position"]
PROFILE, OTHER = "qwen3-30b-a3b", "deepseek-v2-lite"


@pytest.fixture(scope="module")
def routing(bench_script):
    module = bench_script("skewed_routing")
    with pytest.MonkeyPatch.context() as patch:  # a search that takes seconds
        patch.setattr(module, "SEARCH_TOKENS", 2048)
        patch.setattr(module, "SEARCH_CONTENT", 64)
        patch.setattr(module, "SEARCH_LAYERS", 2)
        yield module


@pytest.fixture(scope="module")
def skewed(bench_script, routing):
    return bench_script("skewed_checkpoint")


@pytest.fixture(scope="module")
def folder(skewed, tmp_path_factory):
    """Two profiles."""
    folder = tmp_path_factory.mktemp("skewed")
    for profile in (PROFILE, OTHER):
        weights = skewed.skewed_weights(profile, DIMENSIONS, seed=1)
        skewed.write_skewed(folder / f"{profile}.elmoe", weights, skewed.with_same_experts(folder, weights))
    return folder


@pytest.fixture(scope="module")
def target(skewed, routing):
    return routing.target_of(skewed.named(PROFILE, skewed.qwen3_config(DIMENSIONS)), 4)


def test_the_target_is_the_profile_s(skewed, routing, target):
    profile = skewed.named(PROFILE, skewed.qwen3_config(DIMENSIONS))
    assert target.shares.sum() == pytest.approx(4)
    assert target.quarter_miss == pytest.approx(1 - lru_hit_rate(profile.popularity, 8))
    assert lru_miss_rate(target.shares, 8, 1, 1, target.reuse) == pytest.approx(target.quarter_miss)


def test_content_is_normal_and_fades_along_the_cycle(routing):
    content = routing.content_cycle(2048, 64, 0.7, np.random.default_rng(0))
    assert content.std() == pytest.approx(1, rel=0.02)
    for distance in (1, 2, 5):
        found = (content * np.roll(content, distance, axis=0)).mean()
        assert found == pytest.approx(0.7**distance, abs=0.02)


def test_biases_give_the_shares(routing, target):
    scores = np.random.default_rng(0).standard_normal((4096, 32), dtype=np.float32)
    biases = routing.calibrated_biases(scores, target.shares, 4)
    found = routing.shares_of(routing.chosen(scores + biases, 4), 32)
    assert np.abs(found - target.shares).max() < 0.01


def test_the_search_finds_the_reuse(routing, target):
    correlation = routing.correlation_for(target, seed=5)
    streams = routing.walks(routing.routing(target, correlation, 6), 64, 64, seed=6)
    assert routing.replayed_miss(streams, 32, 1, 8, routing.Policy.LRU) == pytest.approx(target.quarter_miss, rel=0.1)
    shares = np.stack([target.shares[routing.popularity_order(6, layer, 32)] for layer in range(2)])
    assert fit_reuse(shares, unique_inside(streams, 32, 4)).mean() == pytest.approx(target.reuse, abs=0.12)


def test_the_engine_routes_as_wanted(bench_script, folder, target, skewed):
    locality = bench_script("skewed_locality")
    streams = locality.traced(folder / f"{PROFILE}.elmoe", requests=32, tokens=48, batch=8, seed=1)
    profile = skewed.named(PROFILE, skewed.qwen3_config(DIMENSIONS))
    found = locality.compare(streams, target, profile, seed=1)
    assert found["popularity_correlation"] > 0.97
    quarter = {row["batch"]: row for row in found["misses"] if row["capacity"] == 8}
    assert quarter[1]["lru"] == pytest.approx(target.quarter_miss, rel=0.2)
    assert all(0.7 < row["ratio"] < 1.3 for row in quarter.values())
    assert quarter[1]["random_part"] is None
    assert quarter[16]["random_part"] == pytest.approx(quarter[16]["lru"], rel=0.1)
    text = locality.table([{"profile": PROFILE} | found])
    assert text.count("\n") == 1 + len(quarter)


@pytest.mark.parametrize("mode", [Mode.AR, Mode.SD])
def test_the_text_walks_the_cycle(folder, mode):
    speculation = Speculation(mode=mode, width=2, depth=3, verify=5)
    engine = Engine.open(folder / f"{PROFILE}.elmoe", EngineOptions(max_batch=2, speculation=speculation))
    for sampling in (Sampling(), Sampling(temperature=0.7, seed=3)):
        outputs = engine.generate([[9, 300], [510]], Generation(max_tokens=12, sampling=sampling))
        assert outputs[0].token_ids == list(range(301, 313))
        assert outputs[1].token_ids == [511, *range(11)]
    if mode is Mode.SD:
        assert engine.stats.acceptance.acceptance_rate > 0.9


def test_experts_are_shared_and_whole(folder):
    first, second = (Checkpoint.open(folder / f"{profile}.elmoe") for profile in (PROFILE, OTHER))
    for name in ("experts_msb.bin", "experts_lsb.bin"):
        assert (first.path / name).samefile(second.path / name)
    assert (first.path / "dense.bin").read_bytes() != (second.path / "dense.bin").read_bytes()
    second.verify()
    assert second.config["skewed_routing"]["profile"] == OTHER


def test_no_layer_writes_to_the_constant(folder):
    made = Checkpoint.open(folder / f"{PROFILE}.elmoe")
    shape, rows = made.shape, DIMENSIONS["hidden_size"]
    for layer in range(shape.layers):
        _, scales = unpack(*made.linear_planes(f"layers.{layer}.attention.out"), rows, shape.heads * shape.head_dim)
        assert (scales[0] == 0).all()
        assert (scales[1:] > 0).all()
    up, inner = plane_bytes(2 * shape.expert_hidden, rows)[0], shape.expert_hidden
    draft, scales = unpack_draft(made.expert_msb(1, 3)[up:], rows, inner)
    assert (scales[0] == 0).all()
    assert (scales[1:] > 0).all()
    assert draft.std() == pytest.approx(127 / 2.1, rel=0.1)


def test_the_same_seed_gives_the_same_bytes(skewed, folder, tmp_path):
    weights = skewed.skewed_weights(PROFILE, DIMENSIONS, seed=1)
    skewed.write_skewed(tmp_path / f"{PROFILE}.elmoe", weights)
    for file in (folder / f"{PROFILE}.elmoe").iterdir():
        assert (tmp_path / f"{PROFILE}.elmoe" / file.name).read_bytes() == file.read_bytes()
    assert skewed.with_same_experts(folder, weights).path.parent == folder
    assert skewed.with_same_experts(folder, replace(weights, seed=2)) is None


def test_what_cannot_be_made(skewed, folder):
    with pytest.raises(ConfigError, match="there is no profile 'gpt-5'; choose from qwen3-30b-a3b"):
        skewed.skewed_weights("gpt-5", DIMENSIONS, seed=0)
    with pytest.raises(ConfigError, match="hidden_size must be at least 64, not 32"):
        skewed.skewed_weights(PROFILE, DIMENSIONS | {"hidden_size": 32}, seed=0)


def test_the_command_line(folder, skewed):
    command = [sys.executable, Path(skewed.__file__), folder, "--profiles", PROFILE, *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "exists already" in done.stderr
