"""The tests of the CPU backend on a build with sanitizers: `python -m verify.sanitize {memory,threads}`, in tests/.

memory: AddressSanitizer and UndefinedBehaviorSanitizer under all of tests/backend/cpu but what measures memory, once on
the best instruction-set path of the machine and once on the portable one. threads: ThreadSanitizer under passes of 2
and 5 threads and of two backends at once. Needs GCC or Clang with their runtime libraries; what it builds is in a
temporary folder, never in this repository.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

HOOK = '''
"""Makes the sanitized module the one that is imported, also in the processes that the tests start."""
import os, sys
from importlib.util import spec_from_file_location

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        ours = name == "elmoe.backend.cpu._native"
        return spec_from_file_location(name, os.environ["SANITIZED_NATIVE"]) if ours else None

sys.meta_path.insert(0, Finder)
'''

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from digest import digest
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint
from odd_models import ODD, make_model
from backend.family_models import FAMILY_MODELS, make_family_model
folder = Path(sys.argv[1])
models = [make_model(folder / name, ODD[name]) for name in ("late_moe", "middling", "many_experts")]
families = ("glm4_moe_lite", "olmoe", "qwen2_moe", "gpt_oss_mxfp4", "shared_mxfp4")
models += [make_family_model(folder / name, FAMILY_MODELS[name]) for name in families]
backends = [CpuBackend(model) for model in models]
print(backends[0].isa, backends[0].threads)
alone = [digest(backend, seed) for seed, backend in enumerate(backends)]
with ThreadPoolExecutor(len(backends)) as pool:
    assert list(pool.map(digest, backends, range(len(backends)))) == alone
"""


def main() -> None:
    if sys.argv[1:] not in (["memory"], ["threads"]):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (memory if sys.argv[1] == "memory" else threads)(folder)
    print(f"{sys.argv[1]}: no findings")


def memory(folder: Path) -> None:
    """Raises SystemExit for a failing test or a finding."""
    native = build("address,undefined", folder)
    pytest = [sys.executable, "-m", "pytest", "backend/cpu", "--ignore", "backend/cpu/test_memory.py"]
    pytest += ["-p", "no:cacheprovider", "--timeout", "1200", "--capture", "no"]
    # Tests of all paths need not be repeated on the second one.
    for path, selected in (("", ""), ("portable", "not (avx512 or avx2 or portable)")):
        print(f"tests/backend/cpu on {path or 'the best path'}", flush=True)
        settings = {
            "ELMOE_ISA": path,
            "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:log_path={folder}/found",  # Python's own leaks
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
        run([*pytest, "-k", selected], native, "libasan.so", folder, settings)


def threads(folder: Path) -> None:
    """Raises SystemExit for a failing script or a finding."""
    native = build("thread", folder)
    for path, count in (("", 2), ("", 5), ("portable", 2)):
        settings = {
            "ELMOE_ISA": path,
            "ELMOE_NUM_THREADS": str(count),
            "TSAN_OPTIONS": f"log_path={folder}/found",
        }
        # It knows only the address space layout without randomisation.
        script = ["setarch", platform.machine(), "-R", sys.executable, "-c", THREADS, folder / f"models{path}{count}"]
        run(script, native, "libtsan.so", folder, settings)


def build(sanitizers: str, folder: Path) -> Path:
    """The native module, built with sanitizers."""
    settings = {
        "build-dir": str(folder / "build"),
        "cmake.build-type": "RelWithDebInfo",  # with names and lines
        "cmake.define.ELMOE_SANITIZE": sanitizers,
        "install.strip": "false",
    }
    # An environment that can build without isolation (as developers have it) need not download anything.
    able = shutil.which("scikit-build-core", path=Path(sys.executable).parent) is not None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", ROOT]
    command += ["--no-build-isolation"] if able else []
    subprocess.run([*command, *(f"--config-settings={k}={v}" for k, v in settings.items())], check=True)
    (native,) = (folder / "site" / "elmoe" / "backend" / "cpu").glob("_native*.so")
    return native


def run(command: list[object], native: Path, runtime: str, folder: Path, settings: dict[str, str]) -> None:
    """Run a command with the sanitized module in place of the installed one."""
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(HOOK)
    # The runtime has to be there before Python, and the C++ library with it, or exceptions cannot be thrown.
    preload = " ".join(library(name) for name in (runtime, "libstdc++.so.6"))
    paths = [hook, TESTS, TESTS / "backend" / "cpu"]
    hooked = {
        "LD_PRELOAD": preload,
        "SANITIZED_NATIVE": str(native),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(list(map(str, command)), env=os.environ | settings | hooked, cwd=TESTS, check=False)
    found = sorted(folder.glob("found.*"))
    for file in found:
        print(file.read_text(encoding="utf-8", errors="replace"), flush=True)
    if done.returncode or found:
        sys.exit(f"{len(found)} findings, exit code {done.returncode}")


def library(name: str) -> str:
    """Path of a shared library of the compiler."""
    compiler = os.environ.get("CXX", "g++")
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"{compiler} has no {name}; install the sanitizer libraries of your compiler")
    return str(path.resolve())


if __name__ == "__main__":
    main()
