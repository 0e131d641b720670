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
constexpr int kMxfp4NibbleBytes = 512; // of a tile; the scales of a row block follow its last tile
constexpr int kKeyBlock = 16;          // KV cells whose keys are interleaved: [block][head_dim][16]

constexpr int blocks_of(int outputs) { return (outputs + kTileRows - 1) / kTileRows; }
constexpr int tiles_of(int inputs) { return (inputs + kTileInputs - 1) / kTileInputs; }
constexpr size_t mxfp4_block_bytes(int tiles) {
  const size_t scales = static_cast<size_t>(tiles) * (kTileInputs / kGroup) * kTileRows;
  return static_cast<size_t>(tiles) * kMxfp4NibbleBytes + (scales + 63) / 64 * 64;
}

using Half = uint16_t; // the bits of an FP16 number

// Which bits of the weights a pass multiplies.
struct WeightBits {
  enum Kind : int {
    msb,    // the MSB plane alone, LSB-augmented: code = 16 * msb + 8
    merged, // both planes: the INT8 code
    masked, // both planes, then (byte & keep) | set with byte = code + 128: an LSB-augmented draft of any width
    mxfp4,  // the one plane of an MXFP4 matrix: code = twice the E2M1 value, group scale = 2^(byte - 128)
  };
  Kind kind = merged;
  uint8_t keep = 255, set = 0;
  // Codes are multiplied as unsigned bytes; the products of the excess are taken off again through this factor.
  int32_t excess() const { return kind == msb ? 120 : kind == mxfp4 ? 12 : 128; }
  static constexpr bool reads_lsb(Kind kind) { return kind == merged || kind == masked; }
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

// What the query heads that share keys attend to: `prefix` cells in order, then the cells of `path`; of these positions
// only those from `first` on.
struct Attended {
  const Half *keys;   // [cells / 16][key_dim][16]; null: a key is the whole row of its value
  const Half *values; // [cells][value_stride], of which value_dim are the value
  int key_dim, value_dim, value_stride;
  int first, prefix;
  const int32_t *path;
  int path_count;
  const float *sinks; // a score per head that has no value; null: none
};

struct Kernels {
  const char *name;
  int max_rows; // rows of one `matmul` call

  // y[m * y_stride + 16 * b + r] = sum over groups, in ascending order. `blocks` row blocks of `tiles` tiles each.
  // An MXFP4 plane is passed as `msb`.
  void (*matmul)(WeightBits bits, int rows, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles,
                 const PackedRows &x, float *y, size_t y_stride);
  // One row x [inputs] into place m of M packed rows; groups up to a whole tile are filled with zeros.
  void (*quantize)(const float *x, int inputs, int32_t excess, int m, int M, const PackedRows &packed);
  // y = x * weight / sqrt(mean(x^2) + eps) over `count` elements; zeros follow them up to n, a multiple of 16. y may be x.
  void (*rms_norm)(const float *x, const float *weight, float eps, int count, int n, float *y);
  // Dot products of x [n] with `count` rows of weight [count][n]; n is a multiple of 16.
  void (*dot_rows)(const float *x, const float *weight, int count, int n, float *y);
  // softmax in place over n scores; the array is padded to a multiple of 16, the padding is overwritten.
  void (*softmax)(float *scores, int n);
  // 1 / (1 + exp(-x)) in place; n is a multiple of 16.
  void (*sigmoid)(float *x, int n);
  // y[f] = silu(gate[f]) * up[f] for a row of gate_up: 16 gates, 16 ups, 16 gates, ...; n outputs, a multiple of 16.
  void (*gate)(const float *gate_up, int n, float *y);
  // The same with GPT-OSS's clamped SwiGLU, see `ClampedSwiglu` in models/program.py.
  void (*gate_clamped)(const float *gate_up, int n, float alpha, float limit, float *y);
  // y = sum over k, in order, of weight[k] * x[k][n]; then y += base.
  void (*combine)(const float *const *x, const float *weight, int count, int n, float *y);
  // y += x [n] * factor; n is a multiple of 16, as in the two that follow.
  void (*add)(const float *x, float factor, int n, float *y);
  void (*scale)(float factor, int n, float *x);
  // x in [-bound, bound].
  void (*clamp)(float bound, int n, float *x);
  // Rotary embedding of one head in place, pairs (i, i + d/2), then times `factor`; d is even.
  void (*rotate)(const float *cosine, const float *sine, float factor, int d, float *x);
  // x [n], already rotated and normed, into key cell `cell` (interleaved) or value cell; saturating FP16.
  void (*store_key)(const float *x, int head_dim, int cell, Half *keys);
  void (*store_value)(const float *x, int head_dim, Half *value);
  // Softmax attention of `heads` query heads [heads][key_dim] (scaled) that share keys and values ->
  // out [heads][value_dim]. Dimensions are multiples of 16. scratch: attend_scratch(heads, key_dim) floats.
  void (*attend)(const Attended &seen, int heads, const float *query, float *out, float *scratch);
  // Begins to fetch what `attend` will read first; not for latents, whose `keys` are null.
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
constexpr size_t attend_scratch(int heads, int key_dim) { // scores, top and total of each head; a tile of keys
  return static_cast<size_t>(heads) * (kAttendSpan + 2) + static_cast<size_t>(key_dim) * kKeyBlock / 2;
}

// The path for this machine, chosen at first use; ELMOE_ISA names one of those that it has.
const Kernels &kernels();
// Names of the paths that this machine can run, best first.
const char *const *usable_isas(int *count);
const Kernels *find_kernels(const char *name); // null if unknown or unusable here

} // namespace elmoe
