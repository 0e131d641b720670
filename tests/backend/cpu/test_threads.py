"""Threads of ours, of Python's, and processes: forks, spawns, interrupts, and what limits the number of threads."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from digest import digest, digest_of_folder
from processes import environment, python

from backend.passes import run_of, same_bits
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint

OddModel = Callable[[str], Checkpoint]
TEXT = list(range(3, 60))


@pytest.fixture(scope="module")
def model(odd_model: OddModel) -> Checkpoint:
    return odd_model("middling")


def in_a_fork(compute: Callable[[], bool]) -> None:
    """Asserts that a forked child computes True, and soon."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"yes" if compute() else b"no")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], 30)
        assert ready, "the child hangs"
        assert os.read(reader, 10) == b"yes"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


# --- several at once in one process ---


def test_backends_in_several_python_threads(tiny: Checkpoint, odd_model: OddModel) -> None:
    checkpoints = [tiny, odd_model("late_moe"), odd_model("bias"), tiny]
    want = [digest(CpuBackend(checkpoint), seed) for seed, checkpoint in enumerate(checkpoints)]
    backends = [CpuBackend(checkpoint) for checkpoint in checkpoints]
    with ThreadPoolExecutor(len(backends)) as pool:
        for _ in range(3):
            assert list(pool.map(digest, backends, range(4))) == want


def test_one_backend_in_two_python_threads_does_not_crash(model: Checkpoint) -> None:
    """Nobody should; then passes are right or refused."""
    script = """
import sys, threading
from pathlib import Path
from backend.passes import run_of
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint
backend = CpuBackend(Checkpoint.open(Path(sys.argv[1])))
texts = [list(range(5)), list(range(100))]
want = []
for sequence, text in enumerate(texts):
    backend.allocate(sequence, 100)
    want.append(backend.forward(run_of(text, sequence)).logits.tobytes())
wrong = []

def work(sequence):
    for _ in range(300):
        try:
            if backend.forward(run_of(texts[sequence], sequence)).logits.tobytes() != want[sequence]:
                wrong.append(sequence)
        except (RuntimeError, ValueError) as error:
            assert "thread" in str(error) or "use" in str(error), error

threads = [threading.Thread(target=work, args=(sequence,)) for sequence in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(wrong))
"""
    assert python(script, model.path, ELMOE_NUM_THREADS="2") == "0\n"


# --- processes ---


def test_a_forked_child_computes_the_same(model: Checkpoint) -> None:
    backend = CpuBackend(model)
    want = digest(backend)  # the threads run by now
    in_a_fork(lambda: digest(CpuBackend(model)) == want)
    backend.allocate(9, 60)
    logits = backend.forward(run_of(TEXT, 9)).logits

    def with_the_parents_backend() -> bool:
        after = backend.forward(run_of([7], 9, len(TEXT))).logits
        return same_bits(after, expected) and digest(backend) == want

    in_a_fork(lambda: same_bits(backend.forward(run_of(TEXT, 9)).logits, logits))
    expected = backend.forward(run_of([7], 9, len(TEXT))).logits
    in_a_fork(with_the_parents_backend)
    in_a_fork(lambda: in_a_fork(with_the_parents_backend) is None)  # a grandchild
    assert digest(backend) == want


def test_forks_while_another_thread_runs_a_pass(model: Checkpoint, tiny: Checkpoint) -> None:
    """Forked in the middle of passes of one model, the child runs another."""
    busy, other = CpuBackend(tiny), CpuBackend(model)
    want = digest(other)
    busy.allocate(0, 60)
    stop = False

    def work() -> int:
        passes = 0
        while not stop:
            busy.forward(run_of(TEXT))
            passes += 1
        return passes

    with ThreadPoolExecutor(1) as pool:
        passes = pool.submit(work)
        try:
            for i in range(10):
                time.sleep(0.002 + 0.0007 * i)
                in_a_fork(lambda: digest(other) == want)
        finally:
            stop = True
        assert passes.result() > 0


