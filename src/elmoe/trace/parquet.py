"""Traces on disk: one Parquet file, one row per forward pass, written while the engine runs and read as a stream.

Knows nothing about how passes come about (`engine/`) or what is made of them (`sim/`, `report/`).

Columns, for R rows of the pass, L MoE layers, E experts per layer and A experts per token (no value is null):

| column | Parquet type | meaning |
|---|---|---|
| `step` | `int64` | engine step, from 0; a draft and the verify pass after it share a step |
| `kind` | `string (dict.)` | ``prefill``, ``ar``, ``draft`` or ``verify`` |
| `depth` | `int32` | tree level of a draft pass, from 0; 0 otherwise |
| `sequences` | `list<int32>` | [R] request number of each row |
| `positions` | `list<int32>` | [R] position of each row in its sequence |
| `tokens` | `list<int32>` | [R] input token of each row |
| `kept` | `list<bool>` | [R] the row became part of its sequence |
| `experts` | `list<uint16>` | [R, L, A] row-major: the model's own routing, best first, before any restriction |
| `pool` | `binary(fixed)` | [L, E] bitmap, ceil(L * E / 8) bytes: experts whose MSB planes were in the fast tier |
| `distinct_experts` | `list<int32>` | [L] experts read by the pass |
| `fast_bytes` | `int64` | weight bytes read from the fast tier |
| `slow_bytes` | `int64` | weight bytes read from the slow tier |
| `kv_bytes` | `int64` | bytes of keys and values read |
| `seconds` | `double` | wall time of the pass |

Expert ``e`` of the ``l``-th MoE layer is bit ``i % 8`` (least significant first) of byte ``i // 8`` of ``pool``, with
``i = l * E + e``. (A list of members would be eight times as large at half the experts.) ``PassRecord`` in
`trace/schema.py` is one such row, with the same names.

The key ``elmoe`` of the file's metadata holds one JSON object: ``schema_version``, ``elmoe_version``, ``source`` (what
was run), ``shape`` (`ModelShape`), ``settings`` (speculation, pool, batch), ``steps`` (engine steps) and ``tokens``
(rows of AR and verify passes that were kept: one per decoded token, those that a stop cut off included).
Readers ignore columns and keys that they do not know; a change of what is described here raises ``schema_version``.

With other tools:

    frame = pandas.read_parquet("T.parquet")            # frame.experts[0].reshape(-1, L, A)
    pool = numpy.unpackbits(numpy.frombuffer(frame["pool"][0], "u1"), bitorder="little")[: L * E].reshape(L, E)

    duckdb> select kind, count(*), sum(len(tokens)), sum(slow_bytes) from 'T.parquet' group by kind;
    -- all layers together:
    duckdb> select expert, count(*) from (select unnest(experts) as expert from 'T.parquet') group by expert;
    duckdb> select decode(value) from parquet_kv_metadata('T.parquet') where decode(key) = 'elmoe';
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from elmoe.errors import ElmoeError, StorageError, TraceError
from elmoe.models.shape import ModelShape
from elmoe.trace.atomic import atomic_file, storage_errors
from elmoe.trace.schema import SCHEMA_VERSION, PassKind, PassRecord

METADATA_KEY = b"elmoe"
ROW_GROUP_BYTES = 4 << 20
"""Passes are held back until they take this many bytes, then written as one row group: so much memory at most."""
OVERHEAD_BYTES = 512
"""Counted for each pass beside the arrays."""


def _list(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False))


COLUMNS: dict[str, pa.DataType] = {
    "step": pa.int64(),
    "kind": pa.dictionary(pa.int8(), pa.string()),
    "depth": pa.int32(),
    "sequences": _list(pa.int32()),
    "positions": _list(pa.int32()),
    "tokens": _list(pa.int32()),
    "kept": _list(pa.bool_()),
    "experts": _list(pa.uint16()),
    "pool": pa.binary(),  # of the length that the model's shape gives it
    "distinct_experts": _list(pa.int32()),
    "fast_bytes": pa.int64(),
    "slow_bytes": pa.int64(),
    "kv_bytes": pa.int64(),
    "seconds": pa.float64(),
}
ELEMENTS: dict[str, np.dtype[Any]] = {
    name: np.dtype(column.value_type.to_pandas_dtype()) for name, column in COLUMNS.items() if pa.types.is_list(column)
}
NUMBERS = [name for name in COLUMNS if name not in ELEMENTS and name not in ("kind", "pool")]


class TraceWriter:
    """Records passes into `path`: the `Recorder` of an engine, used as a context manager.

    The file appears when the block ends well; if it raises, nothing is left. Raises StorageError when the disk is
    full or the place cannot be written.
    """

    def __init__(self, path: Path, shape: ModelShape, settings: Mapping[str, object], source: str) -> None:
        """settings: the resolved configuration, plain values for JSON. source: what is run, in words."""
        self.path, self.shape = path, shape
        self.passes = self.steps = self.tokens = 0
        self._metadata = {
            "schema_version": SCHEMA_VERSION,
            "elmoe_version": importlib.metadata.version("elmoe"),
            "source": source,
            "shape": shape.as_dict(),
            "settings": dict(settings),
        }
        json.dumps(self._metadata)  # what cannot be stored is refused before the run, not after it
        self._schema = _schema(shape)
        self._routing = (len(shape.moe_layers), shape.experts_per_tok)
        self._last_step: int | None = None
        self._stack = ExitStack()
        self._clear()

    def __enter__(self) -> TraceWriter:
        file = self._stack.enter_context(atomic_file(self.path))
        try:
            # Dictionaries pack expert numbers already; zstd on top saves 7 % of the file and costs six times the time.
            self._writer = pq.ParquetWriter(file, self._schema, compression="snappy", write_page_checksum=True)
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def record(self, record: PassRecord) -> None:
        """Keep one pass; its arrays may be reused afterwards."""
        if record.experts.shape[1:] != self._routing:
            raise TraceError(
                f"{self.path}: a pass routed over {record.experts.shape[1:]} MoE layers and experts per token; "
                f"the trace was opened for {self._routing}"
            )
        columns = self._columns
        for name in NUMBERS:
            columns[name].append(getattr(record, name))
        columns["kind"].append(record.kind.value)
        columns["pool"].append(np.packbits(record.pool, bitorder="little").tobytes())
        held = len(columns["pool"][-1]) + OVERHEAD_BYTES
        for name, dtype in ELEMENTS.items():
            data = np.asarray(getattr(record, name), dtype=dtype).tobytes()
            columns[name].append(data)
            held += len(data)
        self._held += held
        self._count(record)
        if self._held >= ROW_GROUP_BYTES:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._finish()

    def _count(self, record: PassRecord) -> None:
        self.passes += 1
        self.steps += record.step != self._last_step
        self._last_step = record.step
        if record.kind in (PassKind.AR, PassKind.VERIFY):
            self.tokens += int(np.count_nonzero(record.kept))

    def _clear(self) -> None:
        self._columns: dict[str, list[Any]] = defaultdict(list)
        self._held = 0

    def _flush(self) -> None:
        """Write what is held as one row group."""
        if not self._held:
            return
        columns = [_column(field, self._columns[field.name]) for field in self._schema]
        self._clear()
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        with storage_errors(self.path):
            self._writer.write_batch(batch, row_group_size=batch.num_rows)

    def _finish(self) -> None:
        try:
            self._flush()
            metadata = self._metadata | {"steps": self.steps, "tokens": self.tokens}
            with storage_errors(self.path):
                self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata)})
                self._writer.close()
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Let go of the Parquet writer; its file is about to be removed."""
        with suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False


