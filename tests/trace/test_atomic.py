from __future__ import annotations

from pathlib import Path

import pytest

from elmoe.errors import StorageError
from elmoe.trace.atomic import atomic_file


def test_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write(path: Path, failure: BaseException | None = None) -> None:
    with atomic_file(path) as file:
        file.write(b"new")
        if failure:
            raise failure


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), FileNotFoundError("something else")])
def test_an_error_in_the_block_passes_and_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(failure)) as caught:
        write(path, failure)
    assert caught.value is failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing/a\.txt cannot be written: No such file or directory$"):
        write(tmp_path / "missing" / "a.txt")
    with pytest.raises(StorageError, match=r" is a folder; give the name of a file$"):
        write(tmp_path)


def test_a_full_disk_at_the_end(tmp_path: Path, full_disk_at_sync: None) -> None:
    with pytest.raises(StorageError, match=r"a\.txt cannot be written: No space left on device$"):
        write(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
