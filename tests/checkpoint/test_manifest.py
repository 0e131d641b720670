from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.manifest import AGAIN, canonical_sha256
from elmoe.errors import CheckpointError

Change = Callable[[dict[str, Any]], object]


def edit(folder: Path, change: Change, rehash: bool = True) -> None:
    """Apply `change` to the manifest, as somebody with a text editor (and a hash tool) would."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    if rehash:
        values["sha256"] = canonical_sha256(values)
    path.write_text(json.dumps(values))


def test_damage_is_noticed_by_the_self_hash(converted: Path) -> None:
    edit(converted, lambda m: m["vectors"]["final_norm"].update(offset=0), rehash=False)
    with pytest.raises(CheckpointError, match=rf"manifest\.json is damaged \(its SHA-256 does not match\); {AGAIN}"):
        Checkpoint.open(converted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), r"format = 'other'; this is not an \.elmoe folder"),
        (lambda m: m.pop("format"), r"format = None; this is not an \.elmoe folder"),
        (lambda m: m.update(version=2), r"format version 2 is newer than this elmoe reads \(1\); upgrade elmoe"),
        (lambda m: m.update(version=0), r"format version 0 is not readable; remove"),
        (lambda m: m.update(version="1"), r"format version '1' is not readable"),
    ],
)
def test_format_and_version_come_before_the_hash(converted: Path, change: Change, message: str) -> None:
    edit(converted, change, rehash=False)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(converted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(msb_bits=3), "msb_bits = 3, not 4"),
        (lambda m: m.pop("linears"), "linears are not those of config.json"),
        (lambda m: m.update(vectors=[]), "vectors are not those of config.json"),
        (lambda m: m["linears"].pop("embedding"), "linears are not those of config.json"),
        (lambda m: m["linears"].update(head=m["linears"]["embedding"]), "linears are not those of config.json"),
        (
            lambda m: m["linears"]["embedding"].update(offset=1 << 50),
            r"linears\.embedding\.offset = 1125899906842624, not 0",
        ),
        (lambda m: m["linears"]["embedding"].update(outputs=-1), r"linears\.embedding\.outputs = -1, not 100"),
        (lambda m: m["linears"].update(embedding=3), r"linears\.embedding is not an object"),
        (lambda m: m["linears"]["embedding"].update(crc32=[1]), "crc32 entries are missing"),
        (lambda m: m["vectors"]["final_norm"].update(shape=[97]), r"vectors\.final_norm\.shape = \[97\], not \[96\]"),
        (lambda m: m["vectors"]["final_norm"].pop("crc32"), "crc32 entries are missing"),
        (lambda m: m["experts"].update(experts=4), r"experts\.experts = 4, not 3"),
        (lambda m: m["experts"].update(lsb_stride=0), r"experts\.lsb_stride = 0, not"),
        (lambda m: m["experts"]["crc32_lsb"].pop(), "crc32 entries are missing"),
        (lambda m: m["experts"].update(crc32_msb=None), "crc32 entries are missing"),
        (lambda m: m.update(experts=None), "experts is not an object"),
        (lambda m: m.update(files=None), r"manifest\.json lists no files"),
        (lambda m: m["files"].pop("config.json"), "its list of files is not complete"),
        (lambda m: m["files"].pop("dense.bin"), r"files are not those of config\.json"),
        (lambda m: m["files"].update({"../x": 3}), r"'\.\./x' is not a file of this folder"),
    ],
)
def test_a_foreign_manifest_cannot_lead_out_of_bounds(converted: Path, change: Change, message: str) -> None:
    edit(converted, change)
    with pytest.raises(CheckpointError, match=rf"manifest\.json:? .*{message}|manifest\.json {message}|{message}"):
        Checkpoint.open(converted)


def test_a_wrong_crc_reads_as_damage(converted: Path) -> None:
    edit(converted, lambda m: m["vectors"]["final_norm"].update(crc32="no"))
    with pytest.raises(CheckpointError, match="final_norm is damaged"):
        Checkpoint.open(converted).vector("final_norm")
