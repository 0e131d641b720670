"""Fixtures of the checkpoint tests: synthetic checkpoints, and folders converted from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import CONFIG, MakeSource, Source, make_tensors

from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """``make_source(name, dtype, shards, **config changes)`` writes a checkpoint and returns its `Source`."""

    def make(name: str = "source", dtype: str = "BF16", shards: int = 1, **changes: Any) -> Source:
        config = CONFIG | changes
        source = Source(tmp_path / name, config, make_tensors(config, dtype))
        source.save(shards)
        return source

    return make


@pytest.fixture
def source(make_source: MakeSource) -> Source:
    return make_source()


@pytest.fixture
def converted(source: Source, tmp_path: Path) -> Path:
    """An `.elmoe` folder of the standard synthetic checkpoint."""
    destination = tmp_path / "model.elmoe"
    convert(source.path, destination)
    return destination


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """The built-in model."""
    from elmoe.checkpoint.resolve import resolve

    return Checkpoint.open(resolve("tiny"))
