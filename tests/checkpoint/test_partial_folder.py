from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from elmoe.checkpoint.partial_folder import partial_folder
from elmoe.errors import ConfigError, StorageError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_appears_whole(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "d") as partial:
        (partial / "a").write_text("x")
        assert names(tmp_path) == [".d.partial"]
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["a"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail() -> None:
        with partial_folder(tmp_path / "d") as partial:
            (partial / "a").write_text("x")
            raise failure

    with pytest.raises(failure):
        fail()
    assert names(tmp_path) == []


def test_a_stale_partial_is_wiped(tmp_path: Path) -> None:
    stale = tmp_path / ".d.partial"
    (stale / "folder").mkdir(parents=True)
    (stale / "old").write_text("x")
    (stale / "link").symlink_to(tmp_path)
    with partial_folder(tmp_path / "d") as partial:
        assert names(partial) == []
    assert names(tmp_path) == ["d"]


def test_a_second_writer_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "d") as partial:
        (partial / "a").write_text("x")
        with (
            pytest.raises(StorageError, match=r"d is being written by another conversion; wait for it"),
            partial_folder(tmp_path / "d"),
        ):
            pass
    assert names(tmp_path / "d") == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_never_overwrites(tmp_path: Path, kind: str) -> None:
    destination = tmp_path / "d"
    if kind == "file":
        destination.write_text("x")
    elif kind == "folder":
        destination.mkdir()
    else:
        destination.symlink_to(tmp_path / "nowhere")
    message = "d exists already; remove it or choose another destination"
    with pytest.raises(ConfigError, match=message), partial_folder(destination):
        pass
    assert names(tmp_path) == ["d"]


def test_a_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"), partial_folder(tmp_path / "d"):
        (tmp_path / "d").mkdir()
    assert names(tmp_path) == ["d"]


def test_locks_only_what_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process renames its folder away between our open and our flock: we start afresh."""
    real, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / ".d.partial").rename(tmp_path / "elsewhere")
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with partial_folder(tmp_path / "d"):
        pass
    assert len(calls) == 2
    assert names(tmp_path) == ["d", "elsewhere"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="cannot lock folders"), partial_folder(tmp_path / "d"):
        pass
    assert names(tmp_path) == []
