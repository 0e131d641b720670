"""The verbs on models of other families, straight from a Hugging Face folder or its config.json alone."""

import json
import shutil

import numpy as np
import pytest
from cli_calls import document
from safetensors.numpy import save_file

from backend.family_models import FAMILY_MODELS, random_tensors
from elmoe.checkpoint.resolve import resolve

PROMPT = "Tell me a story."
SHOWN = ("glm4_moe_lite", "gpt_oss_mxfp4", "granitemoe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sources with the vocabulary and tokenizer of tiny."""
    made = {}
    for name in SHOWN:
        folder = tmp_path_factory.mktemp(name)
        config = FAMILY_MODELS[name] | {"vocab_size": 8192}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(random_tensors(config, 0), folder / "model.safetensors")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (resolve("tiny") / file).exists():
                shutil.copyfile(resolve("tiny") / file, folder / file)
        made[name] = folder
    return made


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path_factory.getbasetemp() / "family-cache"))


@pytest.mark.parametrize("name", SHOWN)
def test_run_writes_one_text_with_and_without_speculation(capsys, folders, name):
    base = ["run", folders[name], "-p", PROMPT, "--max-tokens", 12, "--ignore-eos"]
    plain = document(capsys, *base, "--mode", "ar")
    elastic = document(capsys, *base, "--mode", "sd", "--pool-fraction", 0.5)
    assert plain["outputs"][0]["token_ids"] == elastic["outputs"][0]["token_ids"]
    assert elastic["stats"]["verify_steps"] > 0


@pytest.mark.parametrize("name", SHOWN)
def test_a_trace_goes_into_the_simulator(capsys, folders, name, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    trace = tmp_path / "trace.parquet"
    document(capsys, "trace", folders[name], "--prompts", prompts, "-o", trace, "--max-tokens", 8)
    rows = document(capsys, "simulate", "--trace", trace, "--system", "elmoe-3d", "--scheme", "elastic")["rows"]
    assert all(row["latency_ms_per_token"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("name", "cached", "lsb"), [("glm4_moe_lite", 3 * (64 + 20), True), ("gpt_oss_mxfp4", 2 * 2 * 2 * 32, False)]
)
def test_inspect_needs_the_config_alone(capsys, tmp_path, name, cached, lsb):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FAMILY_MODELS[name]))
    found = document(capsys, "inspect", path, "--fast-bytes", "1MiB")
    assert found["bytes"]["kv_per_token"] == 2 * cached
    assert (found["bytes"]["experts_lsb"] > 0) == lsb
    assert found["family"] == FAMILY_MODELS[name]["model_type"]


def test_logits_and_bench(capsys, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where logits are written
    found = document(capsys, "logits", folders["gpt_oss_mxfp4"], "--tokens", "5,6,7")
    assert np.load(found["logits"]).shape == (3, 8192)
    rows = document(capsys, "bench", folders["glm4_moe_lite"], "--batch", 1, "--steps", 4, "--rounds", 1)["rows"]
    assert {row["arm"] for row in rows} >= {"ar"}
