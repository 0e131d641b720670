"""Every instruction-set path of the kernels, and the odd models, converted once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from odd_models import ODD, make_model

from elmoe.backend.cpu import _native
from elmoe.checkpoint.folder import Checkpoint

PATHS = ("avx512", "avx2_vnni", "avx2", "portable")


@pytest.fixture(scope="module", params=PATHS)
def isa(request: pytest.FixtureRequest) -> str:
    """A path that this machine can run."""
    if request.param not in _native.isas():
        pytest.skip(f"this machine cannot run {request.param}")
    return request.param


@pytest.fixture(scope="session")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """``odd_model(name)``: one of `ODD`."""
    made: dict[str, Checkpoint] = {}

    def get(name: str) -> Checkpoint:
        if name not in made:
            made[name] = make_model(tmp_path_factory.mktemp(name), ODD[name], weights=name)
        return made[name]

    return get
