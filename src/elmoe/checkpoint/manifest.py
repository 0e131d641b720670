r"""The `.elmoe` folder format, version 1, and its ``manifest.json``.

An `.elmoe` folder is immutable and holds:

``manifest.json``
    An object with these fields:

    * ``format``: ``"elmoe"``; ``version``: 1; ``elmoe_version``: the release that wrote the folder;
    * ``source``: ``name`` (the source folder's base name, never a path), ``files`` (``{name: {"bytes",
      "sha256"}}``), ``sha256`` (of the lines ``"<sha256>  <name>\n"``, names ascending);
    * ``msb_bits``: 4, the width at which the codes are cut (`quant/bitnested.py`);
    * ``files``: bytes of every other file of the folder; ``copied``: SHA-256 of the texts among them;
    * ``linears``: per dense matrix of `Program.linears` ``outputs``, ``inputs``, ``offset`` and ``msb_bytes``
      of its MSB plane in ``dense.bin``, ``lsb_bytes`` of the LSB plane that follows, ``crc32: [msb, lsb]``, and
      ``storage`` where it is another than INT8 (`models.program.Storage`);
    * ``vectors``: per FP32 tensor of `Program.vectors` ``shape``, ``offset``, ``bytes``, ``crc32``;
    * ``experts``: ``layers`` (MoE blocks), ``experts``, ``msb_record_bytes``, ``lsb_record_bytes``,
      ``msb_stride``, ``lsb_stride``, ``crc32_msb`` and ``crc32_lsb``, each [layers][experts], and ``storage``
      as for ``linears``;
    * ``sha256``: of the manifest without this field as canonical JSON (sorted keys, no blanks, ASCII).

    No time stamps and no machine names: the same source gives the same bytes.
``dense.bin``, ``experts_msb.bin``, ``experts_lsb.bin``
    Planes in the tile layout of `quant/tiles.py` and little-endian FP32 vectors, placed by `layout.py`. A
    record of an expert is the tiles of ``gate_up`` (rows interleaved, see `models.program.GatedMlp`), then
    those of ``down``. MXFP4 has one plane, the MSB one; its LSB planes and records have 0 bytes. CRC-32 is zlib's,
    over a piece without its padding.
``config.json`` and, where the source has them, ``generation_config.json``, the tokenizer and chat template
    Byte-for-byte copies of a Hugging Face folder's; made from the metadata of a GGUF file.

Other files in the folder (a model card) are ignored. This module knows the manifest's fields, not the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmoe.checkpoint.json_file import read_json_object
from elmoe.checkpoint.layout import ExpertGrid, Extent, Layout
from elmoe.errors import CheckpointError
from elmoe.models.program import Linear, Program, Storage
from elmoe.quant.bitnested import STORED_DRAFT_BITS

MANIFEST_FILE = "manifest.json"
FORMAT = "elmoe"
VERSION = 1
COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
AGAIN = "remove the folder and convert the model again"

Crcs = dict[Extent, int]
"""CRC-32 of every piece."""


def canonical_sha256(values: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its ``sha256`` field."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe(program: Program, layout: Layout, crcs: Crcs | None = None) -> dict[str, Any]:
    """The manifest fields that the program determines: ``msb_bits``, ``linears``, ``vectors``, ``experts``.

    Without `crcs` the CRC fields are left out.
    """
    grid = layout.experts
    linears: dict[str, dict[str, Any]] = {}
    for linear in program.linears:
        msb, lsb = layout.linears[linear.name]
        linears[linear.name] = {
            "outputs": linear.outputs,
            "inputs": linear.inputs,
            "offset": msb.offset,
            "msb_bytes": msb.size_bytes,
            "lsb_bytes": lsb.size_bytes,
            **_storage(linear),
            **({"crc32": [crcs[msb], crcs[lsb]]} if crcs else {}),
        }
    vectors: dict[str, dict[str, Any]] = {}
    for name, dims in program.vectors.items():
        extent = layout.vectors[name]
        vectors[name] = {
            "shape": list(dims),
            "offset": extent.offset,
            "bytes": extent.size_bytes,
            **({"crc32": crcs[extent]} if crcs else {}),
        }
    experts: dict[str, Any] = {
        "layers": grid.layers,
        "experts": grid.experts,
        "msb_record_bytes": grid.msb_record_bytes,
        "lsb_record_bytes": grid.lsb_record_bytes,
        "msb_stride": grid.msb_stride,
        "lsb_stride": grid.lsb_stride,
        **_storage(program.moe_blocks[0].expert.gate_up),
        **(_expert_crcs(grid, crcs) if crcs else {}),
    }
    return {"msb_bits": STORED_DRAFT_BITS, "linears": linears, "vectors": vectors, "experts": experts}


def _storage(linear: Linear) -> dict[str, str]:
    return {} if linear.storage is Storage.INT8 else {"storage": linear.storage.value}


def _expert_crcs(grid: ExpertGrid, crcs: Crcs) -> dict[str, list[list[int]]]:
    return {
        "crc32_msb": [[crcs[grid.extent("msb", m, e)] for e in range(grid.experts)] for m in range(grid.layers)],
        "crc32_lsb": [[crcs[grid.extent("lsb", m, e)] for e in range(grid.experts)] for m in range(grid.layers)],
    }


def to_bytes(values: Mapping[str, Any]) -> bytes:
    """The text of ``manifest.json``, self-hash added; the same values give the same bytes."""
    full = {**values, "sha256": canonical_sha256(values)}
    sections = [f"{json.dumps(key)}: {_section_text(full[key])}" for key in sorted(full)]
    return ("{\n" + ",\n".join(sections) + "\n}\n").encode()


def _section_text(value: object) -> str:
    """One line per entry of an object, so that a person can read a manifest of thousands of CRCs."""
    if not isinstance(value, dict):
        return json.dumps(value)
    entries = (f" {json.dumps(key)}: {json.dumps(value[key], sort_keys=True)}" for key in sorted(value))
    return "{\n" + ",\n".join(entries) + "\n}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an `.elmoe` folder, its format, version and self-hash checked.

    Raises CheckpointError when it is missing, damaged, of another format or of a newer version.
    """
    path = folder / MANIFEST_FILE
    values = read_json_object(path, AGAIN)
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format = {values.get('format')!r}; this is not an .elmoe folder")
    version = values.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{path}: format version {version} is newer than this elmoe reads ({VERSION}); upgrade elmoe"
        )
    if version != VERSION:
        raise CheckpointError(f"{path}: format version {version!r} is not readable; {AGAIN}")
    if values.get("sha256") != canonical_sha256(values):
        raise CheckpointError(f"{path} is damaged (its SHA-256 does not match); {AGAIN}")
    return values


