// Where the groups of a row block lie in its planes (src/elmoe/quant/tiles.py), for the matrix products.
#pragma once
#include "kernels.h"

namespace elmoe {

template <WeightBits::Kind K> struct Planes {
  static constexpr bool is_mxfp4 = K == WeightBits::mxfp4, both = WeightBits::reads_lsb(K);

  static size_t msb_bytes(int tiles) {
    return is_mxfp4 ? mxfp4_block_bytes(tiles) : static_cast<size_t>(tiles) * kMsbTileBytes;
  }
  static size_t lsb_bytes(int tiles) { return both ? static_cast<size_t>(tiles) * kLsbTileBytes : 0; }

  // 256 bytes of nibbles of group h (0, 1) of a tile.
  static const uint8_t *msb(const uint8_t *block, int tile, int h) {
    return block + static_cast<size_t>(tile) * (is_mxfp4 ? kMxfp4NibbleBytes : kMsbTileBytes) + 256 * h;
  }
  static const uint8_t *lsb(const uint8_t *block, int tile, int h) {
    return both ? block + static_cast<size_t>(tile) * kLsbTileBytes + 256 * h : block;
  }
  // Its scales of the 16 rows: FP16, or E8M0 bytes in an MXFP4 plane.
  static const uint8_t *scales(const uint8_t *block, int tiles, int tile, int h) {
    return is_mxfp4 ? msb(block, tiles, 0) + static_cast<size_t>(tile) * 2 * kTileRows + kTileRows * h
                    : msb(block, tile, 0) + kMsbTileBytes - 64 + 32 * h;
  }
};

// What MXFP4 codes are multiplied as: twice their E2M1 values, + excess.
alignas(16) constexpr uint8_t kMxfp4Bytes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

} // namespace elmoe
