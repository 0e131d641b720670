#include "model.h"

namespace elmoe {
namespace {

constexpr int kMostCells = 1 << 30;

} // namespace

KvCache::KvCache(const std::vector<Layer> &layers, int cells)
    : cells_(cells), padded_(0) {
  if (cells > kMostCells)
    throw std::bad_alloc();
  padded_ = (cells + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  size_t halves = 0;
  for (const Layer &layer : layers) {
    const Attention &a = layer.attention;
    places_.push_back({halves, a.kv_heads, a.head_dim});
    halves += 2 * static_cast<size_t>(a.kv_heads) * a.head_dim * padded_;
  }
  pages_ = std::make_unique<Pages>(halves * sizeof(Half));
}

Half *KvCache::keys(int layer, int kv_head) const {
  const Place &at = places_[static_cast<size_t>(layer)];
  return pages_->as<Half>() + at.offset + static_cast<size_t>(kv_head) * at.head_dim * padded_;
}

Half *KvCache::values(int layer, int kv_head) const {
  const Place &at = places_[static_cast<size_t>(layer)];
  return keys(layer, at.kv_heads) + static_cast<size_t>(kv_head) * at.head_dim * padded_;
}

void KvCache::move(const int32_t *source, const int32_t *destination, int count) {
  std::vector<Half> held;
  for (size_t layer = 0; layer < places_.size(); ++layer) {
    const auto d = static_cast<size_t>(places_[layer].head_dim);
    held.resize(d * static_cast<size_t>(count) * 2);
    for (int head = 0; head < places_[layer].kv_heads; ++head) {
      Half *k = keys(static_cast<int>(layer), head), *v = values(static_cast<int>(layer), head);
      auto key_at = [&](int32_t cell, size_t i) -> Half & {
        return k[(static_cast<size_t>(cell / kKeyBlock) * d + i) * kKeyBlock + static_cast<size_t>(cell % kKeyBlock)];
      };
      Half *h = held.data();
      for (int n = 0; n < count; ++n)
        for (size_t i = 0; i < d; ++i) {
          *h++ = key_at(source[n], i);
          *h++ = v[static_cast<size_t>(source[n]) * d + i];
        }
      h = held.data();
      for (int n = 0; n < count; ++n)
        for (size_t i = 0; i < d; ++i) {
          key_at(destination[n], i) = *h++;
          v[static_cast<size_t>(destination[n]) * d + i] = *h++;
        }
    }
  }
}

} // namespace elmoe
