// The arithmetic of one thread: what every instruction-set path implements, bit for bit the same.
//
// Orders of FP32 operations are fixed by the arguments of a call alone (never by the number of rows, the thread or the
// instruction set), so a row's result is bit-identical in any batch or tree. Knows nothing about models or threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace elmoe {

constexpr int kGroup = 32;         // inputs that share a scale
constexpr int kTileRows = 16;      // outputs of a tile
constexpr int kTileInputs = 64;    // inputs of a tile: two groups
constexpr int kMsbTileBytes = 576; // 512 bytes of nibbles, then 64 bytes of FP16 scales
constexpr int kLsbTileBytes = 512;
constexpr int kKeyBlock = 16; // KV cells whose keys are interleaved: [block][head_dim][16]

constexpr int blocks_of(int outputs) { return (outputs + kTileRows - 1) / kTileRows; }
constexpr int tiles_of(int inputs) { return (inputs + kTileInputs - 1) / kTileInputs; }

using Half = uint16_t; // the bits of an FP16 number

// Which bits of the weights a pass multiplies.
struct WeightBits {
  enum Kind : int {
    msb,    // the MSB plane alone, LSB-augmented: code = 16 * msb + 8
    merged, // both planes: the INT8 code
    masked, // both planes, then (byte & keep) | set with byte = code + 128: an LSB-augmented draft of any width
  };
  Kind kind = merged;
  uint8_t keep = 255, set = 0;
  // Codes are multiplied as unsigned bytes; the products of the excess are taken off again through this factor.
  int32_t excess() const { return kind == msb ? 120 : 128; }
};

// Quantised activations of M rows, group by group: codes [G][M][32], scales [G][M], offsets [G][M].
// offset = -excess * (sum of the group's codes).
struct PackedRows {
  int8_t *codes;
  float *scales;
  int32_t *offsets;
};

// The K best of some scores, best first, ties to the lower index; and sum(exp(score - score of the best)).
struct Best {
  float *scores;
  int32_t *indices;
  int count = 0, most = 0;
};

// What one query head group attends to: `prefix` cells in order, then the cells of `path`.
struct Attended {
  const Half *keys;   // [cells / 16][head_dim][16]
  const Half *values; // [cells][head_dim]
  int head_dim;
  int prefix;
  const int32_t *path;
  int path_count;
};

struct Kernels {
  const char *name;
  int max_rows; // rows of one `matmul` call

  // y[m * y_stride + 16 * b + r] = sum over groups, in ascending order. `blocks` row blocks of `tiles` tiles each.
  void (*matmul)(WeightBits bits, int rows, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles,
                 const PackedRows &x, float *y, size_t y_stride);
  // One row x [inputs] into place m of M packed rows; groups up to a whole tile are filled with zeros.
  void (*quantize)(const float *x, int inputs, int32_t excess, int m, int M, const PackedRows &packed);
  // y = x * weight / sqrt(mean(x^2) + eps); n is a multiple of 16; y may be x.
  void (*rms_norm)(const float *x, const float *weight, float eps, int n, float *y);
  // Dot products of x [n] with `count` rows of weight [count][n]; n is a multiple of 16.
  void (*dot_rows)(const float *x, const float *weight, int count, int n, float *y);
  // softmax in place over n scores; the array is padded to a multiple of 16, the padding is overwritten.
  void (*softmax)(float *scores, int n);
  // y[f] = silu(gate[f]) * up[f] for a row of gate_up: 16 gates, 16 ups, 16 gates, ...; n outputs, a multiple of 16.
  void (*gate)(const float *gate_up, int n, float *y);
  // y = sum over k, in order, of weight[k] * x[k][n]; then y += base.
  void (*combine)(const float *const *x, const float *weight, int count, int n, float *y);
  // y += x [n]; n is a multiple of 16.
  void (*add)(const float *x, int n, float *y);
  // Rotary embedding of one head in place, pairs (i, i + d/2), then times `factor`; d/2 is a multiple of 16.
  void (*rotate)(const float *cosine, const float *sine, float factor, int d, float *x);
  // x [n], already rotated and normed, into key cell `cell` (interleaved) or value cell; saturating FP16.
  void (*store_key)(const float *x, int head_dim, int cell, Half *keys);
  void (*store_value)(const float *x, int head_dim, Half *value);
  // Softmax attention of `heads` query heads [heads][head_dim] (scaled) that share keys and values -> out, same shape.
  // scratch: attend_scratch(heads, head_dim) floats.
  void (*attend)(const Attended &seen, int heads, const float *query, float *out, float *scratch);
  // Begins to fetch what `attend` will read of a prefix of this length.
  void (*fetch)(const Attended &seen);
  // Scan n scores beginning with index `first`: merge into `best`; *max and *sum get the largest and
  // sum(exp(score - max)). False if a score is not finite.
  bool (*scan)(const float *scores, int n, int32_t first, Best *best, float *max, float *sum);
  // INT8 code * scale of one row of a matrix -> y [inputs].
  void (*decode_row)(const uint8_t *msb, const uint8_t *lsb, int row, int inputs, float *y);
  // Reads `bytes` (a multiple of 64) and does next to nothing with them: a bandwidth probe.
  uint64_t (*read)(const uint8_t *data, size_t bytes);
};

constexpr int kAttendSpan = 128; // positions between rescalings of the online softmax
constexpr size_t attend_scratch(int heads, int head_dim) {
  return static_cast<size_t>(heads) * (kAttendSpan + kTileRows) + static_cast<size_t>(head_dim) * kKeyBlock;
}

// The path for this machine, chosen at first use; ELMOE_ISA names one of those that it has.
const Kernels &kernels();
// Names of the paths that this machine can run, best first.
const char *const *usable_isas(int *count);
const Kernels *find_kernels(const char *name); // null if unknown or unusable here

} // namespace elmoe
