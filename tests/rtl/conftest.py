"""Tools of the RTL tests. What needs Icarus Verilog, OpenSTA or ASAP7 is skipped where it is missing, and says so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from elmoe.rtl import icarus, timing
from elmoe.rtl.liberty import Library, read_library
from elmoe.rtl.yosys import Yosys, find_yosys

ASAP7 = Path(__file__).resolve().parents[3] / "shared" / "pdk" / "asap7"

needs_icarus = pytest.mark.skipif(not icarus.available(), reason=f"Icarus Verilog is missing; {icarus.INSTALL}")
needs_opensta = pytest.mark.skipif(not timing.available(), reason=f"OpenSTA is missing; {timing.INSTALL}")


@pytest.fixture(scope="session")
def yosys() -> Yosys:
    return find_yosys()


@pytest.fixture(scope="session")
def asap7() -> Library:
    """ASAP7's cells, where they lie beside the checkout; they are no part of elmoe."""
    files = sorted(ASAP7.glob("*.lib.gz"))
    if not files:
        pytest.skip(f"ASAP7's Liberty files are not in {ASAP7}")
    return read_library(files)


@pytest.fixture(autouse=True)
def _amaranth_keeps_quiet() -> None:
    """A test that fails leaves blocks behind that were never elaborated; that warning would hide the failure."""
    warnings.filterwarnings("ignore", message=".*created but never used")
