"""The words of the report: ``texts.toml``."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _texts() -> dict[str, Any]:
    return tomllib.loads((files("elmoe.report") / "texts.toml").read_text(encoding="utf-8"))


def figure_text(identity: str, field: str) -> str:
    """``title``, ``evidence``, ``says`` or ``how`` of a figure."""
    text = str(_texts()["figures"][identity][field]).strip()
    return text.format(**_texts()["shared"]) if field == "how" else text


def reason(kind: str, *place: object) -> str:
    """Why a number differs; empty where nobody knows."""
    return str(_texts()["reasons"][kind].get(", ".join(map(str, place)), ""))


def definitions() -> dict[str, str]:
    """Word -> meaning."""
    return dict(_texts()["definitions"])
