// AVX-512 with VNNI: 16 outputs x 4 inputs per instruction.
#define ELMOE_ISA_NAMESPACE avx512
#include "lanes_avx512.h"

#include "row_kernels.h"

#include <utility>

namespace elmoe::avx512 {
namespace {

constexpr int kMaxRows = 16;

// One core cannot keep enough lines in flight by running ahead of itself, and the hardware's prefetchers stop at every
// page. Distance found by measurement (docs/log.md); where a plane ends it reaches into the next record.
constexpr int kAheadBytes = 6144;

template <int Bytes> inline void prefetch_ahead(const uint8_t *tile) {
  for (int at = 0; at < Bytes; at += 64)
    _mm_prefetch(reinterpret_cast<const char *>(tile) + kAheadBytes + at, _MM_HINT_T1);
}

// The 32 inputs of one group as eight vectors of unsigned bytes (code + excess).
template <WeightBits::Kind K>
inline void load_group(const uint8_t *msb, const uint8_t *lsb, __m512i keep, __m512i set, __m512i (&w)[8]) {
  const __m512i high = _mm512_set1_epi8(static_cast<char>(0xf0));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i m = _mm512_load_si512(msb + 64 * j);
    if constexpr (K == WeightBits::msb) {
      w[j] = _mm512_and_si512(_mm512_slli_epi16(m, 4), high);
      w[j + 4] = _mm512_and_si512(m, high);
    } else {
      const __m512i l = _mm512_load_si512(lsb + 64 * j);
      w[j + 4] = _mm512_ternarylogic_epi32(high, m, l, 0xCA); // high nibbles of m, low nibbles of l
      w[j] = _mm512_ternarylogic_epi32(high, _mm512_slli_epi16(m, 4), _mm512_srli_epi16(l, 4), 0xCA);
      if constexpr (K == WeightBits::masked) {
        w[j] = _mm512_ternarylogic_epi32(w[j], keep, set, 0xEA); // (w & keep) | set
        w[j + 4] = _mm512_ternarylogic_epi32(w[j + 4], keep, set, 0xEA);
      }
    }
  }
}

template <WeightBits::Kind K, int M>
void matmul_rows(WeightBits bits, const uint8_t *msb, const uint8_t *lsb, int blocks, int tiles, const PackedRows &x,
                 float *y, size_t y_stride) {
  const __m512i keep = _mm512_set1_epi8(static_cast<char>(bits.keep));
  const __m512i set = _mm512_set1_epi8(static_cast<char>(bits.set));
  for (int b = 0; b < blocks; ++b) {
    __m512 total[M];
    for (int m = 0; m < M; ++m)
      total[m] = _mm512_setzero_ps();
    const int8_t *codes = x.codes;
    const float *scales = x.scales;
    const int32_t *offsets = x.offsets;
    for (int t = 0; t < tiles; ++t) {
      prefetch_ahead<kMsbTileBytes>(msb);
      if constexpr (K != WeightBits::msb)
        prefetch_ahead<kLsbTileBytes>(lsb);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512 weight_scale =
            _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(msb + 512 + 32 * h)));
        __m512i w[8];
        load_group<K>(msb + 256 * h, lsb + 256 * h, keep, set, w);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const auto *four = reinterpret_cast<const int32_t *>(codes + kGroup * m);
          __m512i a = _mm512_set1_epi32(offsets[m]);
          if constexpr (M <= 2) { // two chains: with few rows the latency of the dot products would show
            __m512i c = _mm512_setzero_si512();
            for (int j = 0; j < 4; ++j) {
              a = _mm512_dpbusd_epi32(a, w[j], _mm512_set1_epi32(four[j]));
              c = _mm512_dpbusd_epi32(c, w[j + 4], _mm512_set1_epi32(four[j + 4]));
            }
            a = _mm512_add_epi32(a, c);
          } else {
            for (int j = 0; j < 8; ++j)
              a = _mm512_dpbusd_epi32(a, w[j], _mm512_set1_epi32(four[j]));
          }
          const __m512 scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(scales[m]));
          total[m] = _mm512_add_ps(total[m], _mm512_mul_ps(_mm512_cvtepi32_ps(a), scale));
        }
        codes += M * kGroup;
        scales += M;
        offsets += M;
      }
      msb += kMsbTileBytes;
      lsb += K == WeightBits::msb ? 0 : kLsbTileBytes;
    }
    for (int m = 0; m < M; ++m)
      _mm512_storeu_ps(y + m * y_stride + kTileRows * b, total[m]);
  }
}

#include "matmul_table.h"

} // namespace

extern const Kernels table;
const Kernels table = {"avx512", kMaxRows, matmul,   quantize,  rms_norm,    dot_rows, softmax,
                       gate,     combine,  add, rotate, store_key, store_value, attend, fetch, scan, decode_row, read};

} // namespace elmoe::avx512
