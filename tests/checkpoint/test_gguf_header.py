"""Headers: everything that GGUF's writer writes is read, everything broken is refused in words."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from elmoe.checkpoint.gguf_header import read_header, starts_as_gguf
from elmoe.errors import CheckpointError, StorageError


def header(
    *entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    """A file spelled out; `counts` of (tensors, entries) may lie."""
    numbers = counts or (len(tensors), len(entries))
    return b"GGUF" + struct.pack("<IQQ", version, *numbers) + b"".join(entries) + b"".join(tensors)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def test_what_the_writer_writes(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "some-arch")
    values: dict[str, Any] = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 1e-6,
        "float64": 0.1,
        "bool": True,
        "string": "⟨naïve⟩ \U0001f600",
    }
    for name, value in values.items():
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_array("a.strings", ["", "x", "▁y"])
    writer.add_array("a.integers", [3, -4])
    writer.add_array("a.floats", [0.5, -1.0])
    writer.add_array("a.flags", [True, False])
    weights = np.arange(2 * 3 * 64, dtype=np.float32).reshape(2, 3, 64)
    writer.add_tensor("cube", weights)
    writer.add_tensor(
        "blocks",
        gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_header(path)
    assert found.metadata == {"general.architecture": "some-arch"} | {
        f"a.{name}": value for name, value in values.items()
    } | {"a.strings": ["", "x", "▁y"], "a.integers": [3, -4], "a.floats": [0.5, -1.0], "a.flags": [True, False]}
    reader = {each.name: each for each in gguf.GGUFReader(path).tensors}
    for name, info in found.tensors.items():
        assert info.shape == (2, 3, 64)
        assert info.offset == reader[name].data_offset
        assert info.size_bytes == reader[name].n_bytes
    assert list(found.tensors) == ["cube", "blocks"]


def test_numbers_are_the_shortest_decimals(tmp_path: Path) -> None:
    path = tmp_path / "numbers.gguf"
    numbers = [1e-6, 1e-5, 0.1, 0.0707, 1.8, 10000.0, 1e6, 5e6, 0.015625, 16.0]
    path.write_bytes(header(*(entry(f"n{i}", 6, struct.pack("<f", n)) for i, n in enumerate(numbers))))
    assert list(read_header(path).metadata.values()) == numbers


def test_version_2_alignment_and_unknown_types(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    alignment = entry("general.alignment", 4, struct.pack("<I", 256))
    path.write_bytes(header(alignment, tensors=(tensor("x", (5, 7), kind=77, offset=512),), version=2))
    info = read_header(path).tensors["x"]
    assert (info.shape, info.offset, info.size_bytes) == ((7, 5), 256 + 512, None)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = header(
        entry("a", 9, struct.pack("<IQ", 8, 1) + text("xyz")), entry("b", 5, b"1234"), tensors=(tensor("t", (32,)),)
    )
    path = tmp_path / "short.gguf"
    for size in range(4, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"short\.gguf (is truncated within its header|is damaged)"):
            read_header(path)
    path.write_bytes(whole)
    assert read_header(path).metadata == {"a": ["xyz"], "b": int.from_bytes(b"1234", "little")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a GGUF file \(it does not start with GGUF\); give a model file"),
        (b"PK\x03\x04 something else", "is not a GGUF file"),
        (header(version=1), r"GGUF version 1 is not readable \(elmoe reads 2 and 3\); convert the model again"),
        (header(version=4), "GGUF version 4 is not readable"),
        (header(version=3 << 24), r"is a big-endian GGUF file; `gguf-convert-endian x\.gguf little` converts it"),
        (header(counts=(0, 1 << 60)), "it says that it has 1152921504606846976 metadata entries"),
        (header(counts=(1 << 60, 0)), "it says that it has 1152921504606846976 tensors"),
        (header(entry("k", 4, b"1234"), entry("k", 4, b"1234")), "the metadata key k is there twice"),
        (header(entry("k", 13, b"1234")), "a metadata value has the type 13"),
        (header(entry("k", 9, struct.pack("<IQ", 9, 1))), "a metadata array has values of type 9"),
        (header(entry("k", 9, struct.pack("<IQ", 4, 1 << 50))), "it says that it has 1125899906842624 values"),
        (header(entry("k", 8, struct.pack("<Q", 1 << 63))), "is truncated within its header"),
        (header(entry("k", 8, text(b"\xff\xfe"))), "is not UTF-8"),
        (header(entry("general.alignment", 4, struct.pack("<I", 48))), "general.alignment = 48"),
        (header(entry("general.alignment", 8, text("32"))), "general.alignment = '32'"),
        (header(tensors=(tensor("t", (32,)), tensor("t", (32,)))), "the tensor t is there twice"),
        (header(tensors=(tensor("t", ()),)), "the tensor t has 0 dimensions"),
        (header(tensors=(tensor("t", (1, 1, 1, 1, 1)),)), "the tensor t has 5 dimensions"),
        (header(tensors=(tensor("t", (4, 0)),)), r"the tensor t has dimensions \[4, 0\]"),
        (header(tensors=(tensor("t", (1 << 40, 1 << 40)),)), "the tensor t has dimensions"),
        (header(tensors=(tensor("t", (33, 2), kind=8),)), "the tensor t of type Q8_0 has rows of 33 weights"),
    ],
)
def test_refusals(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.gguf.*{message}"):
        read_header(path)


def test_what_the_system_will_not_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        read_header(tmp_path)
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        read_header(tmp_path / "none.gguf")


def test_the_first_bytes(tmp_path: Path) -> None:
    for content, expected in ((header(), True), (b"GGUF", True), (b"GGU", False), (b"", False), (b"{}", False)):
        (tmp_path / "x").write_bytes(content)
        assert starts_as_gguf(tmp_path / "x") is expected
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StorageError, match="folder cannot be read: Is a directory"):
        starts_as_gguf(folder)
