"""Token files from text and from the generators: held-out documents apart, no repeats, no evaluation prompts."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from conftest import TRAINING
from token_files import END, held_out_rows

TOKENIZER = TRAINING.parent / "src" / "elmoe" / "data" / "tiny.elmoe" / "tokenizer.json"


def prepare(*arguments):
    command = [sys.executable, str(TRAINING / "prepare.py"), *map(str, arguments), "--tokenizer", str(TOKENIZER)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def documents(path):
    tokens = np.fromfile(path, dtype=np.uint16)
    assert tokens[-1] == END
    return [piece[:-1].tolist() for piece in np.split(tokens, np.flatnonzero(tokens == END) + 1)[:-1]]


def test_text(tmp_path):
    corpus, data = tmp_path / "corpus", tmp_path / "data"
    corpus.mkdir()
    texts = [f"Document number {number}, about nothing." for number in range(500)]
    (corpus / "notes.txt").write_text("".join(f"{text}<|endoftext|>\n" for text in texts), encoding="utf-8")
    done = prepare("text", corpus, data)
    assert done.returncode == 0, done.stderr
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    read = {part: [tokenizer.decode(d) for d in documents(data / f"notes.{part}.bin")] for part in ("val", "train")}
    assert read["val"] == texts[:5]
    assert read["train"] == texts[5:]
    assert not list(data.glob("*.tmp"))


def test_a_folder_without_text(tmp_path):
    done = prepare("text", tmp_path, tmp_path / "data")
    assert done.returncode == 1
    assert "no .txt files" in done.stderr


def test_a_missing_tokenizer_is_named(tmp_path):
    command = [sys.executable, str(TRAINING / "prepare.py"), "chat", str(tmp_path), "--tokenizer", "nowhere.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "nowhere.json: no such file; --tokenizer is the model's tokenizer.json"


def test_chat(tmp_path):
    done = prepare("chat", tmp_path, "--documents", 1200, "--processes", 2)
    assert done.returncode == 0, done.stderr
    held_out, trained = (set(map(tuple, documents(tmp_path / f"chat.{part}.bin"))) for part in ("val", "train"))
    assert len(trained) > 1000
    assert not held_out & trained
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.train.bin", "chat.val.bin"]
    again = tmp_path / "again"
    prepare("chat", again, "--documents", 1200, "--processes", 2)
    assert (again / "chat.train.bin").read_bytes() == (tmp_path / "chat.train.bin").read_bytes()


def test_documents_that_share_words_with_evaluation_prompts_are_left_out(tmp_path):
    prepare("chat", tmp_path / "first", "--documents", 400, "--processes", 1)
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    texts = [tokenizer.decode(d) for d in documents(tmp_path / "first" / "chat.train.bin")]
    known = next(text for text in texts if len(text.split()) > 30)
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "exam.jsonl").write_text(json.dumps({"turns": [known]}) + "\n")
    prepare("chat", tmp_path / "second", "--documents", 400, "--processes", 1, "--prompts", prompts)
    left = [tokenizer.decode(d) for d in documents(tmp_path / "second" / "chat.train.bin")]
    assert known in texts
    assert known not in left


@pytest.mark.parametrize(("count", "rows"), [(10, 0), (100, 3), (1000, 4)])
def test_held_out_rows(tmp_path, count, rows):
    tokens = np.arange(1, count + 1, dtype=np.uint16)
    tokens[-1] = END
    tokens.tofile(tmp_path / "a.val.bin")
    got = held_out_rows(tmp_path, "a", 32, 4)
    assert got.shape == (rows, 33)
    for row in got:
        begin = int(row[0]) - 1
        assert (row == tokens[begin : begin + 33]).all()


def test_a_file_that_was_cut_off(tmp_path):
    np.array([5, 6, 7], dtype=np.uint16).tofile(tmp_path / "a.val.bin")
    with pytest.raises(SystemExit, match=r"a\.val\.bin: no tokens, or the last document has no end"):
        held_out_rows(tmp_path, "a", 2, 1)
