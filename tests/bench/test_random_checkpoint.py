"""The script that makes large random models: same seed, same bytes; what it makes is a model; errors are one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from small_model import SCRIPT, SMALL

from backend.family_models import FAMILY_MODELS
from backend.passes import run_of
from elmoe import Engine, EngineOptions, Generation
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.engine.kv_cache import RowBuilder, SequenceCache
from elmoe.errors import ConfigError, UnsupportedModelError
from elmoe.trace.schema import routing_counts


def test_the_same_seed_gives_the_same_bytes(random_checkpoint, small_source, tmp_path):
    config = random_checkpoint.qwen3_config(SMALL)
    random_checkpoint.write_checkpoint(tmp_path / "again", config, seed=1)
    random_checkpoint.write_checkpoint(tmp_path / "other", config, seed=2)
    files = sorted(path.name for path in small_source.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (small_source / name).read_bytes()
    shard = "model-00002-of-00003.safetensors"
    assert (tmp_path / "other" / shard).read_bytes() != (small_source / shard).read_bytes()


def test_one_shard_a_layer_and_weights_as_promised(random_checkpoint, small_source):
    config = json.loads((small_source / "config.json").read_text())
    plan = random_checkpoint.shards(config)
    assert len(plan) == 1 + SMALL["num_hidden_layers"]
    assert all(name.startswith("model.layers.1.") for name in plan[2])
    with safe_open(small_source / "model-00001-of-00003.safetensors", "numpy") as file:
        assert set(file.keys()) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
        assert file.get_tensor("model.norm.weight").astype(np.float32).tolist() == [1.0] * 96
        assert file.get_tensor("model.embed_tokens.weight").astype(np.float32).std() == pytest.approx(2, rel=0.05)
        assert file.get_tensor("lm_head.weight").astype(np.float32).std() == pytest.approx(0.02, rel=0.05)


def test_the_engine_runs_it_on_text(small):
    engine = Engine.open(small.path, EngineOptions(max_batch=1))
    output = engine.generate(["Grüße!"], Generation(max_tokens=4))[0]
    assert len(output.token_ids) == 4, "no token ends a text"
    assert output.prompt_tokens == len("Grüße!".encode())


def test_routing_is_near_uniform(small):
    tokens = list(range(200))
    backend = ReferenceBackend(small)
    backend.allocate(0, len(tokens))
    builder = RowBuilder()
    builder.add_run(SequenceCache(0, len(tokens)), tokens, want_last=False)
    counts = routing_counts(backend.forward(builder.build()).experts, SMALL["num_experts"])
    assert counts.min() > 0.6 * counts.mean()


@pytest.mark.parametrize("name", ["gpt_oss_mxfp4", "glm4_moe_lite", "granitemoe"])
def test_any_family(random_checkpoint, tmp_path, name):
    config = FAMILY_MODELS[name] | {"vocab_size": 300}
    random_checkpoint.write_checkpoint(tmp_path / "source", config, seed=0)
    convert(tmp_path / "source", tmp_path / "model.elmoe")
    backend = ReferenceBackend(Checkpoint.open(tmp_path / "model.elmoe"))
    backend.allocate(0, 8)
    logits = backend.forward(run_of([1, 2, 3])).logits
    assert logits.std() > 0


def test_what_cannot_be_made(random_checkpoint, small_source, tmp_path):
    config = random_checkpoint.qwen3_config(SMALL)
    with pytest.raises(SystemExit, match="vocab_size must be at least 256, one token per byte, not 100"):
        random_checkpoint.write_checkpoint(tmp_path / "a", config | {"vocab_size": 100}, seed=0)
    with pytest.raises(UnsupportedModelError, match="hidden = 100 is not a multiple"):
        random_checkpoint.write_checkpoint(tmp_path / "b", config | {"hidden_size": 100}, seed=0)
    with pytest.raises(ConfigError, match="exists already"):
        random_checkpoint.write_checkpoint(small_source, config, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "made", *options], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("GB of weights\n")
    again = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "made", *options], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "error: " in again.stderr
