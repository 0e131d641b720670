// Tasks of a pass, and packed rows: what its phases share.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels.h"
#include "model.h"

namespace elmoe {

constexpr int kUnitBytes = 64 << 10; // weights of a task: long enough to stream, short enough to share out evenly
constexpr int kGateBlocks = 8;       // row blocks of gate_up that make one tile of the inputs of down
constexpr int kHeadChunk = 512;      // logits that are scanned together, whatever the number of threads

inline size_t padded(int n) { return padded_to(n, kTileRows); }

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Row blocks of a task over a matrix; a multiple of `multiple`.
inline int unit_blocks(const Matrix &matrix, int multiple) {
  const int wanted = static_cast<int>(kUnitBytes / (matrix.msb_block_bytes() + matrix.lsb_block_bytes()));
  return std::max(1, wanted / multiple) * multiple;
}

inline int units_of(const Matrix &matrix, int unit) { return (matrix.blocks() + unit - 1) / unit; }

inline void add_bias(const Matrix &matrix, int first_block, int blocks, int rows, float *y, size_t stride) {
  if (!matrix.bias)
    return;
  const int first = first_block * kTileRows, last = std::min(first + blocks * kTileRows, matrix.outputs);
  for (int m = 0; m < rows; ++m)
    for (int i = first; i < last; ++i)
      y[static_cast<size_t>(m) * stride + static_cast<size_t>(i - first)] += matrix.bias[i];
}

// The part of M packed rows that begins with a group.
inline PackedRows from_group(const PackedRows &rows, int group, int M) {
  const size_t at = static_cast<size_t>(group) * static_cast<size_t>(M);
  return {rows.codes + at * kGroup, rows.scales + at, rows.offsets + at};
}

// Row m of M packed rows -> row n of N.
inline void copy_row(const PackedRows &from, int m, int M, const PackedRows &to, int n, int N, int groups) {
  for (int g = 0; g < groups; ++g) {
    const size_t a = static_cast<size_t>(g) * static_cast<size_t>(M) + static_cast<size_t>(m);
    const size_t b = static_cast<size_t>(g) * static_cast<size_t>(N) + static_cast<size_t>(n);
    std::memcpy(to.codes + b * kGroup, from.codes + a * kGroup, kGroup);
    to.scales[b] = from.scales[a];
    to.offsets[b] = from.offsets[a];
  }
}

} // namespace elmoe
