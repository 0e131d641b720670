"""The byte layout of a stored weight matrix: tiles of 16 rows x 64 inputs, MSB and LSB planes apart.

One tile covers 16 output rows and two groups of 32 inputs:

* MSB tile, 576 bytes: 512 bytes of nibbles, then 64 bytes of FP16 scales (group 0 of the 16 rows, group 1).
* LSB tile, 512 bytes of nibbles.

The nibbles of one group are 4 vectors of 64 bytes. Byte ``4*r + i`` of vector ``j`` belongs to row ``r``;

* in the MSB plane its low nibble is input ``4*j + i`` and its high nibble is input ``16 + 4*j + i``, both as
  ``msb + 8`` in [0, 15] (so that an unsigned x signed dot-product instruction can take them as they are);
* in the LSB plane the nibbles change sides: high is input ``4*j + i``, low is ``16 + 4*j + i``. Merging a
  full byte then takes one bit-select per vector, and a nibble swap for half of them.

A draft streams the MSB tiles alone, contiguously, scales included: 4.5 bits per weight. Rows are padded to 16
and inputs to 64 with zeros (scale 0). Tiles are ordered by row block, then along the inputs, so a thread that
owns row blocks owns one contiguous range.

MXFP4 matrices have one plane. Per row block: the nibbles of all tiles, 512 bytes each in the order of the MSB plane, as
E2M1 codes; then one E8M0 byte per group of 32 and row, 16 bytes (one per row) for each group in order, padded with
zeros to a multiple of 64. 4.25 bits per weight and a little padding. Knows nothing about files or models.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from elmoe.quant.bitnested import (
    GROUP,
    STORED_DRAFT_BITS,
    Float16,
    Int8,
    UInt8,
    augmented,
    merge_slices,
    slice_codes,
)

TILE_ROWS = 16
TILE_GROUPS = 2
TILE_INPUTS = TILE_GROUPS * GROUP
NIBBLE_BYTES = TILE_ROWS * TILE_INPUTS // 2
SCALE_BYTES = TILE_ROWS * TILE_GROUPS * 2
MSB_TILE_BYTES = NIBBLE_BYTES + SCALE_BYTES
LSB_TILE_BYTES = NIBBLE_BYTES
CACHE_LINE = 64

_HIGH, _LOW = np.uint8(4), np.uint8(15)
"""Shift of the high nibble and mask of the low one, as uint8 so that bytes stay bytes."""


def tile_grid(rows: int, inputs: int) -> tuple[int, int]:
    """Tiles (row blocks, tiles along the inputs) of a [rows, inputs] matrix."""
    return -(-rows // TILE_ROWS), -(-inputs // TILE_INPUTS)


def plane_bytes(rows: int, inputs: int) -> tuple[int, int]:
    """Bytes of the (MSB, LSB) planes of a [rows, inputs] matrix, padding included."""
    blocks, along = tile_grid(rows, inputs)
    return blocks * along * MSB_TILE_BYTES, blocks * along * LSB_TILE_BYTES


def pack(codes: Int8, scales: Float16) -> tuple[UInt8, UInt8]:
    """Codes int8 [N, K] and scales float16 [N, K/32] -> (MSB plane, LSB plane), flat uint8."""
    rows, inputs = codes.shape
    blocks, along = tile_grid(rows, inputs)
    pad_rows, pad_inputs = blocks * TILE_ROWS - rows, along * TILE_INPUTS - inputs
    codes = np.pad(codes, ((0, pad_rows), (0, pad_inputs)))
    scales = np.pad(scales, ((0, pad_rows), (0, pad_inputs // GROUP)))
    msb, lsb = slice_codes(codes, STORED_DRAFT_BITS)

    msb_low, msb_high = _halves((msb + 8).astype(np.uint8), blocks, along)
    lsb_low, lsb_high = _halves(lsb, blocks, along)
    msb_tiles = np.empty((blocks, along, MSB_TILE_BYTES), dtype=np.uint8)
    msb_tiles[:, :, :NIBBLE_BYTES] = msb_low | msb_high << _HIGH
    by_group = scales.reshape(blocks, TILE_ROWS, along, TILE_GROUPS).transpose(0, 2, 3, 1)
    msb_tiles[:, :, NIBBLE_BYTES:] = np.ascontiguousarray(by_group).view(np.uint8).reshape(blocks, along, -1)
    return msb_tiles.reshape(-1), (lsb_high | lsb_low << _HIGH).reshape(-1)


def unpack(msb_plane: UInt8, lsb_plane: UInt8, rows: int, inputs: int) -> tuple[Int8, Float16]:
    """Inverse of `pack`: planes -> codes int8 [rows, inputs], scales float16 [rows, inputs/32]."""
    blocks, along = tile_grid(rows, inputs)
    nibbles, scales = _read_msb(msb_plane, rows, inputs)
    tiles = lsb_plane.reshape(blocks, along, LSB_TILE_BYTES)
    lsb = _join(tiles >> _HIGH, tiles & _LOW)[:rows, :inputs]
    return merge_slices((nibbles.astype(np.int8) - 8).astype(np.int8), lsb), scales


def unpack_draft(msb_plane: UInt8, rows: int, inputs: int) -> tuple[Int8, Float16]:
    """LSB-augmented draft codes int8 [rows, inputs] and scales [rows, inputs/32] from the MSB plane alone."""
    nibbles, scales = _read_msb(msb_plane, rows, inputs)
    return augmented((nibbles.astype(np.int8) - 8).astype(np.int8)), scales


def mxfp4_block_bytes(inputs: int) -> int:
    """Bytes of one block of 16 rows of an MXFP4 plane."""
    along = -(-inputs // TILE_INPUTS)
    scales = along * TILE_GROUPS * TILE_ROWS
    return along * NIBBLE_BYTES + -(-scales // CACHE_LINE) * CACHE_LINE


def mxfp4_plane_bytes(rows: int, inputs: int) -> int:
    """Bytes of the plane of a [rows, inputs] MXFP4 matrix, padding included."""
    return tile_grid(rows, inputs)[0] * mxfp4_block_bytes(inputs)


def pack_mxfp4(codes: UInt8, scales: UInt8) -> UInt8:
    """E2M1 codes [N, K] in [0, 15] and E8M0 scales [N, K/32] -> plane, flat uint8."""
    rows, inputs = codes.shape
    blocks, along = tile_grid(rows, inputs)
    pad_rows, pad_inputs = blocks * TILE_ROWS - rows, along * TILE_INPUTS - inputs
    low, high = _halves(np.pad(codes, ((0, pad_rows), (0, pad_inputs))), blocks, along)
    by_group = np.pad(scales, ((0, pad_rows), (0, pad_inputs // GROUP))).reshape(blocks, TILE_ROWS, -1)
    plane = np.zeros((blocks, mxfp4_block_bytes(inputs)), dtype=np.uint8)
    nibbles, groups = along * NIBBLE_BYTES, along * TILE_GROUPS
    plane[:, :nibbles] = (low | high << _HIGH).reshape(blocks, nibbles)
    plane[:, nibbles : nibbles + groups * TILE_ROWS] = by_group.transpose(0, 2, 1).reshape(blocks, -1)
    return plane.reshape(-1)


def unpack_mxfp4(plane: UInt8, rows: int, inputs: int) -> tuple[UInt8, UInt8]:
    """Inverse of `pack_mxfp4`: plane -> codes [rows, inputs] and scales [rows, inputs/32]."""
    blocks, along = tile_grid(rows, inputs)
    nibbles, groups = along * NIBBLE_BYTES, along * TILE_GROUPS
    by_block = plane.reshape(blocks, mxfp4_block_bytes(inputs))
    packed = by_block[:, :nibbles].reshape(blocks, along, NIBBLE_BYTES)
    codes = _join(packed & _LOW, packed >> _HIGH)[:rows, :inputs]
    scales = by_block[:, nibbles : nibbles + groups * TILE_ROWS].reshape(blocks, groups, TILE_ROWS)
    by_row = scales.transpose(0, 2, 1).reshape(blocks * TILE_ROWS, groups)
    return np.ascontiguousarray(codes), np.ascontiguousarray(by_row[:rows, : inputs // GROUP])


def _halves(nibbles: UInt8, blocks: int, along: int) -> tuple[UInt8, UInt8]:
    """[N, K] nibbles -> those of inputs 0..15 and of 16..31 of every group, in tile byte order."""
    split = nibbles.reshape(blocks, TILE_ROWS, along, TILE_GROUPS, 2, 4, 4)  # b r t g half j i
    ordered = split.transpose(4, 0, 2, 3, 5, 1, 6).reshape(2, blocks, along, NIBBLE_BYTES)
    return ordered[0], ordered[1]


def _join(first: UInt8, second: UInt8) -> UInt8:
    """Inverse of `_halves`."""
    blocks, along, _ = first.shape
    both = np.stack([first, second]).reshape(2, blocks, along, TILE_GROUPS, 4, TILE_ROWS, 4)
    return both.transpose(1, 5, 2, 3, 0, 4, 6).reshape(blocks * TILE_ROWS, along * TILE_INPUTS)


def _read_msb(plane: UInt8, rows: int, inputs: int) -> tuple[UInt8, Float16]:
    blocks, along = tile_grid(rows, inputs)
    tiles = plane.reshape(blocks, along, MSB_TILE_BYTES)
    packed = tiles[:, :, :NIBBLE_BYTES]
    nibbles = _join(packed & _LOW, packed >> _HIGH)[:rows, :inputs]
    raw = np.ascontiguousarray(tiles[:, :, NIBBLE_BYTES:]).view(np.float16)
    by_row = raw.reshape(blocks, along, TILE_GROUPS, TILE_ROWS).transpose(0, 3, 1, 2)
    scales = by_row.reshape(blocks * TILE_ROWS, along * TILE_GROUPS)[:rows, : inputs // GROUP]
    return nibbles, cast(Float16, np.ascontiguousarray(scales))
