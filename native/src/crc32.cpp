#include "crc32.h"

#include <array>
#include <cstring>

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

} // namespace

uint32_t crc32(const uint8_t *data, size_t bytes) {
  uint32_t crc = ~0u;
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
  return ~crc;
}

} // namespace elmoe
