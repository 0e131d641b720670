#include "crc32.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace elmoe {
namespace {

// tables[k][b]: the CRC of byte b followed by k zero bytes ("slicing by 16").
constexpr auto tables = [] {
  std::array<std::array<uint32_t, 256>, 16> t{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0u);
    t[0][b] = crc;
  }
  for (size_t k = 1; k < 16; ++k)
    for (size_t b = 0; b < 256; ++b)
      t[k][b] = (t[k - 1][b] >> 8) ^ t[0][t[k - 1][b] & 255];
  return t;
}();

// Goes on from the register `crc`, as the loops below keep it: not inverted.
uint32_t by_tables(uint32_t crc, const uint8_t *data, size_t bytes) {
  for (; bytes >= 16; data += 16, bytes -= 16) {
    uint32_t next = 0;
    for (size_t i = 0; i < 16; ++i) {
      const uint8_t with_crc = i < 4 ? static_cast<uint8_t>(crc >> (8 * i)) : uint8_t{0};
      next ^= tables[15 - i][data[i] ^ with_crc];
    }
    crc = next;
  }
  for (; bytes; ++data, --bytes)
    crc = (crc >> 8) ^ tables[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__x86_64__)

// Folds 64 bytes at a time by carry-less multiplication, then leaves the last 16 to the tables: what has been folded is
// congruent to all that went before. Source: V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ Instruction", Intel 2009; the constants are x^n mod P, bit-reflected.
__attribute__((target("pclmul,sse4.1"))) inline __m128i fold(__m128i x, __m128i by, __m128i next) {
  return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11)), next);
}

__attribute__((target("pclmul,sse4.1"))) uint32_t by_folding(uint32_t crc, const uint8_t *data, size_t bytes) {
  auto load = [](const uint8_t *p) __attribute__((target("pclmul,sse4.1"))) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  };
  const __m128i by64 = _mm_set_epi64x(0x00000001c6e41596, 0x0000000154442bd4);
  const __m128i by16 = _mm_set_epi64x(0x00000000ccaa009e, 0x00000001751997d0);
  __m128i x[4];
  for (int i = 0; i < 4; ++i)
    x[i] = load(data + 16 * i);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
  for (data += 64, bytes -= 64; bytes >= 64; data += 64, bytes -= 64)
    for (int i = 0; i < 4; ++i)
      x[i] = fold(x[i], by64, load(data + 16 * i));
  for (int i = 1; i < 4; ++i)
    x[0] = fold(x[0], by16, x[i]);
  uint8_t folded[16];
  std::memcpy(folded, &x[0], 16);
  return by_tables(by_tables(0, folded, 16), data, bytes);
}

const bool can_fold = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");

#endif

} // namespace

uint32_t crc32(const uint8_t *data, size_t bytes) {
#if defined(__x86_64__)
  if (bytes >= 64 && can_fold)
    return ~by_folding(~0u, data, bytes);
#endif
  return ~by_tables(~0u, data, bytes);
}

} // namespace elmoe
