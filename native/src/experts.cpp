// The routing and expert phases of a pass.
#include <algorithm>

#include "crc32.h"
#include "pass.h"
#include "units.h"

namespace elmoe {

// Scores, choices, and the rows of every expert. False: an expert's record is damaged, the pass is void.
bool Workspace::route(const Feedforward &ffn, int t) {
  if (ffn.experts > 0) {
    const int first = ffn.experts * t / threads_, last = ffn.experts * (t + 1) / threads_, D = model_.hidden;
    for (int r = 0; r < in_->rows; ++r)
      k_.dot_rows(normed_row(r), ffn.router + static_cast<size_t>(first) * static_cast<size_t>(D), last - first, D,
                  score_row(r) + first);
    const bool few = in_->rows <= threads_; // then one thread is done sooner than all have met again
    barrier_.wait([&] {
      used_ = in_->experts_per_tok;
      for (int r = 0; few && r < in_->rows; ++r)
        choose(ffn, r);
      if (few)
        group(ffn);
    });
    if (!few) {
      for (int r = t; r < in_->rows; r += threads_)
        choose(ffn, r);
      barrier_.wait([&] { group(ffn); });
    }
  } else {
    barrier_.wait([&] {
      used_ = 1;
      for (int r = 0; r < in_->rows; ++r) {
        chosen_[static_cast<size_t>(r)] = 0;
        weights_[static_cast<size_t>(r)] = 1.0f;
      }
      group(ffn);
    });
  }
  own_[static_cast<size_t>(t)].packed_expert = -1;
  lap(Phase::route, t);
  return unchecked_.empty() || check_experts(ffn, t);
}

// The best experts of one row, ties to the lower number: the model's own for the record, those of the pool for use.
void Workspace::choose(const Feedforward &ffn, int row) {
  float *scores = score_row(row);
  k_.softmax(scores, ffn.experts);
  const uint8_t *pool = in_->pool ? in_->pool + static_cast<size_t>(ffn.moe_layer * model_.experts) : nullptr;
  const int own = ffn.experts_per_tok;
  int32_t best[64];
  float best_score[64];
  auto select = [&](int count, const uint8_t *allowed) {
    int found = 0;
    for (int e = 0; e < ffn.experts; ++e) {
      if (allowed && !allowed[e])
        continue;
      const float score = scores[e];
      if (found == count && !(score > best_score[count - 1]))
        continue;
      int at = found < count ? found++ : count - 1;
      for (; at > 0 && score > best_score[at - 1]; --at) {
        best_score[at] = best_score[at - 1];
        best[at] = best[at - 1];
      }
      best_score[at] = score;
      best[at] = e;
    }
  };
  select(own, nullptr);
  int16_t *record = out_->experts + static_cast<size_t>(row * model_.moe_layers + ffn.moe_layer) * static_cast<size_t>(own);
  for (int k = 0; k < own; ++k)
    record[k] = static_cast<int16_t>(best[k]);
  if (pool)
    select(used_, pool);
  float total = 0;
  for (int k = 0; k < used_; ++k)
    total += best_score[k];
  for (int k = 0; k < used_; ++k) {
    const auto at = static_cast<size_t>(row * used_ + k);
    chosen_[at] = best[k];
    weights_[at] = ffn.renormalize ? best_score[k] / total : best_score[k];
  }
}

// Sorts the rows by expert; each expert's rows become consecutive slots. Run by one thread.
void Workspace::group(const Feedforward &ffn) {
  const int experts = std::max(ffn.experts, 1), choices = in_->rows * used_;
  std::fill(counts_.begin(), counts_.begin() + experts, 0);
  for (int i = 0; i < choices; ++i)
    ++counts_[static_cast<size_t>(chosen_[static_cast<size_t>(i)])];
  active_.clear();
  unchecked_.clear();
  int next = 0;
  const bool both = in_->bits.kind != WeightBits::msb;
  for (int e = 0; e < experts; ++e) {
    const auto at = static_cast<size_t>(e);
    const int count = counts_[at];
    if (count == 0)
      continue;
    active_.push_back({e, next, count});
    counts_[at] = next;
    next += count;
    if (ffn.experts > 0) {
      out_->read[static_cast<size_t>(ffn.moe_layer * model_.experts + e)] = 1;
      if (!ffn.msb_seen[at])
        unchecked_.push_back({e, 0});
      if (both && !ffn.lsb_seen[at])
        unchecked_.push_back({e, 1});
    }
  }
  for (int i = 0; i < choices; ++i) {
    const auto at = static_cast<size_t>(i);
    const int slot = counts_[static_cast<size_t>(chosen_[at])]++;
    slots_[at] = slot;
    slot_rows_[static_cast<size_t>(slot)] = i / used_;
  }
  if (!unchecked_.empty()) {
    queue_.fill(static_cast<int>(unchecked_.size()));
    return;
  }
  unit_ = unit_blocks(ffn.gate_up[0], kGateBlocks);
  const int units = units_of(ffn.gate_up[0], unit_);
  queue_.fill(static_cast<int>(active_.size()) * units,
              [&](int task) { return std::max(active_[static_cast<size_t>(task / units)].count, 4); });
}

// CRC of the records that are read for the first time.
bool Workspace::check_experts(const Feedforward &ffn, int t) {
  const size_t tiles_up = static_cast<size_t>(ffn.gate_up[0].blocks()) * static_cast<size_t>(ffn.gate_up[0].tiles());
  const size_t tiles_down = static_cast<size_t>(ffn.down[0].blocks()) * static_cast<size_t>(ffn.down[0].tiles());
  queue_.drain(t, [&](int task) {
    const auto [expert, plane] = unchecked_[static_cast<size_t>(task)];
    const auto at = static_cast<size_t>(expert);
    const uint8_t *data = plane ? ffn.gate_up[at].lsb : ffn.gate_up[at].msb;
    const size_t bytes = (tiles_up + tiles_down) * (plane ? kLsbTileBytes : kMsbTileBytes);
    if (crc32(data, bytes) == (plane ? ffn.lsb_crc : ffn.msb_crc)[at]) {
      (plane ? ffn.lsb_seen : ffn.msb_seen)[at] = 1;
    } else if (!damaged_.exchange(true)) {
      out_->damaged_layer = ffn.moe_layer;
      out_->damaged_expert = expert;
      out_->damaged_msb = plane == 0;
    }
  });
  barrier_.wait([&] {
    if (!damaged_)
      group(ffn);
  });
  return !damaged_;
}

void Workspace::gate_up(const Feedforward &ffn, int t) {
  const Matrix &first = ffn.gate_up[0];
  const int units = units_of(first, unit_), tiles = first.tiles();
  const bool in_order = ffn.experts == 0 || in_->rows == 1; // all rows as they are packed already
  OfThread &own = own_[static_cast<size_t>(t)];
  float *products = own.products.data();
  queue_.drain(t, [&](int task) {
    const Active &a = active_[static_cast<size_t>(task / units)];
    const Matrix &w = ffn.gate_up[static_cast<size_t>(a.expert)];
    const int b = task % units * unit_, blocks = std::min(unit_, w.blocks() - b);
    if (!in_order && own.packed_expert != a.expert) {
      for (int s = 0; s < a.count; ++s) {
        const int r = slot_rows_[static_cast<size_t>(a.first + s)];
        const int from = chunk_first(r), to = chunk_first(s);
        copy_row(packed_.chunk(from), r - from, chunk_rows(from, in_->rows), own.expert_rows.chunk(to), s - to,
                 chunk_rows(to, a.count), 2 * tiles);
      }
      own.packed_expert = a.expert;
    }
    const Packed &input = in_order ? packed_ : own.expert_rows;
    const size_t stride = static_cast<size_t>(blocks) * kTileRows;
    float *gated = products + stride * static_cast<size_t>(max_rows_);
    for (int c = 0; c < a.count; c += max_rows_) {
      const int rows = chunk_rows(c, a.count);
      k_.matmul(in_->bits, rows, w.msb_block(b), w.lsb_block(b), blocks, tiles, input.chunk(c), products, stride);
      const int inner = blocks * kTileRows / 2;
      const PackedRows into = from_group(inner_.chunk(a.first + c), b * kTileRows / 2 / kGroup, rows);
      for (int m = 0; m < rows; ++m) {
        k_.gate(products + static_cast<size_t>(m) * stride, inner, gated);
        k_.quantize(gated, inner, in_->bits.excess(), m, rows, into);
      }
    }
  });
}

void Workspace::down(const Feedforward &ffn, int t) {
  const int units = units_of(ffn.down[0], unit_);
  queue_.drain(t, [&](int task) {
    const Active &a = active_[static_cast<size_t>(task / units)];
    const Matrix &w = ffn.down[static_cast<size_t>(a.expert)];
    const int b = task % units * unit_, blocks = std::min(unit_, w.blocks() - b);
    for (int c = 0; c < a.count; c += max_rows_) {
      float *y = &expert_out_[static_cast<size_t>(a.first + c) * width_ + static_cast<size_t>(b) * kTileRows];
      k_.matmul(in_->bits, chunk_rows(c, a.count), w.msb_block(b), w.lsb_block(b), blocks, w.tiles(),
                inner_.chunk(a.first + c), y, width_);
    }
  });
}

} // namespace elmoe
