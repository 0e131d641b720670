from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elmoe.errors import StorageError, TraceError
from elmoe.models.shape import ModelShape
from elmoe.trace import parquet
from elmoe.trace.parquet import COLUMNS, TraceWriter, read_trace
from elmoe.trace.schema import SCHEMA_VERSION, PassKind, PassRecord

KINDS = list(PassKind)


def assert_same(one: PassRecord, other: PassRecord) -> None:
    """Bit for bit, dtypes and shapes too."""
    for field in fields(PassRecord):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
        else:
            assert (type(a), a) == (type(b), b), field.name


# --- round trip ---


def test_records_come_back_bit_for_bit(make_record: Any, write_trace: Any) -> None:
    records = [make_record(step, kind, rows) for step in range(5) for kind in KINDS for rows in (1, 2, 7)]
    trace = read_trace(write_trace(records))
    for record, found in zip(records, trace.passes(), strict=True):
        assert_same(record, found)


def test_extreme_values(make_record: Any, write_trace: Any, shape: ModelShape) -> None:
    layers = len(shape.moe_layers)
    nothing = np.zeros(0, dtype=np.int32)
    records = [
        replace(make_record(), step=2**40, fast_bytes=2**63 - 1, seconds=5e-324),
        replace(make_record(), pool=np.ones((layers, shape.experts), dtype=np.bool_)),
        replace(make_record(), pool=np.zeros((layers, shape.experts), dtype=np.bool_)),
        replace(
            make_record(),
            sequences=nothing,
            positions=nothing,
            tokens=nothing,
            kept=np.zeros(0, dtype=np.bool_),
            experts=np.zeros((0, layers, shape.experts_per_tok), dtype=np.int16),
        ),
    ]
    for record, found in zip(records, read_trace(write_trace(records)).passes(), strict=True):
        assert_same(record, found)


def test_an_empty_trace(write_trace: Any) -> None:
    trace = read_trace(write_trace([]))
    assert list(trace.passes()) == []
    assert (trace.pass_count, trace.steps, trace.tokens) == (0, 0, 0)


def test_a_model_with_many_experts(tmp_path: Path, shape: ModelShape, make_record: Any) -> None:
    large = replace(shape, experts=512)
    record = replace(
        make_record(),
        pool=np.random.default_rng(1).random((2, 512)) < 0.3,
        experts=np.array([[[511, 0], [256, 255]]] * 3, dtype=np.int16),
    )
    with TraceWriter(tmp_path / "t.parquet", large, {}, "") as writer:
        writer.record(record)
    assert_same(record, next(read_trace(tmp_path / "t.parquet").passes()))


def test_arrays_may_be_reused_after_recording(tmp_path: Path, shape: ModelShape, make_record: Any) -> None:
    record = make_record()
    expected = replace(record, **{f.name: np.copy(getattr(record, f.name)) for f in fields(record) if f.name in ARRAYS})
    with TraceWriter(tmp_path / "t.parquet", shape, {}, "") as writer:
        writer.record(record)
        for name in ARRAYS:
            getattr(record, name)[...] = 0
    assert_same(expected, next(read_trace(tmp_path / "t.parquet").passes()))


ARRAYS = {"sequences", "positions", "tokens", "kept", "experts", "pool", "distinct_experts"}


# --- metadata and columns ---


def test_metadata(make_record: Any, write_trace: Any, shape: ModelShape) -> None:
    records = [
        replace(make_record(0, PassKind.PREFILL, 3), kept=np.array([True, True, True])),
        replace(make_record(1, PassKind.AR, 2), kept=np.array([True, True])),
        make_record(2, PassKind.DRAFT, 2),
        replace(make_record(2, PassKind.VERIFY, 4), kept=np.array([True, False, True, False])),
    ]
    path = write_trace(records)
    trace = read_trace(path)
    assert trace.path == path
    assert trace.schema_version == SCHEMA_VERSION
    assert re.fullmatch(r"\d+\.\d+.*", trace.elmoe_version)
    assert trace.source == "a test"
    assert trace.shape == shape
    assert trace.settings == {"mode": "sd", "width": 2, "pool_fraction": 0.5}
    assert (trace.pass_count, trace.steps, trace.tokens) == (4, 3, 4)


def test_the_writer_counts_as_the_file_does(make_record: Any, tmp_path: Path, shape: ModelShape) -> None:
    with TraceWriter(tmp_path / "t.parquet", shape, {}, "") as writer:
        for step in range(3):
            writer.record(make_record(step, PassKind.VERIFY))
            writer.record(make_record(step, PassKind.DRAFT))
    trace = read_trace(tmp_path / "t.parquet")
    assert (writer.passes, writer.steps) == (6, 3)
    assert (trace.pass_count, trace.steps, trace.tokens) == (writer.passes, writer.steps, writer.tokens)


def test_the_docstring_describes_the_columns(write_trace: Any, make_record: Any) -> None:
    assert parquet.__doc__ is not None
    row = re.compile(r"^\| `(\w+)` \| `(?:int\d+|string|list<\w+>|binary|double)", flags=re.MULTILINE)
    documented = row.findall(parquet.__doc__)
    assert documented == list(COLUMNS)
    assert pq.read_schema(write_trace([make_record()])).names == documented


