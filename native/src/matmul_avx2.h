// The matrix product of the AVX2 paths: 8 of a tile's 16 rows at a time. ELMOE_VNNI: 1 with AVX-VNNI, 0 without.
#include <utility>

namespace elmoe::ELMOE_ISA_NAMESPACE {
namespace {

constexpr int kMaxRows = 4; // 16 registers: two sums a row, the weights of 4 inputs, temporaries

inline __m256i broadcast(const int8_t *codes, int j) {
  return _mm256_set1_epi32(reinterpret_cast<const int32_t *>(codes)[j]);
}

// 8 rows x 4 inputs of one plane or both, as they are multiplied: high and low nibbles of the byte code + excess.
struct Nibbles {
  __m256i high, low;
};

// Inputs 4j.. (side 0) and 16 + 4j.. (side 1) of 8 rows.
template <WeightBits::Kind K>
inline void load_nibbles(const uint8_t *msb, const uint8_t *lsb, WeightBits bits, Nibbles (&side)[2]) {
  const __m256i fifteen = _mm256_set1_epi8(15);
  const __m256i m = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(msb));
  side[0].high = _mm256_and_si256(m, fifteen);
  side[1].high = _mm256_and_si256(_mm256_srli_epi16(m, 4), fifteen);
  side[0].low = side[1].low = _mm256_setzero_si256();
  if constexpr (K != WeightBits::msb) {
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(lsb));
    side[0].low = _mm256_and_si256(_mm256_srli_epi16(l, 4), fifteen);
    side[1].low = _mm256_and_si256(l, fifteen);
  }
  if constexpr (K == WeightBits::masked) {
    const __m256i keep_high = _mm256_set1_epi8(static_cast<char>(bits.keep >> 4));
    const __m256i keep_low = _mm256_set1_epi8(static_cast<char>(bits.keep & 15));
    const __m256i set_high = _mm256_set1_epi8(static_cast<char>(bits.set >> 4));
    const __m256i set_low = _mm256_set1_epi8(static_cast<char>(bits.set & 15));
    for (auto &s : side) {
      s.high = _mm256_or_si256(_mm256_and_si256(s.high, keep_high), set_high);
      s.low = _mm256_or_si256(_mm256_and_si256(s.low, keep_low), set_low);
    }
  }
}

template <WeightBits::Kind K, int M>
void matmul_rows(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles, const PackedRows &x,
                 float *y, size_t y_stride) {
  for (int b = 0; b < blocks; ++b) {
    for (int half = 0; half < 2; ++half) {
      __m256 total[M];
      for (int m = 0; m < M; ++m)
        total[m] = _mm256_setzero_ps();
      for (int g = 0; g < 2 * tiles; ++g) {
        const uint8_t *mt = msb + static_cast<size_t>(g / 2) * kMsbTileBytes;
        const uint8_t *lt = lsb + static_cast<size_t>(g / 2) * kLsbTileBytes + 256 * (g % 2) + 32 * half;
        const auto *stored = reinterpret_cast<const __m128i *>(mt + 512 + 32 * (g % 2) + 16 * half);
        const __m256 weight_scale = _mm256_cvtph_ps(_mm_loadu_si128(stored));
        mt += 256 * (g % 2) + 32 * half;
        __m256i sums[M];
#if ELMOE_VNNI
        for (int m = 0; m < M; ++m)
          sums[m] = _mm256_set1_epi32(x.offsets[g * M + m]);
        for (int j = 0; j < 4; ++j) {
          Nibbles side[2];
          load_nibbles<K>(mt + 64 * j, lt + 64 * j, bits, side);
          for (int s = 0; s < 2; ++s) {
            const __m256i w = _mm256_or_si256(_mm256_slli_epi16(side[s].high, 4), side[s].low);
            for (int m = 0; m < M; ++m)
              sums[m] = _mm256_dpbusd_avx_epi32(sums[m], w, broadcast(x.codes + (g * M + m) * kGroup, j + 4 * s));
          }
        }
#else
        // Products of a byte pair would saturate 16 bits, those of nibbles do not: 8 * 2 * 15 * 127 = 30480.
        __m256i high[M], low[M];
        for (int m = 0; m < M; ++m)
          high[m] = low[m] = _mm256_setzero_si256();
        for (int j = 0; j < 4; ++j) {
          Nibbles side[2];
          load_nibbles<K>(mt + 64 * j, lt + 64 * j, bits, side);
          for (int s = 0; s < 2; ++s)
            for (int m = 0; m < M; ++m) {
              const __m256i codes = broadcast(x.codes + (g * M + m) * kGroup, j + 4 * s);
              high[m] = _mm256_add_epi16(high[m], _mm256_maddubs_epi16(side[s].high, codes));
              if constexpr (K != WeightBits::msb)
                low[m] = _mm256_add_epi16(low[m], _mm256_maddubs_epi16(side[s].low, codes));
            }
        }
        const __m256i ones = _mm256_set1_epi16(1);
        for (int m = 0; m < M; ++m) {
          const __m256i wide = _mm256_slli_epi32(_mm256_madd_epi16(high[m], ones), 4);
          sums[m] = _mm256_add_epi32(_mm256_set1_epi32(x.offsets[g * M + m]), wide);
          if constexpr (K != WeightBits::msb)
            sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(low[m], ones));
        }
#endif
        for (int m = 0; m < M; ++m) {
          const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(x.scales[g * M + m]));
          total[m] = _mm256_add_ps(total[m], _mm256_mul_ps(_mm256_cvtepi32_ps(sums[m]), scale));
        }
      }
      for (int m = 0; m < M; ++m)
        _mm256_storeu_ps(y + m * y_stride + kTileRows * b + 8 * half, total[m]);
    }
    msb += static_cast<size_t>(tiles) * kMsbTileBytes;
    lsb += K == WeightBits::msb ? 0 : static_cast<size_t>(tiles) * kLsbTileBytes;
  }
}

#include "matmul_table.h"

} // namespace
} // namespace elmoe::ELMOE_ISA_NAMESPACE
