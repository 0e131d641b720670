"""The kernels built for ARM64 and run under emulation compute the bits of this machine's."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[3] / "native"
SOURCES = ["src/isa.cpp", "src/kernels_portable.cpp", "tests/digest.cpp"]
CORE = ["pass.cpp", "attention.cpp", "experts.cpp", "head.cpp", "model.cpp", "threads.cpp", "crc32.cpp"]
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE / 'src'}"]

pytestmark = [
    pytest.mark.skipif(platform.machine() == "aarch64", reason="this is an ARM64 machine: `make test` covers it"),
    pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs Debian's g++-aarch64-linux-gnu"),
]


def build(compiler: str, output: Path, *more: str) -> Path:
    subprocess.run([compiler, *FLAGS, *more, *(NATIVE / source for source in SOURCES), "-o", output], check=True)
    return output


@pytest.mark.parametrize("source", CORE)
def test_the_core_compiles_for_arm64(source: str, tmp_path: Path) -> None:
    path = NATIVE / "src" / source
    subprocess.run(["aarch64-linux-gnu-g++", *FLAGS, "-c", path, "-o", tmp_path / "core.o"], check=True)


@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs Debian's qemu-user")
def test_arm64_computes_the_same_bits(tmp_path: Path) -> None:
    there = build("aarch64-linux-gnu-g++", tmp_path / "arm64", "-static")
    here = build("g++", tmp_path / "here")
    digests = [subprocess.check_output(command, text=True) for command in (["qemu-aarch64", there], [here])]
    assert digests[0] == digests[1]
