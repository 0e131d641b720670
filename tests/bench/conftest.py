"""A small random checkpoint, made by the script that makes large ones, and a stand-in for llama-cpp-python."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from small_model import SCRIPT, SMALL

from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint


@pytest.fixture(scope="session")
def random_checkpoint() -> ModuleType:
    """`bench/random_checkpoint.py`."""
    spec = importlib.util.spec_from_file_location("random_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
