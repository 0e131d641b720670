"""The command line on the CPU backend: the same text on every path, and as the reference."""

from __future__ import annotations

import json

import pytest
from processes import python

MAIN = "from elmoe.cli.main import main; main()"
ASK = ("run", "tiny", "-p", "Once upon a time", "-p", "def area(", "--max-tokens", "24", "--raw", "--json")


def text(backend: str, *arguments: str, **settings: str) -> list[str]:
    document = json.loads(python(MAIN, *ASK, "--backend", backend, *arguments, **settings))
    assert document["settings"]["backend"] == backend
    return [output["text"] for output in document["outputs"]]


@pytest.fixture(scope="module")
def wanted() -> list[str]:
    return text("reference", "--mode", "ar")


@pytest.mark.parametrize(("path", "mode"), [("", "sd"), ("portable", "sd"), ("portable", "ar")])
def test_every_path_writes_the_text_of_the_reference(path: str, mode: str, wanted: list[str]) -> None:
    assert text("cpu", "--mode", mode, ELMOE_ISA=path) == wanted
    assert len(wanted[0]) > 30


def test_an_environment_that_cannot_be_is_one_line() -> None:
    script = """
import subprocess, sys
done = subprocess.run([sys.executable, "-c", *sys.argv[1:]], capture_output=True, text=True)
print(done.returncode, done.stdout, done.stderr)
"""
    printed = python(script, MAIN, *ASK, "--backend", "cpu", ELMOE_NUM_THREADS="none")
    assert printed.split() == ["2", "error:", "ELMOE_NUM_THREADS", "must", "be", "1", "to", "512,", "not", "none"]
