"""Random models of every kind, and a server of one with tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from random_server import Served, make_model, open_engine, serving


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``model_folder(kind)``: see `make_model`."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


@pytest.fixture(scope="module")
def served(model_folder: Callable[[str], Path]) -> Iterator[Served]:
    """The model with tools."""
    with serving(open_engine(model_folder("tools"))) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.client()
