from __future__ import annotations

from pathlib import Path

import pytest

from elmoe.checkpoint.json_file import read_json_object
from elmoe.errors import CheckpointError, StorageError


def test_reads_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert read_json_object(tmp_path / "a.json", "fetch it again") == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.json is not valid JSON \(Expecting value: line 1 column 1 \(char 0\)\); fetch it again"),
        (b'{"a": 1', r"is not valid JSON \(Expecting ',' delimiter: line 1 column 8"),
        (b"\xff\xfe\x00", r"is not valid JSON"),
        (b"[" * 100_000, r"is not valid JSON"),
        (b"[1, 2]", r"holds a JSON list, not an object; fetch it again"),
        (b"null", r"holds a JSON NoneType, not an object"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_json_object(tmp_path / "a.json", "fetch it again")


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.json is missing; fetch it again"):
        read_json_object(tmp_path / "a.json", "fetch it again")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(StorageError, match=r"b\.json cannot be read: Is a directory"):
        read_json_object(tmp_path / "b.json", "fetch it again")
