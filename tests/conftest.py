"""What the backend and the engine tests share: hypothesis settings and the built-in model."""

from __future__ import annotations

import pytest
from hypothesis import settings

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve

settings.register_profile("elmoe", deadline=None, derandomize=True, database=None)
settings.load_profile("elmoe")


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """The built-in model, weights and all."""
    return Checkpoint.open(resolve("tiny"))
