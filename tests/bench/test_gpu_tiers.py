"""The measurement of a GPU's two memory tiers compiles where CUDA's compiler is; what it found is whole."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_compiles(tmp_path):
    command = [
        "nvcc",
        "-O1",
        "-std=c++17",
        "-arch=sm_90",
        str(BENCH / "gpu_tiers.cu"),
        "-o",
        str(tmp_path / "gpu_tiers"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kept_measurement():
    found = json.loads((BENCH / "results" / "gpu_tiers.json").read_text())
    for direction in ("pinned_host_to_device_gb_per_s", "device_to_pinned_host_gb_per_s"):
        cells = {(cell["chunk_kib"], cell["streams"]): cell["gb_per_s"] for cell in found[direction]}
        assert set(cells) == {(chunk, streams) for chunk in (64, 256, 1024, 4096, 16384) for streams in (1, 2, 4, 8)}
        assert all(0 < rate < max(found["device_read_gb_per_s"].values()) for rate in cells.values())
    assert found["kernel_reads_pinned_host_gb_per_s"]
    assert found["latency_us"]
