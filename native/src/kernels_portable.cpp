// Plain C++ for every other machine: x86-64 without AVX2, ARM64.
#define ELMOE_ISA_NAMESPACE portable
#include "lanes_portable.h"

#include "row_kernels.h"

#include <cstring>
#include <utility>

namespace elmoe::portable {
namespace {

constexpr int kMaxRows = 4;

// The byte code + excess of 16 rows x 32 inputs, transposed to [input][row].
inline void load_group(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int16_t (&w)[kGroup][kTileRows]) {
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < kTileRows; ++r)
      for (int i = 0; i < 4; ++i) {
        const uint8_t m = msb[64 * j + 4 * r + i];
        int low = (m & 15) << 4, high = m & 0xf0;
        if (bits.kind != WeightBits::msb) {
          const uint8_t l = lsb[64 * j + 4 * r + i];
          low |= l >> 4;
          high |= l & 15;
        }
        if (bits.kind == WeightBits::masked) {
          low = (low & bits.keep) | bits.set;
          high = (high & bits.keep) | bits.set;
        }
        w[4 * j + i][r] = static_cast<int16_t>(low);
        w[16 + 4 * j + i][r] = static_cast<int16_t>(high);
      }
}

template <WeightBits::Kind, int M>
void matmul_rows(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles, const PackedRows &x,
                 float *y, size_t y_stride) {
  for (int b = 0; b < blocks; ++b) {
    float total[M][kTileRows] = {};
    for (int g = 0; g < 2 * tiles; ++g) {
      const uint8_t *tile = msb + kMsbTileBytes * (g / 2);
      int16_t w[kGroup][kTileRows];
      load_group(bits, tile + 256 * (g % 2), lsb + kLsbTileBytes * (g / 2) + 256 * (g % 2), w);
      Half stored[kTileRows];
      std::memcpy(stored, tile + 512 + 32 * (g % 2), sizeof stored);
      const Lanes weight_scale = load_half(stored);
      for (int m = 0; m < M; ++m) {
        int32_t sums[kTileRows];
        for (int r = 0; r < kTileRows; ++r)
          sums[r] = x.offsets[g * M + m];
        const int8_t *codes = x.codes + static_cast<size_t>(g * M + m) * kGroup;
        for (int k = 0; k < kGroup; ++k)
          for (int r = 0; r < kTileRows; ++r)
            sums[r] += w[k][r] * codes[k];
        for (int r = 0; r < kTileRows; ++r)
          total[m][r] += static_cast<float>(sums[r]) * (weight_scale.v[r] * x.scales[g * M + m]);
      }
    }
    for (int m = 0; m < M; ++m)
      std::memcpy(y + m * y_stride + kTileRows * b, total[m], sizeof total[m]);
    msb += static_cast<size_t>(tiles) * kMsbTileBytes;
    lsb += bits.kind == WeightBits::msb ? 0 : static_cast<size_t>(tiles) * kLsbTileBytes;
  }
}

#include "matmul_table.h"

} // namespace

extern const Kernels table;
const Kernels table = {"portable", kMaxRows, matmul,   quantize,  rms_norm,    dot_rows, softmax,
                       gate,     combine,  add, rotate, store_key, store_value, attend, fetch, scan, decode_row, read};

} // namespace elmoe::portable
