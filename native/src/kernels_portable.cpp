// Plain C++ for every other machine: x86-64 without AVX2, ARM64.
#define ELMOE_ISA_NAMESPACE portable
#include "lanes_portable.h"

#include "planes.h"
#include "row_kernels.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace elmoe::portable {
namespace {

constexpr int kMaxRows = 4;

// The byte code + excess of 16 rows x 32 inputs, transposed to [input][row].
template <WeightBits::Kind K>
inline void load_group(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int16_t (&w)[kGroup][kTileRows]) {
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < kTileRows; ++r)
      for (int i = 0; i < 4; ++i) {
        const uint8_t m = msb[64 * j + 4 * r + i];
        int low = (m & 15) << 4, high = m & 0xf0;
        if constexpr (K == WeightBits::mxfp4) {
          low = kMxfp4Bytes[m & 15];
          high = kMxfp4Bytes[m >> 4];
        }
        if constexpr (Planes<K>::both) {
          const uint8_t l = lsb[64 * j + 4 * r + i];
          low |= l >> 4;
          high |= l & 15;
        }
        if constexpr (K == WeightBits::masked) {
          low = (low & bits.keep) | bits.set;
          high = (high & bits.keep) | bits.set;
        }
        w[4 * j + i][r] = static_cast<int16_t>(low);
        w[16 + 4 * j + i][r] = static_cast<int16_t>(high);
      }
}

// The scales of one group: FP16, or the E8M0 bytes of an MXFP4 plane, which move into the exponents of FP32.
template <WeightBits::Kind K> inline Lanes load_scales(const uint8_t *stored) {
  if constexpr (K == WeightBits::mxfp4) {
    return lanewise([&](int r) {
      const auto exponent = static_cast<uint32_t>(std::max(stored[r] - 1, 0));
      return std::bit_cast<float>(exponent << 23);
    });
  } else {
    Half halves[kTileRows];
    std::memcpy(halves, stored, sizeof halves);
    return load_half(halves);
  }
}

template <WeightBits::Kind K, int M>
void matmul_rows(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles, const PackedRows &x,
                 float *y, size_t y_stride) {
  using In = Planes<K>;
  for (int b = 0; b < blocks; ++b) {
    float total[M][kTileRows] = {};
    for (int g = 0; g < 2 * tiles; ++g) {
      int16_t w[kGroup][kTileRows];
      load_group<K>(bits, In::msb(msb, g / 2, g % 2), In::lsb(lsb, g / 2, g % 2), w);
      const Lanes weight_scale = load_scales<K>(In::scales(msb, tiles, g / 2, g % 2));
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
    msb += In::msb_bytes(tiles);
    lsb += In::lsb_bytes(tiles);
  }
}

#include "matmul_table.h"

} // namespace

extern const Kernels table;
const Kernels table = ELMOE_KERNELS("portable");

} // namespace elmoe::portable
