"""What a CPU backend computes, as one number: the same in all processes, environments and threads."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from story import Story
from twins import Recorded

from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import Backend
from elmoe.checkpoint.folder import Checkpoint


def digest(backend: Backend, seed: int = 0, passes: int = 12) -> str:
    """SHA-256 of all that a random story makes a backend compute."""
    recorded = Recorded(backend)
    Story(recorded, np.random.default_rng(seed)).tell(passes)
    found = hashlib.sha256()
    for answer in recorded.answers:
        for array in (answer.logits, answer.experts, answer.read):
            found.update(array.tobytes())
        if answer.best is not None:
            for array in (answer.best.tokens, answer.best.logits, answer.best.log_total):
                found.update(array.tobytes())
    return found.hexdigest()


def digest_of_folder(folder: Path, seed: int = 0) -> str:
    """Of a model on disk, freshly opened."""
    return digest(CpuBackend(Checkpoint.open(folder)), seed)


def main() -> None:
    """Prints the digest of sys.argv's folder and seed, and the number of threads."""
    print(digest_of_folder(Path(sys.argv[1]), int(sys.argv[2])), _native.threads())