def test_a_fork_in_the_middle_of_a_pass_of_its_model(model: Checkpoint) -> None:
    """The child inherits a pass that nobody will end, and begins its own."""
    script = """
import os, signal, sys, threading, time
from pathlib import Path
from backend.passes import run_of
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint
backend = CpuBackend(Checkpoint.open(Path(sys.argv[1])))
text = list(range(300))
backend.allocate(0, 300)
want = backend.forward(run_of(text)).logits.tobytes()
stop = False

def work():
    while not stop: backend.forward(run_of(text))

thread = threading.Thread(target=work)
thread.start()
ends = set()
for _ in range(20):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        os._exit(0 if backend.forward(run_of(text)).logits.tobytes() == want else 3)
    ends.add(os.waitpid(child, 0)[1])
    if ends != {0}: break
stop = True
thread.join()
print(ends)
"""
    assert python(script, model.path, ELMOE_NUM_THREADS="2") == "{0}\n"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_of_multiprocessing(model: Checkpoint, method: str) -> None:
    want = digest_of_folder(model.path)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(digest_of_folder, [model.path] * 3) == [want] * 3


# --- interrupts ---

GENERATE = """
import signal
import sys
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.cli.main import main
forward = CpuBackend.forward

def announced(*arguments):
    print("a pass", file=sys.stderr, flush=True)
    return forward(*arguments)

CpuBackend.forward = announced
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit that it is ignored
sys.argv[1:] = ["run", "tiny", "--backend", "cpu", "--max-tokens", "400", "--ignore-eos", "--raw", *["-p", "Once"] * 40]
main()
"""


def test_an_interrupted_command_ends_soon_with_130() -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", GENERATE], env=environment(ELMOE_ISA="portable", ELMOE_NUM_THREADS="2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert command.stderr is not None
        for _ in range(20):
            assert command.stderr.readline() == "a pass\n"
        command.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, said = command.communicate(timeout=30)
        assert time.monotonic() - sent < 2
        assert (command.returncode, said.splitlines()[-1]) == (130, "interrupted")
    finally:
        command.kill()
        command.wait()


def endless(backend: CpuBackend) -> None:
    while True:
        backend.forward(run_of(TEXT))


def test_an_interrupted_backend_goes_on(model: Checkpoint) -> None:
    """The exception arrives between native calls."""
    backend = CpuBackend(model)
    want = digest(backend)
    backend.allocate(0, 60)
    for after in (0.002, 0.01, 0.03):
        signal.setitimer(signal.ITIMER_REAL, after)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                endless(backend)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert digest(backend) == want
        backend.allocate(0, 60)


# --- how many ---


def test_affinity_and_environment_decide_the_number_of_threads() -> None:
    script = """
import os, sys
os.sched_setaffinity(0, set(map(int, sys.argv[1:])))
from elmoe.backend.cpu import _native
print(_native.threads())
"""
    cpus = sorted(os.sched_getaffinity(0))
    assert python(script, cpus[0], ELMOE_NUM_THREADS="") == "1\n"
    assert 1 <= int(python(script, *cpus, ELMOE_NUM_THREADS="")) <= len(cpus)
    assert python(script, cpus[0], ELMOE_NUM_THREADS="3") == "3\n"


def test_threads_that_cannot_be_started_are_done_without(model: Checkpoint) -> None:
    """No address space for their stacks."""
    script = """
import resource, sys
from pathlib import Path
from digest import digest_of_folder
from elmoe.backend.cpu import _native
limits = resource.getrlimit(resource.RLIMIT_AS)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (20 << 20), limits[1]))
threads = _native.threads()
resource.setrlimit(resource.RLIMIT_AS, limits)
assert 1 <= threads < 8, threads
print(digest_of_folder(Path(sys.argv[1])))
"""
    assert python(script, model.path, ELMOE_NUM_THREADS="8").strip() == digest_of_folder(model.path)
