// CRC-32 as in zlib: the checksum of every piece of a checkpoint.
#pragma once
#include <cstddef>
#include <cstdint>

namespace elmoe {

uint32_t crc32(const uint8_t *data, size_t bytes);

} // namespace elmoe
