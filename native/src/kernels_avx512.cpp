// AVX-512 with VNNI: 16 outputs x 4 inputs per instruction.
#define ELMOE_ISA_NAMESPACE avx512
#include "lanes_avx512.h"

#include "planes.h"
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

// The same distance on in an MXFP4 plane, whose scales lie far from their tiles. Inlined by force: GCC takes a function
// that only prefetches for one without effects, and drops the calls that it has not inlined early.
[[gnu::always_inline]] inline void prefetch_mxfp4(const uint8_t *block, int tile, int tiles) {
  constexpr int ahead = kAheadBytes / kMxfp4NibbleBytes;
  const bool same = tile + ahead < tiles;
  const uint8_t *from = same ? block : block + mxfp4_block_bytes(tiles);
  const int t = tile + ahead - (same ? 0 : tiles);
  for (int at = 0; at < kMxfp4NibbleBytes; at += 64)
    _mm_prefetch(reinterpret_cast<const char *>(from) + static_cast<size_t>(t) * kMxfp4NibbleBytes + at, _MM_HINT_T1);
  if (t % 2 == 0) // the scales of two tiles share a line
    _mm_prefetch(reinterpret_cast<const char *>(from) + static_cast<size_t>(tiles) * kMxfp4NibbleBytes + 32 * t,
                 _MM_HINT_T1);
}

// The scales of one group: FP16, or the E8M0 bytes of an MXFP4 plane, which move into the exponents of FP32.
template <WeightBits::Kind K> inline __m512 load_scales(const uint8_t *stored) {
  if constexpr (K == WeightBits::mxfp4) {
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i *>(stored));
    const __m128i exponents = _mm_subs_epu8(bytes, _mm_set1_epi8(1));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(exponents), 23));
  } else {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(stored)));
  }
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
    } else if constexpr (K == WeightBits::mxfp4) {
      const __m512i values = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i *>(kMxfp4Bytes)));
      const __m512i low = _mm512_set1_epi8(15);
      w[j] = _mm512_shuffle_epi8(values, _mm512_and_si512(m, low));
      w[j + 4] = _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(m, 4), low));
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
  using In = Planes<K>;
  for (int b = 0; b < blocks; ++b) {
    __m512 total[M];
    for (int m = 0; m < M; ++m)
      total[m] = _mm512_setzero_ps();
    const int8_t *codes = x.codes;
    const float *scales = x.scales;
    const int32_t *offsets = x.offsets;
    for (int t = 0; t < tiles; ++t) {
      if constexpr (In::is_mxfp4)
        prefetch_mxfp4(msb, t, tiles);
      else
        prefetch_ahead<kMsbTileBytes>(In::msb(msb, t, 0));
      if constexpr (In::both)
        prefetch_ahead<kLsbTileBytes>(In::lsb(lsb, t, 0));
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512 weight_scale = load_scales<K>(In::scales(msb, tiles, t, h));
        __m512i w[8];
        load_group<K>(In::msb(msb, t, h), In::lsb(lsb, t, h), keep, set, w);
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
    }
    msb += In::msb_bytes(tiles);
    lsb += In::lsb_bytes(tiles);
    for (int m = 0; m < M; ++m)
      _mm512_storeu_ps(y + m * y_stride + kTileRows * b, total[m]);
  }
}

#include "matmul_table.h"

} // namespace

extern const Kernels table;
const Kernels table = ELMOE_KERNELS("avx512");

} // namespace elmoe::avx512
