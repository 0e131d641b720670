"""The disk probe: plausible rates around the page cache, and clear errors where there is no direct I/O."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from elmoe.bench import disk
from elmoe.bench.disk import median_rate, rate_table, read_rate
from elmoe.errors import ConfigError, StorageError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "file"
    path.write_bytes(os.urandom(4 << 20))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the temporary folder's file system has no direct I/O")
    if disk._file_system(path) in disk.IN_MEMORY:
        pytest.skip("the temporary folder lies in memory")
    return path


@pytest.mark.parametrize(("request_bytes", "depth"), [(4096, 1), (1 << 16, 4), (4 << 20, 2)])
def test_it_reads(file, request_bytes, depth):
    assert 0 < read_rate(file, request_bytes, depth, 0.02) < 1000


def test_reads_go_around_the_page_cache_to_the_disk(file):
    before = _read_bytes()
    rate = read_rate(file, 1 << 16, 1, 0.05)
    assert _read_bytes() - before >= 0.5 * rate * 1e9 * 0.05


def test_all_offsets_are_aligned_and_inside(file, monkeypatch):
    seen = []

    def preadv(descriptor, buffers, offset):
        seen.append(offset)
        return real(descriptor, buffers, offset)

    real = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    read_rate(file, 1 << 20, 2, 0.05)
    assert set(seen) <= {0, 1 << 20, 2 << 20, 3 << 20}
    assert len(set(seen)) > 1


def test_the_median_and_the_table(file, monkeypatch):
    rates = iter([3.0, 1.0, 2.0] * 4)
    monkeypatch.setattr(disk, "read_rate", lambda *_: next(rates))
    assert median_rate(file, 4096, 1) == 2.0
    assert rate_table(file, (4096, 8192), (1,), rounds=3) == {4096: {1: 2.0}, 8192: {1: 2.0}}


def test_sizes_that_direct_io_cannot_have(file):
    with pytest.raises(ConfigError, match="a multiple of 4096 bytes, not 1000"):
        read_rate(file, 1000, 1)
    with pytest.raises(ConfigError, match=r"depth and seconds must be above 0, not 0 and 0\.5"):
        read_rate(file, 4096, 0)
    with pytest.raises(ConfigError, match="is smaller than one request of 8388608 bytes; give a larger file"):
        read_rate(file, 8 << 20, 1)


def test_a_file_system_without_direct_io(file, monkeypatch):
    monkeypatch.setattr(disk.os, "open", _refuse(errno.EINVAL))
    with pytest.raises(StorageError, match="its file system has no direct I/O"):
        read_rate(file, 4096, 1)


def test_a_file_in_memory(monkeypatch):
    memory = Path("/dev/shm")
    if disk._file_system(memory) != "tmpfs":
        pytest.skip("there is no tmpfs here")
    with tempfile.NamedTemporaryFile(dir=memory) as file:
        file.truncate(1 << 20)
        with pytest.raises(StorageError, match=r"lies in memory \(tmpfs\); give a file on a local disk"):
            read_rate(Path(file.name), 4096, 1)
    monkeypatch.setattr(disk.Path, "read_text", _refuse(errno.ENOENT))
    assert disk._file_system(memory) == ""


def test_a_missing_file_and_a_failing_disk(file, tmp_path, monkeypatch):
    with pytest.raises(StorageError, match=r"nothing cannot be read: No such file or directory"):
        read_rate(tmp_path / "nothing", 4096, 1)
    monkeypatch.setattr(disk.os, "preadv", _refuse(errno.EIO))
    with pytest.raises(StorageError, match="file cannot be read: Input/output error"):
        read_rate(file, 4096, 3)


def test_the_command(file, tmp_path):
    command = [sys.executable, "-m", "elmoe.bench.disk"]
    done = subprocess.run(
        [*command, file, "--seconds", "0.001", "--rounds", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, "the file has no 16 MiB"
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def _refuse(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def _read_bytes():
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
