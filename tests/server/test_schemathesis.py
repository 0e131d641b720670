"""Generated requests against the OpenAPI document: whatever is sent, the server has an answer below 500."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from random_server import open_engine, serving

pytestmark = [
    pytest.mark.verify,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed; run make verify"),
]
EXAMPLES = 150


def test_no_request_makes_a_server_error(model_folder, tmp_path):
    with serving(open_engine(model_folder("tools")), max_tokens=16, timeout_seconds=30) as served:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "schemathesis"), "run", f"{served.url}/openapi.json",
                "--checks", "not_a_server_error", "--max-examples", str(EXAMPLES), "--workers", "2", "--seed", "1",
                "--request-timeout", "40", "--phases", "examples,coverage,fuzzing",
            ],
            capture_output=True, text=True, cwd=tmp_path, timeout=840, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert served.ask("/health")[0] == 200
        deadline = time.monotonic() + 20
        while served.service.loop.live and time.monotonic() < deadline:
            time.sleep(0.1)
        assert served.service.loop.live == 0
        _, text, _ = served.ask("/metrics")
        assert 'elmoe_requests_total{outcome="length"}' in text, "some requests were answered"
