// The experts of a layer when not all of their records are in memory: computed in waves, those first that are there,
// while the others are read.
#include <algorithm>

#include "pass.h"
#include "units.h"

namespace elmoe {
namespace {

constexpr int kRowsLookedAhead = 32; // beyond these the next layer's scores take longer than they save
constexpr float kSure = 0.5f;        // of a rank's guesses so many must have been right lately; a wrong one costs a read
constexpr float kNews = 1.0f / 64;   // weight of the latest guess

} // namespace

// Run by one thread, like all that follows.
void Workspace::begin_waves(const Feedforward &ffn) {
  std::vector<int> &needed = candidates_;
  needed.clear();
  for (const Active &active : active_)
    if (active.expert < ffn.experts)
      needed.push_back(active.expert);
  for (const auto &[rank, e] : ranked_) { // how good was the guess?
    float &right = guesses_right_[static_cast<size_t>(rank)];
    right += kNews * (static_cast<float>(std::binary_search(needed.begin(), needed.end(), e)) - right);
  }
  ranked_.clear();
  all_active_.swap(active_);
  model_.store->begin_layer(ffn.moe_layer, needed, in_->bits.kind != WeightBits::msb);
  next_wave();
}

// The experts that are ready become active; the shared ones, always there, go with the first.
void Workspace::next_wave() {
  Feedforward &ffn = model_.layers[static_cast<size_t>(index_)].ffn;
  ExpertStore &store = *model_.store;
  active_.clear();
  if (!store.next(wave_, [this] { look_ahead(); })) {
    note_fault(ffn, store.fault());
    give_up_ = true;
    return;
  }
  const bool both = in_->bits.kind != WeightBits::msb;
  for (int e : wave_) {
    const auto at = static_cast<size_t>(e);
    for (int plane = 0; plane < (both && !ffn.mxfp4() ? 2 : 1); ++plane) {
      const uint8_t *record = store.record(plane, ffn.moe_layer, e);
      Matrix &up = ffn.gate_up[at], &down = ffn.down[at];
      (plane ? up.lsb : up.msb) = record;
      (plane ? down.lsb : down.msb) = record + (plane ? up.lsb_bytes() : up.msb_bytes());
      if (store.unchecked(plane, ffn.moe_layer, e))
        unchecked_.push_back({e, plane});
    }
  }
  std::vector<Active> later;
  for (const Active &active : all_active_)
    if (active.expert >= ffn.experts || std::binary_search(wave_.begin(), wave_.end(), active.expert))
      active_.push_back(active);
    else
      later.push_back(active);
  all_active_.swap(later);
  last_wave_ = all_active_.empty();
  fill_wave(ffn);
}

void Workspace::end_wave(const Feedforward &ffn) {
  pending_ = last_wave_;
  if (!model_.store || ffn.experts == 0)
    return;
  model_.store->release(wave_);
  if (!last_wave_)
    next_wave();
}

// What the caller expects the pass to need in a layer, likeliest first.
void Workspace::expect_listed(const Feedforward &ffn) {
  if (!in_->expected || in_->bits.kind == WeightBits::msb)
    return;
  const uint8_t *likely = in_->expected + static_cast<size_t>(ffn.moe_layer * model_.experts);
  candidates_.clear();
  for (int e = 0; e < model_.experts; ++e)
    if (likely[e])
      candidates_.push_back(e);
  std::stable_sort(candidates_.begin(), candidates_.end(), [&](int a, int b) { return likely[a] > likely[b]; });
  model_.store->expect(ffn.moe_layer, candidates_);
}

// While this layer's records are on their way: begin with those that the next layer will probably need. Where the caller
// does not know, the next router is asked about this layer's input: the residual changes little from layer to layer.
void Workspace::look_ahead() {
  if (in_->bits.kind == WeightBits::msb)
    return;
  auto next = static_cast<size_t>(index_) + 1;
  while (next < model_.layers.size() && model_.layers[next].ffn.experts == 0)
    ++next;
  if (next == model_.layers.size())
    return;
  const Layer &layer = model_.layers[next];
  if (in_->expected) {
    expect_listed(layer.ffn);
    return;
  }
  ranked_.clear();
  if (in_->rows > kRowsLookedAhead)
    return;
  const int E = layer.ffn.experts, ranks = layer.ffn.experts_per_tok;
  float *row = ahead_.data(), *scores = row + width_;
  for (int r = 0; r < in_->rows; ++r) {
    k_.rms_norm(x_row(r), layer.ffn_norm.weight, layer.ffn_norm.eps, model_.hidden, model_.hidden, row);
    k_.dot_rows(row, layer.ffn.router, E, model_.hidden, scores);
    std::vector<std::pair<float, int>> best;
    for (int e = 0; e < E; ++e)
      best.emplace_back(scores[e] + (layer.ffn.router_bias ? layer.ffn.router_bias[e] : 0.0f), e);
    std::partial_sort(best.begin(), best.begin() + ranks, best.end(), std::greater<>());
    for (int k = 0; k < ranks; ++k)
      ranked_.emplace_back(k, best[static_cast<size_t>(k)].second);
  }
  std::stable_sort(ranked_.begin(), ranked_.end());
  candidates_.clear();
  for (const auto &[rank, e] : ranked_)
    if (guesses_right_[static_cast<size_t>(rank)] >= kSure &&
        std::find(candidates_.begin(), candidates_.end(), e) == candidates_.end())
      candidates_.push_back(e);
  model_.store->expect(layer.ffn.moe_layer, candidates_);
}

} // namespace elmoe
