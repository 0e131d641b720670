// 16 FP32 lanes in one AVX-512 register.
#pragma once
#include <immintrin.h>

#include "kernels.h"

namespace elmoe::ELMOE_ISA_NAMESPACE {

struct Lanes {
  __m512 v;
};
inline Lanes load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline void store(float *p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes all(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes abs(Lanes a) { return {_mm512_abs_ps(a.v)}; }
inline Lanes round(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Lanes load_half(const Half *p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
}
inline void store_half(Half *p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// a * 2^n for integral lanes n in [-126, 127] and a normal result.
inline Lanes scale_by_power(Lanes a, Lanes n) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), shifted))};
}
// Lanes of a where x >= least, else 0.
inline Lanes zero_below(Lanes a, Lanes x, Lanes least) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_GE_OQ), a.v)};
}
inline bool any_above(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
inline bool all_finite(Lanes a) { // x - x is 0 or NaN
  const __m512 zero = _mm512_sub_ps(a.v, a.v);
  return _mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q) == 0;
}
// Lanes are added, and compared, by folding halves: 8, 4, 2, 1.
inline float sum(Lanes a) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
inline float highest(Lanes a) { return _mm512_reduce_max_ps(a.v); }
// Rounds 16 lanes of magnitude <= 127 to int8, half to even; returns their sum.
inline int32_t store_codes(int8_t *p, Lanes a) {
  const __m512i codes = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(codes));
  return _mm512_reduce_add_epi32(codes);
}

} // namespace elmoe::ELMOE_ISA_NAMESPACE
