"""What the backend and the engine tests share: hypothesis settings and the built-in model."""

from __future__ import annotations

import pytest
from hypothesis import settings

from backend.family_models import FAMILY_MODELS, make_family_model
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve

settings.register_profile("elmoe", deadline=None, derandomize=True, database=None)
settings.load_profile("elmoe")


@pytest.fixture(scope="session")
def family_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The models of `FAMILY_MODELS`, converted."""
    folder = tmp_path_factory.mktemp("families")
    return {name: make_family_model(folder / name, config) for name, config in FAMILY_MODELS.items()}


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """The built-in model, weights and all."""
    return Checkpoint.open(resolve("tiny"))
