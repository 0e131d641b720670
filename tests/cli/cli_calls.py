"""A command as a user types it, without a process of its own: what the tests of all verbs call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from elmoe.cli import main as cli

Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    capsys.readouterr()
    code = cli._exit_code(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """The one JSON document of a call that succeeds."""
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1, "one document, one line"
    found: dict[str, Any] = json.loads(out)
    return found
