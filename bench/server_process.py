"""`elmoe serve` as a process of its own on a free loopback port, for the benchmarks of the server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 300


@dataclass(frozen=True)
class ServerProcess:
    """A server that listens."""

    url: str
    process: subprocess.Popen[str]

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096

    @property
    def anonymous_bytes(self) -> int:
        """Resident memory without pages of mapped files: weights that are read for the first time are no leak."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def serving(model: str, *options: str, log: Path | None = None) -> Iterator[ServerProcess]:
    """A server of `model`; drained and ended on leaving. Its log goes to a file, or nowhere."""
    command = [sys.executable, "-c", "from elmoe.cli.main import main; main()", "serve", model, "--port", "0", "--json"]
    with (log or Path("/dev/null")).open("w", encoding="utf-8") as errors:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise subprocess.SubprocessError(f"the server did not start; see {log or 'its log'}")
            yield ServerProcess(json.loads(line)["url"], process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
