"""Ctrl-C and SIGTERM, whenever they come: one line, their exit code, nothing half done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[1] / "golden" / "random_moe"
SLOW_CONVERSION = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would inherit that it is ignored
from elmoe.checkpoint import convert
convert.sha256_of = lambda path, add: time.sleep(60)
from elmoe.cli.main import main
main()
"""
SLOW_IMPORT = """
import signal, sys, time
from importlib.abc import MetaPathFinder
signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "elmoe.cli.app":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from elmoe.cli.main import main
main()
"""
BOTH = pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@BOTH
def test_a_conversion_leaves_nothing_behind(tmp_path, number, code, line):
    process = start(SLOW_CONVERSION, "convert", MODEL, "-o", tmp_path / "model.elmoe")
    while not (tmp_path / ".model.elmoe.partial").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"{line}\n")
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_while_modules_are_imported(number, code, line):
    process = start(SLOW_IMPORT, "--help")
    assert process.stdout.readline() == "importing\n"
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", f"{line}\n")
