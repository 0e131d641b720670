// The matrix product of the AVX2 paths: 8 of a tile's 16 rows at a time. ELMOE_VNNI: 1 with AVX-VNNI, 0 without.
#include <utility>

#include "planes.h"

namespace elmoe::ELMOE_ISA_NAMESPACE {
namespace {

constexpr int kMaxRows = 4; // 16 registers: two sums a row, the weights of 4 inputs, temporaries

inline __m256i load_bytes(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }

inline __m256i broadcast(const int8_t *codes, int j) {
  return _mm256_set1_epi32(reinterpret_cast<const int32_t *>(codes)[j]);
}

// The scales of one group for 8 rows: FP16, or the E8M0 bytes of an MXFP4 plane, which move into the exponents of FP32.
template <WeightBits::Kind K> inline __m256 load_scales(const uint8_t *stored, int half) {
  if constexpr (K == WeightBits::mxfp4) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(stored + 8 * half));
    const __m128i exponents = _mm_subs_epu8(bytes, _mm_set1_epi8(1));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(exponents), 23));
  } else {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(stored + 16 * half)));
  }
}

// 8 rows x 4 inputs of one plane or both, as they are multiplied: high and low nibbles of the byte code + excess.
struct Nibbles {
  __m256i high, low;
};

// Inputs 4j.. (side 0) and 16 + 4j.. (side 1) of 8 rows.
template <WeightBits::Kind K>
inline void load_nibbles(const uint8_t *msb, const uint8_t *lsb, WeightBits bits, Nibbles (&side)[2]) {
  const __m256i fifteen = _mm256_set1_epi8(15);
  const __m256i m = load_bytes(msb);
  side[0].high = _mm256_and_si256(m, fifteen);
  side[1].high = _mm256_and_si256(_mm256_srli_epi16(m, 4), fifteen);
  side[0].low = side[1].low = _mm256_setzero_si256();
  if constexpr (K != WeightBits::msb) {
    const __m256i l = load_bytes(lsb);
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

// The same inputs of an MXFP4 plane as bytes code + excess.
inline void load_mxfp4(const uint8_t *plane, __m256i (&side)[2]) {
  const __m256i fifteen = _mm256_set1_epi8(15);
  const __m256i values = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(kMxfp4Bytes)));
  const __m256i m = load_bytes(plane);
  side[0] = _mm256_shuffle_epi8(values, _mm256_and_si256(m, fifteen));
  side[1] = _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(m, 4), fifteen));
}

#if ELMOE_VNNI
// sums[m] = offsets[m] + products of one group, 8 rows, with row m of the M packed ones that begin at `codes`.
template <WeightBits::Kind K, int M>
inline void group_sums(const uint8_t *msb, const uint8_t *lsb, WeightBits bits, const int8_t *codes,
                       const int32_t *offsets, __m256i (&sums)[M]) {
  for (int m = 0; m < M; ++m)
    sums[m] = _mm256_set1_epi32(offsets[m]);
  for (int j = 0; j < 4; ++j) {
    __m256i w[2];
    if constexpr (K == WeightBits::mxfp4) {
      load_mxfp4(msb + 64 * j, w);
    } else {
      Nibbles side[2];
      load_nibbles<K>(msb + 64 * j, lsb + 64 * j, bits, side);
      for (int s = 0; s < 2; ++s)
        w[s] = _mm256_or_si256(_mm256_slli_epi16(side[s].high, 4), side[s].low);
    }
    for (int s = 0; s < 2; ++s)
      for (int m = 0; m < M; ++m)
        sums[m] = _mm256_dpbusd_avx_epi32(sums[m], w[s], broadcast(codes + m * kGroup, j + 4 * s));
  }
}
#else
// sums[m] = offsets[m] + products of one group, 8 rows, with row m of the M packed ones that begin at `codes`.
// Products of a byte pair would saturate 16 bits, those of nibbles do not: 8 * 2 * 15 * 127 = 30480.
template <WeightBits::Kind K, int M>
inline void group_sums(const uint8_t *msb, const uint8_t *lsb, WeightBits bits, const int8_t *codes,
                       const int32_t *offsets, __m256i (&sums)[M]) {
  __m256i high[M], low[M];
  for (int m = 0; m < M; ++m)
    high[m] = low[m] = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j) {
    Nibbles side[2];
    load_nibbles<K>(msb + 64 * j, lsb + 64 * j, bits, side);
    for (int s = 0; s < 2; ++s)
      for (int m = 0; m < M; ++m) {
        const __m256i x = broadcast(codes + m * kGroup, j + 4 * s);
        high[m] = _mm256_add_epi16(high[m], _mm256_maddubs_epi16(side[s].high, x));
        if constexpr (K != WeightBits::msb)
          low[m] = _mm256_add_epi16(low[m], _mm256_maddubs_epi16(side[s].low, x));
      }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int m = 0; m < M; ++m) {
    const __m256i wide = _mm256_slli_epi32(_mm256_madd_epi16(high[m], ones), 4);
    sums[m] = _mm256_add_epi32(_mm256_set1_epi32(offsets[m]), wide);
    if constexpr (K != WeightBits::msb)
      sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(low[m], ones));
  }
}

