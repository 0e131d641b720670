#include "model.h"

#include <cstring>

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
    places_.push_back({halves, a.kv_heads, a.key_dim(), a.latent});
    halves += (a.latent ? 1 : 2) * static_cast<size_t>(a.kv_heads) * a.key_dim() * padded_;
  }
  pages_ = std::make_unique<Pages>(halves * sizeof(Half));
}

Half *KvCache::keys(int layer, int kv_head) const {
  const Place &at = places_[static_cast<size_t>(layer)];
  return at.latent ? nullptr : pages_->as<Half>() + at.offset + static_cast<size_t>(kv_head) * at.width * padded_;
}

Half *KvCache::values(int layer, int kv_head) const {
  const Place &at = places_[static_cast<size_t>(layer)];
  const int before = at.latent ? 0 : at.kv_heads;
  return pages_->as<Half>() + at.offset + static_cast<size_t>(before + kv_head) * at.width * padded_;
}

void KvCache::move(const int32_t *source, const int32_t *destination, int count) {
  std::vector<Half> held;
  for (size_t layer = 0; layer < places_.size(); ++layer) {
    const Place &at = places_[layer];
    const auto width = static_cast<size_t>(at.width);
    held.resize(width * static_cast<size_t>(count) * 2);
    for (int head = 0; head < at.kv_heads; ++head) {
      Half *k = keys(static_cast<int>(layer), head), *v = values(static_cast<int>(layer), head);
      // What a cell holds, element by element: the same walk reads all sources, then writes all destinations.
      auto walk = [&](const int32_t *cells, auto &&touch) {
        Half *h = held.data();
        for (int n = 0; n < count; ++n)
          for (size_t i = 0; i < width; ++i) {
            const auto cell = static_cast<size_t>(cells[n]);
            touch(*h++, v[cell * width + i]);
            if (k)
              touch(*h++, k[(cell / kKeyBlock * width + i) * kKeyBlock + cell % kKeyBlock]);
          }
      };
      walk(source, [](Half &kept, const Half &stored) { kept = stored; });
      walk(destination, [](const Half &kept, Half &stored) { stored = kept; });
    }
  }
}

void KvCache::take(const KvCache &other, int count) {
  const auto blocks = static_cast<size_t>((count + kKeyBlock - 1) / kKeyBlock);
  for (size_t layer = 0; layer < places_.size(); ++layer) {
    const Place &at = places_[layer];
    const auto width = static_cast<size_t>(at.width);
    for (int head = 0; head < at.kv_heads; ++head) {
      const int number = static_cast<int>(layer);
      std::memcpy(values(number, head), other.values(number, head), width * static_cast<size_t>(count) * sizeof(Half));
      if (!at.latent) // whole blocks: what follows the copied cells in the last one is written before it is read
        std::memcpy(keys(number, head), other.keys(number, head), width * blocks * kKeyBlock * sizeof(Half));
    }
  }
}

} // namespace elmoe
