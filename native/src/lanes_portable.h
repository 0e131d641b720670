// 16 FP32 lanes as an array: plain C++ that compilers turn into whatever vectors the target has (SSE2, NEON).
#pragma once
#include <bit>
#include <cmath>

#include "kernels.h"

namespace elmoe::ELMOE_ISA_NAMESPACE {

struct Lanes {
  float v[16];
};

template <class F> inline Lanes lanewise(F f) {
  Lanes out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = f(i);
  return out;
}
inline Lanes load(const float *p) {
  return lanewise([&](int i) { return p[i]; });
}
inline void store(float *p, const Lanes &a) {
  for (int i = 0; i < 16; ++i)
    p[i] = a.v[i];
}
inline Lanes all(float x) {
  return lanewise([&](int) { return x; });
}
inline Lanes operator+(const Lanes &a, const Lanes &b) {
  return lanewise([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator-(const Lanes &a, const Lanes &b) {
  return lanewise([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes operator*(const Lanes &a, const Lanes &b) {
  return lanewise([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes operator/(const Lanes &a, const Lanes &b) {
  return lanewise([&](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes max(const Lanes &a, const Lanes &b) { // like x86: the second operand where one is NaN
  return lanewise([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes min(const Lanes &a, const Lanes &b) {
  return lanewise([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes abs(const Lanes &a) {
  return lanewise([&](int i) { return std::fabs(a.v[i]); });
}
inline Lanes round(const Lanes &a) {
  constexpr float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds |x| < 2^22 to even
  return lanewise([&](int i) { return (a.v[i] + magic) - magic; });
}

inline float from_half(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // 2^112 moves the exponent bias from 15 to 127; subnormals come out right because the product is exact
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}
// |x| <= 65504, round half to even.
inline Half to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude < 0x38800000u) { // below 2^-14: subnormal; adding 0.5 rounds at 2^-24
    const float moved = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<Half>(sign | (std::bit_cast<uint32_t>(moved) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<Half>(sign | ((rounded - 0x38000000u) >> 13));
}
inline Lanes load_half(const Half *p) {
  return lanewise([&](int i) { return from_half(p[i]); });
}
inline void store_half(Half *p, const Lanes &a) {
  for (int i = 0; i < 16; ++i)
    p[i] = to_half(a.v[i]);
}
// a * 2^n for integral lanes n in [-126, 127] and a normal result.
inline Lanes scale_by_power(const Lanes &a, const Lanes &n) {
  return lanewise([&](int i) {
    const auto power = static_cast<uint32_t>(static_cast<int32_t>(n.v[i])) << 23;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(a.v[i]) + power);
  });
}
// Lanes of a where x >= least, else 0.
inline Lanes zero_below(const Lanes &a, const Lanes &x, const Lanes &least) {
  return lanewise([&](int i) { return x.v[i] >= least.v[i] ? a.v[i] : 0.0f; });
}
inline bool any_above(const Lanes &a, const Lanes &b) {
  bool any = false;
  for (int i = 0; i < 16; ++i)
    any |= a.v[i] > b.v[i];
  return any;
}
inline bool all_finite(const Lanes &a) {
  bool finite = true;
  for (int i = 0; i < 16; ++i)
    finite &= (a.v[i] - a.v[i]) == 0.0f;
  return finite;
}
// Lanes are added, and compared, by folding halves: 8, 4, 2, 1.
inline float sum(Lanes a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i)
      a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float highest(Lanes a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i)
      a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}
// Rounds 16 lanes of magnitude <= 127 to int8, half to even; returns their sum.
inline int32_t store_codes(int8_t *p, const Lanes &a) {
  const Lanes rounded = round(a);
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) {
    p[i] = static_cast<int8_t>(rounded.v[i]);
    total += p[i];
  }
  return total;
}

} // namespace elmoe::ELMOE_ISA_NAMESPACE
