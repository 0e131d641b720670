"""Rows of results as Parquet, CSV or JSON; nested values become columns with dotted names in the first two."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elmoe.errors import ConfigError
from elmoe.trace.atomic import atomic_file

FORMATS = (".parquet", ".csv", ".json")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Write the file whole or not at all. config: what the rows follow from (in JSON, and in Parquet's metadata)."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: cannot write {path.suffix or 'a file without ending'}; use {', '.join(FORMATS)}")
    flat = [flatten(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    with atomic_file(path) as file:
        if path.suffix == ".json":
            file.write(json.dumps({"rows": list(rows), "config": config}, indent=1, allow_nan=False).encode())
        elif path.suffix == ".csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(flat)
            file.write(text.getvalue().encode())
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.table({name: [row.get(name) for row in flat] for name in names})
            pq.write_table(table.replace_schema_metadata({"elmoe": json.dumps(config)}), file)


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    made: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            made |= flatten(value, f"{prefix}{name}.")
        else:
            made[prefix + name] = value
    return made