def test_other_tools_read_it_as_documented(write_trace: Any, make_record: Any, shape: ModelShape) -> None:
    record = make_record(3, PassKind.VERIFY, 4)
    row = pq.read_table(write_trace([record])).to_pylist()[0]
    layers, experts, per_token = len(shape.moe_layers), shape.experts, shape.experts_per_tok
    assert row["kind"] == "verify"
    assert (np.array(row["experts"]).reshape(-1, layers, per_token) == record.experts).all()
    bits = np.unpackbits(np.frombuffer(row["pool"], "u1"), bitorder="little")[: layers * experts]
    assert (bits.reshape(layers, experts) == record.pool).all()
    layer, expert = 1, 3
    i = layer * experts + expert
    assert bool(row["pool"][i // 8] >> (i % 8) & 1) == record.pool[layer, expert]


def test_a_stranger_may_add_columns_and_keys(write_trace: Any, make_record: Any) -> None:
    record = make_record()
    path = write_trace([record])
    table = pq.read_table(path)
    table = table.append_column("note", pa.array(["hello"]))
    values = json.loads(pq.read_metadata(path).metadata[b"elmoe"]) | {"host": "there"}
    rewrite(path, table, values)
    assert_same(record, next(read_trace(path).passes()))


def test_settings_that_json_cannot_hold_are_refused_before_the_run(tmp_path: Path, shape: ModelShape) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        TraceWriter(tmp_path / "t.parquet", shape, {"mode": object()}, "")


# --- memory and time ---


def test_memory_is_bounded(tmp_path: Path, shape: ModelShape, make_record: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 20_000)
    record = make_record(rows=8)
    with TraceWriter(tmp_path / "t.parquet", shape, {}, "") as writer:
        for _ in range(400):
            writer.record(record)
            held = sum(len(value) for value in writer._columns["experts"]) + sum(map(len, writer._columns["pool"]))
            assert held < 20_000
            assert len(writer._columns["step"]) < 20_000 / parquet.OVERHEAD_BYTES
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert metadata.num_row_groups > 10
    assert sum(1 for _ in read_trace(tmp_path / "t.parquet").passes()) == 400


def test_recording_is_cheap(tmp_path: Path, shape: ModelShape, make_record: Any) -> None:
    """About 20 microseconds per pass where this was written, compression included; ten times that fails."""
    records, count = [make_record(step, rows=16) for step in range(50)], 4000
    with TraceWriter(tmp_path / "t.parquet", shape, {}, "") as writer:
        started = time.process_time()
        for i in range(count):
            writer.record(records[i % 50])
        writer._flush()
        seconds = time.process_time() - started
    assert seconds / count < 200e-6


# --- writing that fails ---


def write(path: Path, shape: ModelShape, records: Iterable[PassRecord]) -> None:
    with TraceWriter(path, shape, {}, "") as writer:
        for record in records:
            writer.record(record)


def test_an_error_in_the_run_leaves_nothing(
    tmp_path: Path, shape: ModelShape, make_record: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "t.parquet", shape, (make_record(1 // (9 - step)) for step in range(20)))
    assert not list(tmp_path.iterdir())


def test_a_record_of_another_model(tmp_path: Path, shape: ModelShape, make_record: Any) -> None:
    record = replace(make_record(), experts=np.zeros((3, 4, 2), dtype=np.int16))
    with pytest.raises(TraceError, match=r"t\.parquet: a pass routed over \(4, 2\) .* was opened for \(2, 2\)$"):
        write(tmp_path / "t.parquet", shape, [record])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path, shape: ModelShape) -> None:
    with pytest.raises(StorageError, match=r"no/t\.parquet cannot be written: No such file or directory$"):
        write(tmp_path / "no" / "t.parquet", shape, [])


@pytest.fixture
def small_files() -> Iterator[None]:
    """The operating system refuses to let a file grow beyond 64 KiB, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_during_the_run(
    tmp_path: Path, shape: ModelShape, make_record: Any, small_files: None
) -> None:
    records = (make_record(step, rows=50) for step in range(100_000))
    with pytest.raises(StorageError, match=r"t\.parquet cannot be written: File too large$"):
        write(tmp_path / "t.parquet", shape, records)
    assert not list(tmp_path.iterdir())
    assert next(records).step < 50_000, "it stopped when the disk was full, not at the end"


def test_a_disk_that_is_full_at_the_end(
    tmp_path: Path, shape: ModelShape, make_record: Any, full_disk_at_sync: None
) -> None:
    with pytest.raises(StorageError, match=r"t\.parquet cannot be written: No space left on device$"):
        write(tmp_path / "t.parquet", shape, [make_record()])
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_the_destination_as_it_was(tmp_path: Path, write_trace: Any, make_record: Any) -> None:
    path = write_trace([make_record()])
    before = path.read_bytes()
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from elmoe.trace.parquet import TraceWriter, read_trace\n"
        "trace = read_trace(Path(sys.argv[1]))\n"
        "with TraceWriter(trace.path, trace.shape, {}, '') as writer:\n"
        "    for record in trace.passes():\n"
        "        writer.record(record)\n"
        "    writer._flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == before


# --- reading what is not a trace ---


def rewrite(path: Path, table: pa.Table, values: object) -> None:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    pq.write_table(table.replace_schema_metadata({b"elmoe": text}), path)


def message_of(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        list(read_trace(path).passes())
    text = str(caught.value)
    assert text.startswith(f"{path} ")
    assert "\n" not in text
    return text.removeprefix(f"{path} ")


def test_missing_empty_folder_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert message_of(path) == "does not exist; record a trace with `elmoe trace`"
    path.write_bytes(b"")
    assert message_of(path) == "is empty; record it again"
    path.write_bytes(b"GGUF" + bytes(100))
    assert message_of(path) == "is not a Parquet file; record a trace with `elmoe trace`"
    pq.write_table(pa.table({"a": [1]}), path)
    assert message_of(path) == "is a Parquet file but not a trace of elmoe (no 'elmoe' metadata)"
    assert message_of(tmp_path) == "is a folder; give a trace file"


def test_a_truncated_file(write_trace: Any, make_record: Any) -> None:
    path = write_trace([make_record()])
    whole = path.read_bytes()
    for length in (5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert re.match(r"is truncated or damaged \(.+\); record it again$", message_of(path))


def test_a_flipped_bit_in_the_data_is_noticed(write_trace: Any, make_record: Any) -> None:
    path = write_trace([make_record(step, rows=20) for step in range(50)])
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(list(COLUMNS).index("tokens"))
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    assert re.match(r"is truncated or damaged \(.+\); record it again$", message_of(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has trace schema version 2; this elmoe reads version 1: update elmoe"),
        ({"schema_version": 0}, "has trace schema version 0, which never existed; record it again"),
        ({"schema_version": "1"}, "has trace schema version '1', which never existed; record it again"),
        ({"shape": {"layers": 3}}, "has metadata without 'moe_layers'; record it again"),
        ({"shape": {"moe_layers": []}}, r"has broken metadata (ModelShape.__init__() missing 13 "),
        ({"shape": 3}, "has broken metadata ('int' object is not iterable); record it again"),
    ],
)
def test_broken_metadata(write_trace: Any, make_record: Any, change: dict[str, Any], message: str) -> None:
    path = write_trace([make_record()])
    values = json.loads(pq.read_metadata(path).metadata[b"elmoe"]) | change
    rewrite(path, pq.read_table(path), values)
    assert message_of(path).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "has metadata without 'schema_version'; record it again"),
        (b'{"schema_version": 1}', "has metadata without 'shape'; record it again"),
        (b"[]", "has broken metadata (list indices must be integers or slices, not str); record it again"),
        (b"{", "has broken metadata (Expecting property name"),
        (b"\xff", "has broken metadata ("),
    ],
)
def test_metadata_that_is_not_ours(write_trace: Any, make_record: Any, text: bytes, message: str) -> None:
    path = write_trace([make_record()])
    rewrite(path, pq.read_table(path), text)
    assert message_of(path).startswith(message)


def edited(path: Path, name: str, values: list[Any]) -> None:
    """Replace a column's values; its type is guessed anew."""
    table = pq.read_table(path)
    metadata = json.loads(pq.read_metadata(path).metadata[b"elmoe"])
    rewrite(path, table.set_column(table.schema.names.index(name), name, pa.array(values)), metadata)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kind", "train", "has passes of an unknown kind 'train'; update elmoe"),
        ("step", None, "has nulls in the column 'step'; record it again"),
        ("kept", [True, None, True], "has nulls in the column 'kept'; record it again"),
        ("tokens", [1, 2], "has 3 sequences in a pass of step 4, not 2; record it again"),
        ("kept", [True], "has 1 kept in a pass of step 4, not 3; record it again"),
        ("experts", [0] * 11, "has 11 experts in a pass of step 4, not 12; record it again"),
        ("experts", [0] * 11 + [5], "names expert 5 in a pass of step 4; the model has 5; record it again"),
        ("distinct_experts", [1], "has 1 distinct_experts in a pass of step 4, not 2; record it again"),
        ("experts", [-1] * 12, "is truncated or damaged (Integer value -1 not in range: 0 to 65535); record it again"),
        ("seconds", "soon", "is truncated or damaged ("),
        ("pool", b"1", "is truncated or damaged ("),
    ],
)
def test_broken_columns(write_trace: Any, make_record: Any, name: str, value: object, message: str) -> None:
    path = write_trace([make_record(4)])
    edited(path, name, [value])
    assert message_of(path).startswith(message)


def test_a_missing_column(write_trace: Any, make_record: Any) -> None:
    path = write_trace([make_record()])
    values = json.loads(pq.read_metadata(path).metadata[b"elmoe"])
    rewrite(path, pq.read_table(path).drop_columns(["kept", "pool"]), values)
    assert message_of(path) == "lacks the column 'kept'; record it again"
