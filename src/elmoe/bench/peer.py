"""The driver's side of a peer: a process that answers JSON lines, and the arm that is timed through it.

`llama_cpp_peer.py` documents the requests and answers. The peer has a process of its own so that its interpreter and
libraries need not be ours. Whether the one that waits disturbs the one that is timed is measured, not believed:
`Peer.idle_cpu`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from elmoe.bench.arms import BackendArm, Sample
from elmoe.bench.workload import Decoding
from elmoe.errors import ConfigError, ElmoeError, InternalError

SCRIPT = Path(__file__).with_name("llama_cpp_peer.py")
EXTRA = "elmoe[llama-cpp]"
PYTHON_VARIABLE = "ELMOE_PEER_PYTHON"
WHAT_A_PYTHON_IS = "--peer-python takes a Python interpreter that has llama-cpp-python"
QUIT_SECONDS = 10
LEAST_AGREEMENT = 0.9
"""Correlation of logits; the two sides round differently, and have 0.9999."""


class Peer:
    """A running peer process; a context manager."""

    def __init__(self, python: str | None = None) -> None:
        """Start it, with `python`, else $ELMOE_PEER_PYTHON, else our own interpreter.

        Raises ConfigError when the interpreter, or llama-cpp-python in it, is missing.
        """
        self.python = python = python or os.environ.get(PYTHON_VARIABLE) or sys.executable
        self.description: dict[str, Any] = {}
        self._idle = {"seconds": 0.0, "cpu": 0.0}
        self._waiting = {"seconds": 0.0, "cpu": 0.0}
        self._messages = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115  closed by `close`
        try:
            self._process = subprocess.Popen(
                [python, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._messages.close()
            raise ConfigError(f"{python}: cannot be run ({error.strerror}); {WHAT_A_PYTHON_IS}") from None
        try:
            self.description = self._read()
        except BaseException:
            self.close()
            raise

    def load(
        self, model: Path, threads: int, sequences: int, cells: int, options: Mapping[str, int] | None = None
    ) -> None:
        """Load a GGUF file, with room for `sequences` of `cells` tokens.

        options: fields of ``llama_model_params`` that are not to have llama.cpp's default.
        """
        sizes = {"threads": threads, "sequences": sequences, "cells": cells}
        found = self._ask(op="load", model=str(model), **sizes, options=dict(options or {}))
        self.description |= {name: found[name] for name in found if not name.startswith("idle")}

    def decode(self, work: Decoding) -> list[float]:
        """Seconds of each step."""
        return list(self._ask(op="decode", contexts=work.contexts, steps=work.steps)["seconds"])

    def prefill(self, prompt: Sequence[int]) -> float:
        """Seconds of one prompt."""
        return float(self._ask(op="prefill", tokens=list(prompt))["seconds"])

    def logits(self, prompt: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[V] of the prompt's last token."""
        return np.array(self._ask(op="logits", tokens=list(prompt))["logits"], dtype=np.float32)

    @property
    def process(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def idle_cpu(self) -> dict[str, float]:
        """Cores kept busy by the one who waits: by the peer between requests, by us while it answers."""
        return {
            "peer": self._idle["cpu"] / max(self._idle["seconds"], 1e-9),
            "elmoe": self._waiting["cpu"] / max(self._waiting["seconds"], 1e-9),
        }

    def close(self) -> None:
        """End the process."""
        with suppress(OSError, ValueError):  # it may be gone already
            assert self._process.stdin is not None
            self._process.stdin.write('{"op": "quit"}\n')
            self._process.stdin.close()
        try:
            self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._messages.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it died of is told by `_read`
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        started, started_cpu = time.perf_counter(), time.process_time()
        answer = self._read()
        self._waiting["seconds"] += time.perf_counter() - started
        self._waiting["cpu"] += time.process_time() - started_cpu
        self._idle["seconds"] += answer.get("idle_seconds", 0.0)
        self._idle["cpu"] += answer.get("idle_cpu_seconds", 0.0)
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ElmoeError(f"the peer of {self.python} stopped with exit code {code}: {self._last_message()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise ConfigError(f"{self.python} does not answer as Python would; {WHAT_A_PYTHON_IS}") from None
        if "missing" in answer:
            raise ConfigError(
                f"{self.python} has no {answer['missing']} ({answer['error']}); pip install '{EXTRA}', "
                "or name an interpreter that has it with --peer-python"
            )
        if "error" in answer:
            raise ElmoeError(f"the peer cannot go on: {answer['error']} ({self._last_message()})")
        return answer

    def _last_message(self) -> str:
        self._messages.seek(0)
        lines = [line.strip() for line in self._messages if line.strip()]
        return lines[-1] if lines else "it said nothing"


class PeerArm:
    """AR by the peer."""

    def __init__(self, peer: Peer, name: str, baseline: str) -> None:
        self.peer, self.name, self.baseline = peer, name, baseline

    def decode(self, work: Decoding) -> Sample:
        """Tokens per second by the median step."""
        return Sample(work.batch / statistics.median(self.peer.decode(work)))

    def prefill(self, prompt: Sequence[int]) -> float:
        """Tokens per second."""
        return len(prompt) / self.peer.prefill(prompt)


def agreement(ours: BackendArm, peer: Peer, prompt: Sequence[int]) -> float:
    """Correlation of both sides' logits after a prompt.

    Raises InternalError when it is low: a race against a peer that computes something else means nothing.
    """
    found = float(np.corrcoef(ours.logits(prompt), peer.logits(prompt))[0, 1])
    if not found >= LEAST_AGREEMENT:
        raise InternalError(f"the peer's logits are not those of the same weights (correlation {found:.3f})")
    return found
