"""Marks the tests of this folder; without torch and transformers all of them are skipped, with the reason."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

LACKING = [name for name in ("torch", "transformers") if find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs under ``make verify``."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.verify)
            if LACKING:
                item.add_marker(pytest.mark.skip(reason=f"{' and '.join(LACKING)} not installed; run make verify"))
            # torch and transformers announce their own deprecations
            item.add_marker(pytest.mark.filterwarnings("default"))