@dataclass(frozen=True)
class Trace:
    """A trace file: what was run, and its passes."""

    path: Path
    schema_version: int
    elmoe_version: str
    source: str
    shape: ModelShape
    settings: dict[str, Any]
    pass_count: int
    steps: int
    tokens: int
    """Kept rows of AR and verify passes."""

    def passes(self) -> Iterator[PassRecord]:
        """All passes in order, read row group by row group; arrays may be read-only views.

        Raises TraceError where the file turns out to be broken.
        """
        with _reading(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                yield from _records(file.read_row_group(group, columns=list(COLUMNS)), self.shape)


def read_trace(path: Path) -> Trace:
    """Open a trace; only its metadata is read. Raises TraceError if it is missing, broken, foreign or newer."""
    with _reading(path), pq.ParquetFile(path) as file:
        found = file.metadata.metadata or {}
        if METADATA_KEY not in found:
            raise TraceError("is a Parquet file but not a trace of elmoe (no 'elmoe' metadata)")
        values = _metadata(found[METADATA_KEY])
        missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise TraceError(f"lacks the column {missing[0]!r}; record it again")
        return Trace(path=path, pass_count=file.metadata.num_rows, **values)


def _metadata(text: bytes) -> dict[str, Any]:
    """The fields of `Trace` in the file's metadata."""
    try:
        values = json.loads(text)
        version = values["schema_version"]
        if type(version) is int and version > SCHEMA_VERSION:
            raise TraceError(
                f"has trace schema version {version}; this elmoe reads version {SCHEMA_VERSION}: update elmoe"
            )
        if type(version) is not int or version < 1:
            raise TraceError(f"has trace schema version {version!r}, which never existed; record it again")
        shape = dict(values["shape"])
        shape["moe_layers"] = tuple(shape["moe_layers"])
        shape["windowed_layers"] = tuple(shape.get("windowed_layers", ()))
        values["shape"] = ModelShape(**shape)
        return {
            name: values[name]
            for name in ("schema_version", "elmoe_version", "source", "shape", "settings", "steps", "tokens")
        }
    except TraceError:
        raise
    except KeyError as error:
        raise TraceError(f"has metadata without {error.args[0]!r}; record it again") from None
    except (ValueError, TypeError, ElmoeError) as error:
        raise TraceError(f"has broken metadata ({error}); record it again") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which trace it is in every error, in one line."""
    try:
        yield
    except TraceError as error:
        raise TraceError(f"{path} {error}") from None
    except FileNotFoundError:
        raise TraceError(f"{path} does not exist; record a trace with `elmoe trace`") from None
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ElmoeError:
    """What to say about a file that pyarrow gave up on."""
    if path.is_dir():
        return TraceError(f"{path} is a folder; give a trace file")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as refused:
        return StorageError(f"{path} cannot be read: {refused.strerror}")
    if not head:
        return TraceError(f"{path} is empty; record it again")
    if head != b"PAR1":
        return TraceError(f"{path} is not a Parquet file; record a trace with `elmoe trace`")
    reason = " ".join(str(error).split())
    return TraceError(f"{path} is truncated or damaged ({reason}); record it again")


def _schema(shape: ModelShape) -> pa.Schema:
    columns = COLUMNS | {"pool": pa.binary(_pool_bytes(shape))}
    return pa.schema([pa.field(name, column, nullable=False) for name, column in columns.items()])


def _pool_bytes(shape: ModelShape) -> int:
    return -(-len(shape.moe_layers) * shape.experts // 8)


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    """One column of a row group from what `record` kept."""
    if field.name not in ELEMENTS:
        return pa.array(values, field.type)
    dtype = ELEMENTS[field.name]
    offsets = np.cumsum([0, *(len(value) // dtype.itemsize for value in values)], dtype=np.int32)
    elements = pa.array(np.frombuffer(b"".join(values), dtype=dtype))
    return pa.ListArray.from_arrays(pa.array(offsets), elements, type=field.type)


def _records(table: pa.Table, shape: ModelShape) -> Iterator[PassRecord]:
    """The passes of one row group."""
    schema = _schema(shape)
    columns = {name: _values(table.column(name), schema.field(name)) for name in COLUMNS}
    for i in range(table.num_rows):
        yield _record({name: column[i] for name, column in columns.items()}, shape)


def _record(values: dict[str, Any], shape: ModelShape) -> PassRecord:
    """One pass; what another tool may have got wrong is checked."""
    rows, layers = len(values["tokens"]), len(shape.moe_layers)
    routing = (rows, layers, shape.experts_per_tok)
    sizes = dict.fromkeys(("sequences", "positions", "kept"), rows)
    sizes |= {"experts": math.prod(routing), "distinct_experts": layers}
    for name, size in sizes.items():
        if len(values[name]) != size:
            raise TraceError(
                f"has {len(values[name])} {name} in a pass of step {values['step']}, not {size}; record it again"
            )
    largest = values["experts"].max(initial=0)
    if largest >= shape.experts:
        raise TraceError(
            f"names expert {largest} in a pass of step {values['step']}; the model has {shape.experts}; record it again"
        )
    packed = np.frombuffer(values["pool"], np.uint8)
    pool = np.unpackbits(packed, count=layers * shape.experts, bitorder="little").view(np.bool_)
    return PassRecord(
        **values
        | {
            "kind": _kind(values["kind"]),
            "pool": pool.reshape(layers, shape.experts),
            "experts": values["experts"].view(np.int16).reshape(routing),
        }
    )


def _values(column: pa.ChunkedArray, field: pa.Field) -> list[Any]:
    """One value per pass: a number, a string, bytes or an array."""
    array = column.combine_chunks().cast(field.type)
    if array.null_count or (field.name in ELEMENTS and array.values.null_count):
        raise TraceError(f"has nulls in the column {field.name!r}; record it again")
    if field.name not in ELEMENTS:
        return array.to_pylist()
    elements = array.values.to_numpy(zero_copy_only=False)
    offsets = array.offsets.to_numpy()
    return [elements[first:last] for first, last in pairwise(offsets)]


def _kind(name: str) -> PassKind:
    try:
        return PassKind(name)
    except ValueError:
        raise TraceError(f"has passes of an unknown kind {name!r}; update elmoe") from None
