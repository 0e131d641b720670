"""The tile layout: exact round trips, zero padding, and every byte where the module docstring puts it."""

from __future__ import annotations

import numpy as np
import pytest

from elmoe.quant import tiles
from elmoe.quant.bitnested import Float16, Int8, UInt8, augmented, slice_codes


def random_matrix(rows: int, inputs: int, seed: int = 0) -> tuple[Int8, Float16]:
    """Any codes, -128 included, and any finite scales."""
    rng = np.random.default_rng([seed, rows, inputs])
    codes = rng.integers(-128, 128, size=(rows, inputs)).astype(np.int8)
    scales = rng.standard_normal((rows, inputs // 32)).astype(np.float16)
    return codes, scales


@pytest.mark.parametrize("rows", range(1, 41))
def test_round_trip(rows: int) -> None:
    for inputs in range(32, 321, 32):
        codes, scales = random_matrix(rows, inputs)
        msb, lsb = tiles.pack(codes, scales)
        assert (msb.size, lsb.size) == tiles.plane_bytes(rows, inputs)
        assert (msb.dtype, lsb.dtype, msb.ndim, lsb.ndim) == (np.uint8, np.uint8, 1, 1)
        back_codes, back_scales = tiles.unpack(msb, lsb, rows, inputs)
        assert (back_codes.dtype, back_scales.dtype) == (np.int8, np.float16)
        np.testing.assert_array_equal(back_codes, codes)
        np.testing.assert_array_equal(back_scales.view(np.uint16), scales.view(np.uint16))


def planes_by_hand(codes: Int8, scales: Float16) -> tuple[bytes, bytes]:
    """The module docstring, byte by byte."""
    rows, inputs = codes.shape

    def code_at(row: int, column: int) -> int:
        return int(codes[row, column]) if row < rows and column < inputs else 0

    def scale_at(row: int, group: int) -> bytes:
        value = scales[row, group] if row < rows and group < inputs // 32 else np.float16(0)
        return int(value.view(np.uint16)).to_bytes(2, "little")

    msb_plane, lsb_plane = bytearray(), bytearray()
    for first_row in range(0, rows, 16):
        for first_input in range(0, inputs, 64):
            for group in range(2):
                for j in range(4):
                    for byte in range(64):
                        row, i = first_row + byte // 4, byte % 4
                        column = first_input + 32 * group + 4 * j + i
                        near, far = code_at(row, column), code_at(row, column + 16)
                        msb_plane.append(((near >> 4) + 8) | ((far >> 4) + 8) << 4)
                        lsb_plane.append((far & 15) | (near & 15) << 4)
            for group in range(2):
                for row in range(first_row, first_row + 16):
                    msb_plane += scale_at(row, first_input // 32 + group)
    return bytes(msb_plane), bytes(lsb_plane)


@pytest.mark.parametrize(("rows", "inputs"), [(16, 64), (1, 32), (19, 96), (35, 160), (32, 128)])
def test_every_byte_is_where_the_docstring_puts_it(rows: int, inputs: int) -> None:
    codes, scales = random_matrix(rows, inputs, seed=1)
    msb, lsb = tiles.pack(codes, scales)
    expected_msb, expected_lsb = planes_by_hand(codes, scales)
    assert msb.tobytes() == expected_msb
    assert lsb.tobytes() == expected_lsb


@pytest.mark.parametrize(("rows", "inputs"), [(1, 32), (17, 96), (15, 64), (16, 32)])
def test_padding_is_zero_with_scale_zero(rows: int, inputs: int) -> None:
    codes = np.full((rows, inputs), -77, dtype=np.int8)
    msb, lsb = tiles.pack(codes, np.ones((rows, inputs // 32), dtype=np.float16))
    blocks, along = tiles.tile_grid(rows, inputs)
    padded_rows, padded_inputs = blocks * tiles.TILE_ROWS, along * tiles.TILE_INPUTS
    all_codes, all_scales = tiles.unpack(msb, lsb, padded_rows, padded_inputs)
    inside = np.zeros((padded_rows, padded_inputs), dtype=bool)
    inside[:rows, :inputs] = True
    np.testing.assert_array_equal(all_codes, np.where(inside, -77, 0))
    np.testing.assert_array_equal(all_scales, inside[:, ::32])


def test_scale_blocks_are_aligned() -> None:
    """Each tile's scales start on a cache line of 64 bytes, as tiles and vectors do."""
    assert (tiles.MSB_TILE_BYTES, tiles.LSB_TILE_BYTES, tiles.NIBBLE_BYTES) == (576, 512, 512)
    assert tiles.NIBBLE_BYTES % 64 == tiles.MSB_TILE_BYTES % 64 == tiles.LSB_TILE_BYTES % 64 == 0
    codes, scales = random_matrix(32, 128)
    msb, _ = tiles.pack(codes, scales)
    for tile in range(4):
        start = tile * 576 + 512
        found = np.frombuffer(msb[start : start + 64].tobytes(), dtype="<f2").reshape(2, 16)
        row, group = tile // 2 * 16, tile % 2 * 2
        np.testing.assert_array_equal(found, scales[row : row + 16, group : group + 2].T)


@pytest.mark.parametrize(("rows", "inputs"), [(1, 32), (16, 64), (37, 224)])
def test_the_draft_reads_the_msb_plane_only(rows: int, inputs: int) -> None:
    """Other low bits, same MSB plane, same draft: the augmented slices."""
    codes, scales = random_matrix(rows, inputs)
    low = np.random.default_rng(5).integers(0, 16, size=codes.shape, dtype=np.int8)
    msb, _ = tiles.pack(codes, scales)
    other_msb, _ = tiles.pack((codes & -16) | low, scales)
    assert msb.tobytes() == other_msb.tobytes()
    draft, draft_scales = tiles.unpack_draft(msb, rows, inputs)
    np.testing.assert_array_equal(draft, augmented(slice_codes(codes)[0]))
    np.testing.assert_array_equal(draft_scales, scales)


def test_a_draft_reads_four_and_a_half_bits_per_weight() -> None:
    msb, lsb = tiles.plane_bytes(2048, 768)
    assert msb * 8 == 4.5 * 2048 * 768
    assert lsb * 8 == 4 * 2048 * 768


def test_strided_codes_pack_like_copies() -> None:
    codes, scales = random_matrix(20, 192)
    msb, lsb = tiles.pack(codes[::2, 32:160], scales[::2, 1:5])
    expected_msb, expected_lsb = tiles.pack(codes[::2, 32:160].copy(), scales[::2, 1:5].copy())
    assert (msb.tobytes(), lsb.tobytes()) == (expected_msb.tobytes(), expected_lsb.tobytes())


# --- MXFP4: one plane ---


def random_mxfp4(rows: int, inputs: int) -> tuple[UInt8, UInt8]:
    """Any codes and any scale bytes."""
    rng = np.random.default_rng([rows, inputs])
    codes = rng.integers(0, 16, size=(rows, inputs), dtype=np.uint8)
    return codes, rng.integers(0, 256, size=(rows, inputs // 32), dtype=np.uint8)


@pytest.mark.parametrize("rows", range(1, 41))
def test_mxfp4_round_trip(rows: int) -> None:
    for inputs in range(32, 321, 32):
        codes, scales = random_mxfp4(rows, inputs)
        plane = tiles.pack_mxfp4(codes, scales)
        assert (plane.size, plane.dtype, plane.ndim) == (tiles.mxfp4_plane_bytes(rows, inputs), np.uint8, 1)
        back_codes, back_scales = tiles.unpack_mxfp4(plane, rows, inputs)
        assert (back_codes.dtype, back_scales.dtype) == (np.uint8, np.uint8)
        np.testing.assert_array_equal(back_codes, codes)
        np.testing.assert_array_equal(back_scales, scales)


def mxfp4_plane_by_hand(codes: UInt8, scales: UInt8) -> bytes:
    """The module docstring, byte by byte."""
    rows, inputs = codes.shape
    along = -(-inputs // 64)

    def code_at(row: int, column: int) -> int:
        return int(codes[row, column]) if row < rows and column < inputs else 0

    plane = bytearray()
    for first_row in range(0, rows, 16):
        for group in range(2 * along):
            for j in range(4):
                for byte in range(64):
                    row, column = first_row + byte // 4, 32 * group + 4 * j + byte % 4
                    plane.append(code_at(row, column) | code_at(row, column + 16) << 4)
        for group in range(2 * along):
            for row in range(first_row, first_row + 16):
                plane.append(int(scales[row, group]) if row < rows and group < inputs // 32 else 0)
        plane += bytes(-len(plane) % 64)
    return bytes(plane)


@pytest.mark.parametrize(("rows", "inputs"), [(16, 64), (1, 32), (19, 96), (35, 160), (32, 128), (16, 320)])
def test_every_byte_of_mxfp4_is_where_the_docstring_puts_it(rows: int, inputs: int) -> None:
    codes, scales = random_mxfp4(rows, inputs)
    assert tiles.pack_mxfp4(codes, scales).tobytes() == mxfp4_plane_by_hand(codes, scales)


@pytest.mark.parametrize(("rows", "inputs"), [(1, 32), (17, 96), (15, 64), (16, 32)])
def test_mxfp4_padding_is_zero_with_scale_zero(rows: int, inputs: int) -> None:
    plane = tiles.pack_mxfp4(np.full((rows, inputs), 13, np.uint8), np.full((rows, inputs // 32), 120, np.uint8))
    blocks, along = tiles.tile_grid(rows, inputs)
    all_codes, all_scales = tiles.unpack_mxfp4(plane, blocks * tiles.TILE_ROWS, along * tiles.TILE_INPUTS)
    inside = np.zeros(all_codes.shape, dtype=bool)
    inside[:rows, :inputs] = True
    np.testing.assert_array_equal(all_codes, np.where(inside, 13, 0))
    np.testing.assert_array_equal(all_scales, np.where(inside[:, ::32], 120, 0))


def test_mxfp4_takes_four_and_a_quarter_bits_per_weight_in_whole_cache_lines() -> None:
    assert tiles.mxfp4_plane_bytes(5760, 2816) * 8 == 4.25 * 5760 * 2816
    assert tiles.mxfp4_block_bytes(2880) == 45 * 512 + 90 * 16 + 32, "the experts of GPT-OSS: half a line of padding"
    for inputs in range(32, 1025, 32):
        assert tiles.mxfp4_block_bytes(inputs) % tiles.CACHE_LINE == 0


def test_mxfp4_blocks_are_those_of_the_rows_alone() -> None:
    """A thread that owns row blocks owns one contiguous range."""
    codes, scales = random_mxfp4(48, 160)
    plane = tiles.pack_mxfp4(codes, scales).reshape(3, -1)
    assert plane.shape[1] == tiles.mxfp4_block_bytes(160)
    for block in range(3):
        rows = slice(16 * block, 16 * block + 16)
        assert plane[block].tobytes() == tiles.pack_mxfp4(codes[rows], scales[rows]).tobytes()


def test_strided_mxfp4_codes_pack_like_copies() -> None:
    codes, scales = random_mxfp4(20, 192)
    plane = tiles.pack_mxfp4(codes[::2, 32:160], scales[::2, 1:5])
    assert plane.tobytes() == tiles.pack_mxfp4(codes[::2, 32:160].copy(), scales[::2, 1:5].copy()).tobytes()