// The same for an MXFP4 plane. A side alone fits 16 bits, 4 * 2 * 24 * 127 = 24384; both together would not.
template <WeightBits::Kind K, int M>
  requires(K == WeightBits::mxfp4)
inline void group_sums(const uint8_t *plane, const uint8_t *, WeightBits, const int8_t *codes, const int32_t *offsets,
                       __m256i (&sums)[M]) {
  __m256i products[2][M];
  for (int m = 0; m < M; ++m)
    products[0][m] = products[1][m] = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j) {
    __m256i side[2];
    load_mxfp4(plane + 64 * j, side);
    for (int s = 0; s < 2; ++s)
      for (int m = 0; m < M; ++m) {
        const __m256i x = broadcast(codes + m * kGroup, j + 4 * s);
        products[s][m] = _mm256_add_epi16(products[s][m], _mm256_maddubs_epi16(side[s], x));
      }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int m = 0; m < M; ++m) {
    const __m256i side0 = _mm256_madd_epi16(products[0][m], ones), side1 = _mm256_madd_epi16(products[1][m], ones);
    sums[m] = _mm256_add_epi32(_mm256_set1_epi32(offsets[m]), _mm256_add_epi32(side0, side1));
  }
}
#endif

template <WeightBits::Kind K, int M>
void matmul_rows(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles, const PackedRows &x,
                 float *y, size_t y_stride) {
  using In = Planes<K>;
  for (int b = 0; b < blocks; ++b) {
    for (int half = 0; half < 2; ++half) {
      __m256 total[M];
      for (int m = 0; m < M; ++m)
        total[m] = _mm256_setzero_ps();
      for (int g = 0; g < 2 * tiles; ++g) {
        const __m256 weight_scale = load_scales<K>(In::scales(msb, tiles, g / 2, g % 2), half);
        __m256i sums[M];
        const uint8_t *high = In::msb(msb, g / 2, g % 2) + 32 * half;
        const uint8_t *low = In::lsb(lsb, g / 2, g % 2) + (In::both ? 32 * half : 0);
        group_sums<K>(high, low, bits, x.codes + g * M * kGroup, x.offsets + g * M, sums);
        for (int m = 0; m < M; ++m) {
          const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(x.scales[g * M + m]));
          total[m] = _mm256_add_ps(total[m], _mm256_mul_ps(_mm256_cvtepi32_ps(sums[m]), scale));
        }
      }
      for (int m = 0; m < M; ++m)
        _mm256_storeu_ps(y + m * y_stride + kTileRows * b + 8 * half, total[m]);
    }
    msb += In::msb_bytes(tiles);
    lsb += In::lsb_bytes(tiles);
  }
}

#include "matmul_table.h"

} // namespace
} // namespace elmoe::ELMOE_ISA_NAMESPACE
