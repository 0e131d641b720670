"""Python in processes of its own: other environments, limits, signals, and crashes that must not end the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def environment(**settings: str) -> dict[str, str]:
    """Ours, with settings, and with the modules of the backend tests importable."""
    paths = [os.environ.get("PYTHONPATH", ""), str(HERE.parents[1]), str(HERE)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | settings


def python(script: str, *arguments: object, timeout: int = 120, **settings: str) -> str:
    """What a script printed; fails, with what it said, if it fails or crashes."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, *map(str, arguments)],
        env=environment(**settings), capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
