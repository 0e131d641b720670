from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic import Source

from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.manifest import AGAIN
from elmoe.errors import CheckpointError

BINS = ("dense.bin", "experts_msb.bin", "experts_lsb.bin")


def flip(folder: Path, file: str, offset: int) -> None:
    with (folder / file).open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 0x10]))


def test_offers_configuration_and_shapes(converted: Path, source: Source) -> None:
    checkpoint = Checkpoint.open(converted)
    assert checkpoint.path == converted
    assert checkpoint.config == source.config
    assert checkpoint.shape.moe_layers == (0, 2)
    assert checkpoint.generation_config == {}
    assert checkpoint.vector("layers.0.router").shape == (3, 96)
    assert checkpoint.expert_msb(0, 0).dtype == np.uint8


def test_generation_config(source: Source, tmp_path: Path) -> None:
    (source.path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    convert(source.path, tmp_path / "d")
    assert Checkpoint.open(tmp_path / "d").generation_config == {"eos_token_id": [1, 2]}
    (tmp_path / "d" / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json was changed after the conversion"):
        _ = Checkpoint.open(tmp_path / "d").generation_config


def test_views_cannot_be_written(converted: Path) -> None:
    checkpoint = Checkpoint.open(converted)
    for view in (
        checkpoint.expert_msb(0, 0),
        checkpoint.vector("final_norm"),
        checkpoint.linear_planes("embedding")[0],
    ):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


def test_opening_reads_no_weights(converted: Path) -> None:
    """Damage everywhere in the .bin files goes unnoticed until they are touched."""
    for file in BINS:
        (converted / file).write_bytes(bytes((converted / file).stat().st_size))
    Checkpoint.open(converted)


def test_opening_tiny_is_quick(tiny: Checkpoint) -> None:
    started = time.perf_counter()
    for _ in range(10):
        Checkpoint.open(tiny.path)
    assert (time.perf_counter() - started) / 10 < 0.1


def test_a_flipped_byte_is_noticed_at_first_touch(converted: Path) -> None:
    pieces = list(Checkpoint.open(converted).layout.extents())
    assert len(pieces) == 9 * 2 + 3 * 4 + 2 + 1 + 2 * 2 * 3
    for title, extent in pieces:
        at = extent.offset + extent.size_bytes // 2
        flip(converted, extent.file, at)
        with pytest.raises(CheckpointError, match=rf"{extent.file}: {title} is damaged \(CRC-32 mismatch\); {AGAIN}"):
            Checkpoint.open(converted).verify()
        flip(converted, extent.file, at)
    Checkpoint.open(converted).verify()


def test_reading_the_msb_plane_does_not_touch_the_lsb_file(converted: Path) -> None:
    checkpoint = Checkpoint.open(converted)
    file, offset, _ = checkpoint.expert_extent("lsb", 1, 2)
    flip(converted, file, offset)
    checkpoint.expert_msb(1, 2)
    checkpoint.expert_lsb(1, 1)
    with pytest.raises(CheckpointError, match=r"experts_lsb\.bin: LSB record of expert 2 in MoE block 1 is damaged"):
        checkpoint.expert_lsb(1, 2)


def test_a_piece_is_checked_once_and_again_by_verify(converted: Path) -> None:
    checkpoint = Checkpoint.open(converted)
    checkpoint.vector("final_norm")
    flip(converted, "dense.bin", checkpoint.layout.vectors["final_norm"].offset)
    checkpoint.vector("final_norm")
    with pytest.raises(CheckpointError, match="final_norm is damaged"):
        checkpoint.verify()


TOKENIZER = json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}})


def test_verify_reports_progress_and_checks_copied_files(source: Source, tmp_path: Path) -> None:
    (source.path / "tokenizer.json").write_text(TOKENIZER)
    convert(source.path, tmp_path / "d")
    seen: list[tuple[int, int]] = []
    Checkpoint.open(tmp_path / "d").verify(lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    (tmp_path / "d" / "tokenizer.json").write_text(TOKENIZER.upper())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was changed after the conversion \(SHA-256 mismatch\)"):
        Checkpoint.open(tmp_path / "d").verify()


@pytest.mark.parametrize("file", [*BINS, "config.json", "generation_config.json", "tokenizer.json"])
def test_truncated_and_missing_files(source: Source, tmp_path: Path, file: str) -> None:
    (source.path / "generation_config.json").write_text("{}")
    (source.path / "tokenizer.json").write_text(TOKENIZER)
    converted = tmp_path / "d"
    convert(source.path, converted)
    size_bytes = (converted / file).stat().st_size
    os.truncate(converted / file, size_bytes - 1)
    with pytest.raises(CheckpointError, match=rf"{file} has {size_bytes - 1} bytes instead of {size_bytes}; {AGAIN}"):
        Checkpoint.open(converted)
    (converted / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing; {AGAIN}"):
        Checkpoint.open(converted)


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_truncated_manifest(converted: Path, keep: int) -> None:
    path = converted / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"manifest\.json is not valid JSON .*; {AGAIN}"):
        Checkpoint.open(converted)


def test_other_things_than_elmoe_folders(source: Source, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere does not exist; give an \.elmoe folder made by `elmoe convert`"
    ):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json is not a folder; give an \.elmoe folder"):
        Checkpoint.open(source.path / "config.json")
    with pytest.raises(CheckpointError, match="source is a Hugging Face folder; convert it first with `elmoe convert`"):
        Checkpoint.open(source.path)
    with pytest.raises(CheckpointError, match=r"has no manifest\.json; give an \.elmoe folder"):
        Checkpoint.open(tmp_path)


def test_an_edited_config_is_noticed(converted: Path) -> None:
    path = converted / "config.json"
    path.write_text(path.read_text().replace("true", "True", 1))
    with pytest.raises(CheckpointError, match=r"config\.json was changed after the conversion"):
        Checkpoint.open(converted)
