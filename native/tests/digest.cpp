// Prints a digest of what every kernel of the chosen path computes on fixed pseudo-random inputs. Two machines, or two
// paths, agree when the lines are the same: tests/backend/cpu/test_arm64.py runs it under emulation.
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels.h"

using namespace elmoe;

namespace {

uint64_t state = 88172645463325252ULL, digest = 1469598103934665603ULL;

uint64_t random_bits() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

float random_float(float scale) { return static_cast<float>(static_cast<int>(random_bits() % 20001) - 10000) * scale; }

std::vector<float> random_floats(size_t count, float scale) {
  std::vector<float> x(count);
  for (float &v : x)
    v = random_float(scale);
  return x;
}

template <class T> void take(const T *data, size_t count) { // FNV-1a
  const auto *bytes = reinterpret_cast<const uint8_t *>(data);
  for (size_t i = 0; i < count * sizeof(T); ++i)
    digest = (digest ^ bytes[i]) * 1099511628211ULL;
}

void multiply(const Kernels &k, WeightBits bits, int inputs, int rows, const uint8_t *msb, const uint8_t *lsb,
              int blocks) {
  const int tiles = tiles_of(inputs);
  const auto places = static_cast<size_t>(2 * tiles * rows);
  std::vector<int8_t> codes(places * kGroup);
  std::vector<float> scales(places), y(static_cast<size_t>(rows * blocks * kTileRows));
  std::vector<int32_t> offsets(places);
  const PackedRows packed{codes.data(), scales.data(), offsets.data()};
  for (int m = 0; m < rows; ++m)
    k.quantize(random_floats(static_cast<size_t>(inputs), 1e-3f).data(), inputs, bits.excess(), m, rows, packed);
  k.matmul(bits, rows, msb, lsb, blocks, tiles, packed, y.data(), static_cast<size_t>(blocks * kTileRows));
  take(codes.data(), codes.size());
  take(y.data(), y.size());
}

void products(const Kernels &k, int inputs, int rows, WeightBits bits) {
  const int tiles = tiles_of(inputs), blocks = 5;
  const auto count = static_cast<size_t>(tiles * blocks);
  std::vector<uint8_t> memory(count * (kMsbTileBytes + kLsbTileBytes) + 128);
  auto *msb = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
  uint8_t *lsb = msb + count * kMsbTileBytes;
  for (size_t i = 0; i < count * (kMsbTileBytes + kLsbTileBytes); ++i)
    msb[i] = static_cast<uint8_t>(random_bits());
  for (size_t t = 0; t < count; ++t)
    for (size_t i = 0; i < 32; ++i) {
      const auto scale = static_cast<Half>(0x1400 + (random_bits() & 0x3ff)); // about 0.001
      std::memcpy(msb + t * kMsbTileBytes + 512 + 2 * i, &scale, sizeof scale);
    }
  multiply(k, bits, inputs, rows, msb, lsb, blocks);
}

void mxfp4_products(const Kernels &k, int inputs, int rows) {
  const int tiles = tiles_of(inputs), blocks = 5;
  const size_t bytes = static_cast<size_t>(blocks) * mxfp4_block_bytes(tiles);
  std::vector<uint8_t> memory(bytes + 64);
  auto *plane = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
  for (size_t i = 0; i < bytes; ++i) // as scales: 0 to 159
    plane[i] = static_cast<uint8_t>(random_bits() % 160);
  multiply(k, WeightBits{WeightBits::mxfp4}, inputs, rows, plane, nullptr, blocks);
}

void row_operations(const Kernels &k) {
  const std::vector<float> x = random_floats(512, 1e-3f), w = random_floats(512 * 7, 1e-4f);
  std::vector<float> y(512);
  k.rms_norm(x.data(), w.data(), 1e-6f, 512, 512, y.data());
  take(y.data(), 512);
  k.dot_rows(x.data(), w.data(), 7, 512, y.data());
  take(y.data(), 7);
  k.gate(x.data(), 256, y.data());
  take(y.data(), 256);
  k.gate_clamped(x.data(), 256, 1.702f, 0.5f, y.data());
  take(y.data(), 256);
  y.assign(x.begin(), x.begin() + 64);
  k.sigmoid(y.data(), 64);
  k.scale(0.37f, 64, y.data());
  k.clamp(0.2f, 64, y.data());
  k.rotate(w.data(), w.data() + 20, 0.3f, 40, y.data()); // a vector and a rest
  take(y.data(), 64);
  y.assign(x.begin(), x.begin() + 64);
  k.softmax(y.data(), 60);
  take(y.data(), 60);
}

void attention(const Kernels &k) {
  constexpr int d = 64, cells = 320, heads = 7;
  std::vector<Half> keys(cells * d), values(cells * d);
  for (int cell = 0; cell < cells; ++cell) {
    k.store_key(random_floats(d, 1e-4f).data(), d, cell, keys.data());
    k.store_value(random_floats(d, 1e-4f).data(), d, values.data() + cell * d);
  }
  const int32_t path[] = {305, 311, 300};
  const std::vector<float> query = random_floats(heads * d, 1e-3f);
  std::vector<float> out(heads * d), scratch(attend_scratch(heads, d));
  const Attended seen{keys.data(), values.data(), d, d, d, 0, 270, path, 3, nullptr};
  k.attend(seen, heads, query.data(), out.data(), scratch.data());
  take(keys.data(), keys.size());
  take(out.data(), out.size());
  // A window over parts of two spans and of the path, with sinks.
  const std::vector<float> sinks = random_floats(heads, 1e-4f);
  const Attended window{keys.data(), values.data(), d, d, d, 99, 270, path, 3, sinks.data()};
  k.attend(window, heads, query.data(), out.data(), scratch.data());
  take(out.data(), out.size());
  // Latents: keys are the whole rows of the values.
  const Attended latents{nullptr, values.data(), d, 48, d, 0, 270, path, 3, nullptr};
  k.attend(latents, heads, query.data(), out.data(), scratch.data());
  take(out.data(), static_cast<size_t>(heads * 48));
}

} // namespace

int main() {
  const Kernels &k = kernels();
  for (int inputs : {32, 64, 256, 320})
    for (int rows : {1, 3, 4})
      for (WeightBits bits : {WeightBits{WeightBits::msb}, WeightBits{}, WeightBits{WeightBits::masked, 0xfc, 2}})
        products(k, inputs, rows, bits);
  for (int inputs : {32, 96, 320})
    for (int rows : {1, 3, 4})
      mxfp4_products(k, inputs, rows);
  row_operations(k);
  attention(k);
  std::printf("%016llx\n", static_cast<unsigned long long>(digest));
}
