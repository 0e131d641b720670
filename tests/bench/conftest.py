"""A small random checkpoint, made by the script that makes large ones, and a stand-in for llama-cpp-python."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from small_model import SCRIPT, SMALL

from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint


@pytest.fixture(scope="session")
def bench_script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of bench/ by its name, as its neighbours do."""
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="session")
def random_checkpoint(bench_script: Callable[[str], ModuleType]) -> ModuleType:
    """`bench/random_checkpoint.py`."""
    return bench_script("random_checkpoint")


@pytest.fixture(scope="session")
def small_source(random_checkpoint: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    folder = tmp_path_factory.mktemp("small") / "source"
    random_checkpoint.write_checkpoint(folder, random_checkpoint.qwen3_config(SMALL), seed=1)
    return folder


@pytest.fixture(scope="session")
def small(small_source: Path) -> Checkpoint:
    """The same, converted."""
    folder = small_source.with_name("small.elmoe")
    convert(small_source, folder)
    return Checkpoint.open(folder)


@pytest.fixture
def fake_llama_cpp(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    """An interpreter that believes to have llama-cpp-python."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("fake_llama_cpp")))
    monkeypatch.setenv("FAKE_LLAMA_MODEL", str(small.path))
    return sys.executable
