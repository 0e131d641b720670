"""Training: the model is transformers' Qwen3-MoE, a run can be interrupted and carried, its weights can be served."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make verify installs torch and transformers")

TRAINING = Path(__file__).parents[2] / "training"
sys.path.insert(0, str(TRAINING))
TOKENIZER = TRAINING.parent / "src" / "elmoe" / "data" / "tiny.elmoe" / "tokenizer.json"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(TRAINING / script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    done = run("prepare.py", "chat", folder, "--documents", 3000, "--processes", 2, "--tokenizer", TOKENIZER)
    assert done.returncode == 0, done.stderr
    (folder / "mixture.toml").write_text("[share]\nchat = 1.0\n")
    return folder


def train(data, out, minutes, total):
    return run(
        "train.py", "--data", data, "--out", out, "--mixture", data / "mixture.toml", "--minutes", minutes,
        "--total-minutes", total, "--size", "nano", "--cpu", "--batch", 4, "--tokens", 128, "--log-seconds", 1,
        "--warmup", 5,
        "--held-out-rows", 2,
    )  # fmt: skip


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    done = train(data, out, 0.3, 0.6)
    assert done.returncode == 0, done.stderr
    return out


def test_the_loss_falls(trained):
    losses = [line["loss"] for line in lines(trained) if "loss" in line]
    assert losses[-1] < losses[0] - 1, "nats per token, after a few dozen steps"
    assert "held_out" in lines(trained)[-1]


def test_a_call_goes_on_where_the_last_one_ended(data, trained):
    before = lines(trained)[-1]
    done = train(data, trained, 0.1, 0.6)
    assert done.returncode == 0, done.stderr
    after = lines(trained)[-1]
    assert after["steps"] > before["steps"]
    assert before["seconds"] < after["seconds"] < before["seconds"] + 10


def test_weights_alone_can_be_carried_to_another_machine(data, trained, tmp_path):
    shutil.copytree(trained / "parts", tmp_path / "parts")
    carried = json.loads((tmp_path / "parts" / "progress.json").read_text())
    done = train(data, tmp_path, 0.05, 0.6)
    assert done.returncode == 0, done.stderr
    first = next(line for line in lines(tmp_path) if "loss" in line)
    assert first["steps"] > carried["steps"]
    assert first["loss"] < next(line for line in lines(trained) if "loss" in line)["loss"] - 1


def test_the_exported_model_is_the_trained_one(trained):
    from transformers import AutoModelForCausalLM

    from export import open_folder

    ours, theirs = open_folder(trained / "parts"), AutoModelForCausalLM.from_pretrained(trained / "parts").float()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 8192, (2, 65)))
    with torch.no_grad():
        nats, _ = ours(tokens[:, :-1], tokens[:, 1:])
        logits = theirs(tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(nats.flatten(), expected, rtol=1e-4, atol=1e-4)


def test_grouped_experts_equal_a_loop_over_experts():
    from model import ModelConfig, SparseMoe

    config = ModelConfig(hidden_size=32, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16)
    moe = SparseMoe(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    x = torch.randn(50, 32, requires_grad=True)
    out, counts, *_ = moe(x)
    weights, chosen = torch.nn.functional.linear(x, moe.router).softmax(-1).topk(2, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    expected = sum(
        (torch.nn.functional.silu(x @ moe.gate[e].T) * (x @ moe.up[e].T)) @ moe.down[e].T
        * ((chosen == e) * weights).sum(-1, keepdim=True)
        for e in range(6)
    )  # fmt: skip
    torch.testing.assert_close(out, expected)
    assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=6).tolist()
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, *moe.parameters()], retain_graph=True) for y in (out, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_missing_data_names_the_file(tmp_path):
    done = run("train.py", "--data", tmp_path, "--out", tmp_path / "run", "--minutes", 1, "--size", "nano", "--cpu")
    assert done.returncode == 1
    assert "chat.train.bin: missing; run prepare.py" in done.stderr
