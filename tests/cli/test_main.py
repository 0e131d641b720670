"""The contract: every verb as a user calls it, its JSON, its exit code and its one line of error."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_calls import call, document

from elmoe.trace.parquet import read_trace

ROOT = Path(__file__).parents[2]


def test_run_gives_text_ids_and_all_counters(capsys):
    found = document(capsys, "run", "tiny", "-p", "Hi! How are you?", "-p", "Tell me a story.", "--max-tokens", 12,
                     "--mode", "sd", "--width", 2, "--depth", 3, "--verify", 5)  # fmt: skip
    assert [set(output) >= {"text", "token_ids", "finish_reason"} for output in found["outputs"]] == [True, True]
    stats = found["stats"]
    assert set(stats) >= {
        "prefill_tok_s", "decode_tok_s", "verify_steps", "drafted", "tested", "accepted", "emitted",
        "acceptance_rate", "mean_accepted_length", "distinct_experts", "fast_bytes_read", "slow_bytes_read",
    }  # fmt: skip
    assert stats["emitted"] == sum(len(output["token_ids"]) for output in found["outputs"])
    assert stats["acceptance_rate"] == stats["accepted"] / stats["tested"]
    assert found["settings"]["speculation"]["width"] == 2


@pytest.mark.parametrize("more", [[], ["--temperature", 0.9, "--top-p", 0.9, "--top-k", 40, "--min-p", 0.01]])
def test_modes_write_the_same_tokens(capsys, more):
    base = ["run", "tiny", "-p", "Tell me a story about a boat.", "--max-tokens", 16, "--seed", 3, *more]
    plain = document(capsys, *base, "--mode", "ar")
    elastic = document(capsys, *base, "--mode", "sd", "--draft-bits", 3, "--draft-experts", 2, "--pool-fraction", 0.25)
    raw = document(capsys, *base, "--raw")
    assert plain["outputs"][0]["token_ids"] == elastic["outputs"][0]["token_ids"]
    assert plain["stats"]["verify_steps"] == 0 < elastic["stats"]["verify_steps"]
    assert raw["outputs"][0]["token_ids"] != plain["outputs"][0]["token_ids"]


def test_run_for_people_prints_text_on_standard_output_and_figures_beside_it(capsys):
    code, out, err = call(capsys, "run", "tiny", "-p", "Hi! How are you today?", "--max-tokens", 20)
    assert code == 0
    assert out == "I'm doing well, thank you! How are you?\n"
    assert "tok/s" in err


def test_prompt_files_and_ignore_eos(capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "Hi! How are you today?"}\n{"turns": ["Hello"]}\n', encoding="utf-8")
    found = document(capsys, "run", "tiny", "--prompts", file, "--max-tokens", 30, "--ignore-eos", "--batch", 1)
    assert [len(output["token_ids"]) for output in found["outputs"]] == [30, 30]


def test_inspect_reads_no_weights(capsys, tmp_path, tiny):
    found = document(capsys, "inspect", "tiny", "--fast-bytes", "8GiB")
    assert found["fits"] is True
    assert (found["family"], found["layers"], found["experts"], found["experts_per_token"]) == ("qwen3_moe", 8, 32, 4)
    assert set(found["bytes"]) >= {"dense", "experts_msb", "experts_lsb", "scales", "kv_per_token"}
    shutil.copy(tiny.path / "config.json", tmp_path / "config.json")
    assert document(capsys, "inspect", tmp_path, "--fast-bytes", "1MB")["fits"] is False


def test_logits_are_the_files_that_numpy_reads(capsys, tmp_path):
    target, draft = tmp_path / "t.npy", tmp_path / "d.npy"
    assert document(capsys, "logits", "tiny", "--tokens", "1,2,3", "-o", target)["logits"] == str(target)
    document(capsys, "logits", "tiny", "--tokens", "1,2,3", "-o", draft, "--draft")
    made = np.load(target)
    assert (made.shape, made.dtype) == ((3, 8192), np.float32)
    assert np.load(draft).shape == (3, 8192)
    assert not np.array_equal(made, np.load(draft))


def test_trace_is_written_and_adds_up(capsys, tmp_path):
    path = tmp_path / "t.parquet"
    found = document(capsys, "trace", "tiny", "-p", "Tell me a story.", "--max-tokens", 12, "-o", path)
    trace = read_trace(path)
    assert (found["steps"], found["tokens"], found["path"]) == (trace.steps, 12, str(path))
    assert trace.settings["speculation"]["mode"] == "sd"


def test_elasticity_has_the_whole_grid(capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "Hi!"}\n', encoding="utf-8")
    grid = document(capsys, "elasticity", "tiny", "--prompts", file, "--max-tokens", 6)["grid"]
    assert all(set(cell) >= {"bits", "pool_fraction", "treatment", "pool", "agreement"} for cell in grid)
    assert {cell["bits"] for cell in grid} == {2, 3, 4, 5, 6, 7, 8}
    code, out, _ = call(capsys, "elasticity", "tiny", "--prompts", file, "--max-tokens", 6)
    assert code == 0
    assert "augment" in out


def test_convert_and_use(capsys, tmp_path):
    source, made = ROOT / "tests" / "golden" / "random_moe", tmp_path / "made.elmoe"
    found = document(capsys, "convert", source, "-o", made)
    assert set(found) >= {"tensors", "bytes", "seconds", "source_sha256"}
    assert document(capsys, "inspect", made)["bytes"]["dense"] > 0
    code, _, err = call(capsys, "convert", source, "-o", made)
    assert code == 2
    assert "exists already; remove it or choose another destination" in err


def test_demo_proves_and_reports(capsys, tmp_path):
    found = document(capsys, "demo", "--out", tmp_path / "out", "--max-tokens", 12)
    assert found["lossless"] is True
    assert found["acceptance_rate"] > 0.5
    assert found["ar_tok_s"] > 0
    assert found["sd_tok_s"] > 0
    assert found["mean_accepted_length"] > 1
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "Lossless" in page
    assert "elmoe-3d, elastic-SD" in page
    assert [row["system"] for row in found["simulated"]][-1] == "elmoe-3d"
    assert read_trace(Path(found["trace"])).steps > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "tiny", "-p", ""], "the prompt is empty"),
        (["run", "tiny", "-p", "a " * 3000], "this model takes 2047 and one to answer"),
        (["run", "tiny", "-p", "Hi", "--max-tokens", 0], "max_tokens must be at least 1, not 0"),
        (["run", "tiny", "-p", "Hi", "--width", -1], "width must be a whole number from 1 to 64, not -1"),
        (["run", "tiny", "-p", "Hi", "--depth", -1], "depth must be a whole number from 0 to 64, not -1"),
        (["run", "tiny", "-p", "Hi", "--verify", 0], "verify must be a whole number from 1 to 1024, not 0"),
        (["run", "tiny", "-p", "Hi", "--draft-bits", 1], "draft bits must be 2 to 7"),
        (["run", "tiny", "-p", "Hi", "--draft-experts", 5], "at most the model's 4, not 5"),
        (["run", "tiny", "-p", "Hi", "--pool-fraction", 1.5], "pool fraction must be in [0, 1], not 1.5"),
        (["run", "tiny", "-p", "Hi", "--fast-bytes", "1MB"], "1,000,000 bytes of fast memory are too few"),
        (["run", "tiny", "-p", "Hi", "--fast-bytes", "9MB", "--pool-fraction", 0.5], "give either a pool fraction or"),
        (["run", "tiny", "-p", "Hi", "--batch", 0], "max_batch must be 1 to 256, not 0"),
        (["run", "tiny", "-p", "Hi", "--temperature", "nan"], "temperature must be 0 or more, not nan"),
        (["run", "tiny", "-p", "Hi", "--seed", -1], "seed must be in [0, 2**64), not -1"),
        (["run", "tiny", "-p", "Hi", "--backend", "cuda"], "backend 'cuda' is not in this version"),
        (["run", "tiny", "-p", "Hi", "--mode", "fast"], "'fast' is not one of 'ar', 'sd', 'auto'"),
        (["run", "tiny"], "no prompt given; use -p TEXT"),
        (["run", "nowhere", "-p", "Hi"], "there is no model 'nowhere'"),
        (["run", "model.gguf", "-p", "Hi"], "there is no model 'model.gguf'"),
        (["inspect", "tiny", "--context", 99999], "context 99999 is beyond the model's 2048"),
        (["logits", "tiny", "--tokens", "1,9000"], "token 9000 is not in the vocabulary of 8192"),
        (["logits", "tiny", "--tokens", "1", "-o", "x.txt"], "name a .npy file"),
        (["logits", "tiny", "--tokens", "1", "-o", "/nowhere/x.npy"], "cannot be written"),
        (["trace", "tiny", "-p", "Hi", "-o", "/nowhere/t.parquet"], "cannot be written"),
        (["convert", "/nowhere", "-o", "x.elmoe"], "/nowhere does not exist"),
        (["logits", "tiny", "--tokens", "1", "-o", "/dev/null.npy/x.npy"], "cannot be written"),
        (["trace", "tiny", "-p", "Hi", "-o", "/dev/null"], "/dev/null is not a regular file"),
        (["trace", "tiny", "-p", "Hi", "-o", "t.parquet", "--limit", 0], "'--limit'"),
        (["run", "tiny", "-p", "Hi", "--fast-bytes", "9" * 400], "is beyond any memory"),
        (["nonsense"], "No such command 'nonsense'"),
        (["run", "tiny", "--nonsense"], "No such option: --nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, text):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


def test_a_broken_checkpoint_is_named(capsys, tmp_path, tiny):
    broken = tmp_path / "broken.elmoe"
    shutil.copytree(tiny.path, broken)
    with (broken / "experts_msb.bin").open("r+b") as file:
        file.write(b"\xff" * 64)
    code, _, err = call(capsys, "run", broken, "-p", "Hi", "--max-tokens", 40, "--ignore-eos")
    assert code == 2
    assert "is damaged (CRC-32 mismatch); remove the folder and convert" in err


def test_what_looks_like_markup_is_printed_as_it_is(capsys):
    code, out, _ = call(capsys, "run", "tiny", "-p", "[/b] hi [red]", "-p", "x", "--max-tokens", 3)
    assert code == 0
    assert "> [/b] hi [red]\n" in out


def test_a_link_stays_a_link(capsys, tmp_path):
    (tmp_path / "link.npy").symlink_to(tmp_path / "file.npy")
    document(capsys, "logits", "tiny", "--tokens", "1", "-o", tmp_path / "link.npy")
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "file.npy").shape == (1, 8192)


def test_a_fault_of_ours_is_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr("elmoe.cli.app.typer.main.get_command", lambda app: broken)
    code, _, err = call(capsys, "anything")
    assert code == 1
    assert "internal error: please report the lines above" in err


class broken:  # noqa: N801  stands in for an instance
    @staticmethod
    def main(**settings):
        raise ZeroDivisionError


def test_help_version_and_the_quickstart(capsys):
    assert call(capsys, "--version")[1].startswith("elmoe ")
    assert "elasticity" in call(capsys, "--help")[1]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py"], capture_output=True, text=True, check=True
    )
    assert "same tokens: True" in done.stdout
