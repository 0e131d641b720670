"""The real llama.cpp, where an interpreter has it: same weights, same logits, and no CPU used while it waits."""

import os
import subprocess
import sys
import time

import pytest

from elmoe.backend.reference import ReferenceBackend
from elmoe.bench.arms import BackendArm
from elmoe.bench.gguf_q8 import write_gguf
from elmoe.bench.peer import PYTHON_VARIABLE, Peer, agreement
from elmoe.bench.workload import RacePlan

PYTHON = os.environ.get(PYTHON_VARIABLE) or sys.executable
PLAN = RacePlan(prefill=30, steps=4, context=40)


@pytest.fixture(scope="module")
def peer(tiny, tmp_path_factory):
    if subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} has no llama-cpp-python; set {PYTHON_VARIABLE} to an interpreter that has it")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny, path)
    with Peer(PYTHON) as running:
        running.load(path, threads=2, sequences=4, cells=64)
        yield running


def test_same_weights_same_logits(peer, tiny):
    assert agreement(BackendArm(ReferenceBackend(tiny)), peer, PLAN.prompt(tiny.shape, 0)) > 0.999


def test_it_sleeps_between_requests(peer, tiny):
    assert len(peer.decode(PLAN.decoding(tiny.shape, 4, 0))) == 4
    time.sleep(2)
    peer._idle.update(seconds=0.0, cpu=0.0)
    assert peer.prefill(PLAN.prompt(tiny.shape, 0)) > 0
    assert peer.idle_cpu["peer"] < 0.05
