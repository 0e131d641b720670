"""What the verbs say about GGUF files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint.gguf_models import MODELS, Kind, random_tensors, write_gguf
from elmoe.cli import main as cli

VALUES = MODELS["qwen3_moe"]


@pytest.fixture
def tensors_of_a_type_that_is_not_read(tmp_path: Path) -> Path:
    path = write_gguf(tmp_path / "small.gguf", VALUES, random_tensors(VALUES), Kind.Q8_0)
    content = bytearray(path.read_bytes())
    name = b"blk.1.ffn_down_exps.weight"
    at = content.index(name) + len(name) + 4 + 3 * 8
    content[at : at + 4] = int(Kind.Q4_0).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_inspect_says_what_convert_would(
    capsys: pytest.CaptureFixture[str], tensors_of_a_type_that_is_not_read: Path
) -> None:
    path = str(tensors_of_a_type_that_is_not_read)
    assert cli._exit_code(["inspect", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["convertible"] is False
    assert "blk.1.ffn_down_exps.weight is of type Q4_0; elmoe reads F32" in found["reason"]
    assert cli._exit_code(["inspect", path]) == 0
    assert f"cannot be converted: {found['reason']}\n" in capsys.readouterr().out
    assert cli._exit_code(["convert", path, "-o", f"{path}.elmoe"]) == 2
    assert found["reason"] in capsys.readouterr().err


def test_inspect_of_what_can_be_converted_and_of_other_models(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = write_gguf(tmp_path / "small.gguf", VALUES, random_tensors(VALUES))
    for model, expected in ((str(whole), True), ("tiny", None)):
        assert cli._exit_code(["inspect", model, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["convertible"], found["reason"]) == (expected, None)
        assert cli._exit_code(["inspect", model]) == 0
        assert "cannot be converted" not in capsys.readouterr().out


def test_notes_on_standard_error(tmp_path: Path) -> None:
    other = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a", "b"]}
    path = write_gguf(tmp_path / "small.gguf", VALUES, random_tensors(VALUES), metadata=other)
    command = [
        str(Path(sys.executable).with_name("elmoe")),
        "convert",
        str(path),
        "-o",
        str(tmp_path / "small.elmoe"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    notes = json.loads(done.stdout)["notes"]
    assert done.stderr.splitlines() == notes
    assert "no tokenizer.json is made, so that prompts have to be token ids: tokenizer.ggml.model = 'bert'" in notes[0]