def check_fit(values: Mapping[str, Any], program: Program, layout: Layout, folder: Path) -> Crcs:
    """Hold the manifest against what the program says, and return the CRC-32 of every piece.

    Only CRCs are taken from the manifest, offsets and sizes come from `layout`: an edited manifest cannot make
    anybody read out of bounds. Raises CheckpointError naming the first disagreement.
    """
    expected = describe(program, layout)
    for section in ("linears", "vectors"):
        found = values.get(section)
        if not isinstance(found, dict) or sorted(found) != sorted(expected[section]):
            raise _misfit(folder, f"{section} are not those of config.json")
        for name, entry in expected[section].items():
            _compare(found[name], entry, f"{section}.{name}", folder)
    _compare(values.get("experts"), expected["experts"], "experts", folder)
    if values.get("msb_bits") != expected["msb_bits"]:
        raise _misfit(folder, f"msb_bits = {values.get('msb_bits')!r}, not {expected['msb_bits']}")
    files = values.get("files")
    if not isinstance(files, dict) or any(files.get(name) != size for name, size in layout.file_bytes.items()):
        raise _misfit(folder, "files are not those of config.json")
    return _read_crcs(values, layout, folder)


def _compare(found: object, entry: dict[str, Any], title: str, folder: Path) -> None:
    if not isinstance(found, dict):
        raise _misfit(folder, f"{title} is not an object")
    for field, value in entry.items():
        if found.get(field) != value:
            raise _misfit(folder, f"{title}.{field} = {found.get(field)!r}, not {value!r} as config.json says")


def _read_crcs(values: Mapping[str, Any], layout: Layout, folder: Path) -> Crcs:
    crcs: Crcs = {}
    try:
        for name, planes in layout.linears.items():
            crcs.update(zip(planes, values["linears"][name]["crc32"], strict=True))
        for name, extent in layout.vectors.items():
            crcs[extent] = values["vectors"][name]["crc32"]
        for layer, expert in layout.experts:
            crcs[layout.experts.extent("msb", layer, expert)] = values["experts"]["crc32_msb"][layer][expert]
            crcs[layout.experts.extent("lsb", layer, expert)] = values["experts"]["crc32_lsb"][layer][expert]
    except (KeyError, IndexError, TypeError, ValueError):
        raise _misfit(folder, "crc32 entries are missing") from None
    return crcs


def _misfit(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder / MANIFEST_FILE}: {what}; {AGAIN}")
