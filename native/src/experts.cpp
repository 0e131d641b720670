// The routing and expert phases of a pass.
#include <algorithm>
#include <atomic>
#include <limits>

#include "crc32.h"
#include "pass.h"
#include "units.h"

namespace elmoe {

// Scores, choices, and the rows of every expert. False: a record cannot be had, the pass is void.
bool Workspace::route(const Feedforward &ffn, int t) {
  if (ffn.experts > 0) {
    const int first = ffn.experts * t / threads_, last = ffn.experts * (t + 1) / threads_, D = model_.hidden;
    for (int r = 0; r < in_->rows; ++r)
      k_.dot_rows(normed_row(r), ffn.router + static_cast<size_t>(first) * static_cast<size_t>(D), last - first, D,
                  score_row(r) + first);
    const bool few = in_->rows <= threads_; // then one thread is done sooner than all have met again
    barrier_.wait([&] {
      used_ = in_->experts_per_tok + ffn.shared;
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
        weights_[static_cast<size_t>(r)] = model_.residual_scale;
      }
      group(ffn);
    });
  }
  lap(Phase::route, t);
  return !give_up_; // not damaged_: a faster thread may be comparing checksums already
}

// The experts of one row, ties to the lower number: the model's own for the record, those of the pool for use.
void Workspace::choose(const Feedforward &ffn, int row) {
  const int E = ffn.experts, own = ffn.experts_per_tok, taken = in_->experts_per_tok;
  float *scores = score_row(row), *ranks = scores;
  for (int e = 0; ffn.router_bias && e < E; ++e)
    scores[e] += ffn.router_bias[e];
  if (ffn.sigmoid)
    k_.sigmoid(scores, static_cast<int>(padded(E)));
  else
    k_.softmax(scores, E);
  if (ffn.correction) {
    ranks = scores + score_stride_;
    for (int e = 0; e < E; ++e)
      ranks[e] = scores[e] + ffn.correction[e];
  }
  const uint8_t *pool = in_->pool ? in_->pool + static_cast<size_t>(ffn.moe_layer * model_.experts) : nullptr;
  uint8_t kept[kMostGroups];
  mark_kept_groups(ffn, ranks, kept);
  const int in_group = E / ffn.groups;
  int32_t best[kMostExpertsPerTok];
  // Takes experts of kept (or of other) groups until there are `count`; those found before stay ahead.
  auto select = [&](int found, int count, const uint8_t *allowed, bool of_kept) {
    const int before = found;
    for (int e = 0; e < E; ++e) {
      if ((allowed && !allowed[e]) || static_cast<bool>(kept[e / in_group]) != of_kept)
        continue;
      if (found == count && (before == count || !(ranks[e] > ranks[best[count - 1]])))
        continue;
      int at = found < count ? found++ : count - 1;
      for (; at > before && ranks[e] > ranks[best[at - 1]]; --at)
        best[at] = best[at - 1];
      best[at] = e;
    }
    return found;
  };
  select(0, own, nullptr, true);
  const auto place = static_cast<size_t>(row * model_.moe_layers + ffn.moe_layer);
  int16_t *record = out_->experts + place * static_cast<size_t>(own);
  for (int k = 0; k < own; ++k)
    record[k] = static_cast<int16_t>(best[k]);
  if (pool) // it may hold too few experts of the kept groups
    select(select(0, taken, pool, true), taken, pool, false);
  float total = 0;
  for (int k = 0; k < taken; ++k)
    total += scores[best[k]];
  for (int k = 0; k < taken; ++k) {
    const auto at = static_cast<size_t>(row * used_ + k);
    const float weight = ffn.renormalize ? scores[best[k]] / (total + 1e-20f) : scores[best[k]];
    chosen_[at] = best[k];
    weights_[at] = weight * ffn.scale * model_.residual_scale;
  }
  if (ffn.shared) {
    alignas(64) float gate[16] = {};
    if (ffn.shared_gate) {
      k_.dot_rows(normed_row(row), ffn.shared_gate, 1, model_.hidden, gate);
      k_.sigmoid(gate, 16);
    } else {
      gate[0] = 1;
    }
    chosen_[static_cast<size_t>(row * used_ + taken)] = E;
    weights_[static_cast<size_t>(row * used_ + taken)] = gate[0] * model_.residual_scale;
  }
}

// The groups of experts with the best scores, ties to the lower number.
void Workspace::mark_kept_groups(const Feedforward &ffn, const float *ranks, uint8_t *kept) const {
  std::fill(kept, kept + ffn.groups, static_cast<uint8_t>(ffn.groups == ffn.groups_kept));
  if (ffn.groups == ffn.groups_kept)
    return;
  const int size = ffn.experts / ffn.groups;
  float score[kMostGroups];
  for (int g = 0; g < ffn.groups; ++g) {
    float first = -std::numeric_limits<float>::infinity(), second = first;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      second = std::max(second, std::min(first, ranks[e]));
      first = std::max(first, ranks[e]);
    }
    score[g] = ffn.best_two ? first + second : first;
  }
  for (int n = 0; n < ffn.groups_kept; ++n) {
    int best = -1;
    for (int g = 0; g < ffn.groups; ++g)
      if (!kept[g] && (best < 0 || score[g] > score[best]))
        best = g;
    kept[best] = 1;
  }
}

// Sorts the rows by expert; each expert's rows become consecutive slots. Run by one thread.
void Workspace::group(const Feedforward &ffn) {
  const int matrices = static_cast<int>(ffn.gate_up.size()), choices = in_->rows * used_;
  std::fill(counts_.begin(), counts_.begin() + matrices, 0);
  for (int i = 0; i < choices; ++i)
    ++counts_[static_cast<size_t>(chosen_[static_cast<size_t>(i)])];
  active_.clear();
  unchecked_.clear();
  int next = 0;
  const bool both = in_->bits.kind != WeightBits::msb, mapped = !model_.store;
  for (int e = 0; e < matrices; ++e) {
    const auto at = static_cast<size_t>(e);
    const int count = counts_[at];
    if (count == 0)
      continue;
    active_.push_back({e, next, count});
    counts_[at] = next;
    next += count;
    if (e < ffn.experts) {
      out_->read[static_cast<size_t>(ffn.moe_layer * model_.experts + e)] = 1;
      if (mapped && !ffn.msb_seen[at])
        unchecked_.push_back({e, 0});
      if (mapped && both && !ffn.lsb_seen[at])
        unchecked_.push_back({e, 1});
    }
  }
  for (int i = 0; i < choices; ++i) {
    const auto at = static_cast<size_t>(i);
    const int slot = counts_[static_cast<size_t>(chosen_[at])]++;
    slots_[at] = slot;
    slot_rows_[static_cast<size_t>(slot)] = i / used_;
  }
  last_wave_ = true;
  if (!mapped && ffn.experts > 0)
    begin_waves(ffn);
  else
    fill_wave(ffn);
}

// The queue gets the checks of records that are new, else the products.
void Workspace::fill_wave(const Feedforward &ffn) {
  if (unchecked_.empty())
    fill_experts(ffn.gate_up, kGateBlocks);
  else
    queue_.fill(static_cast<int>(unchecked_.size()));
}

// All experts of a layer, wave by wave.
bool Workspace::experts(const Feedforward &ffn, int t) {
  for (;;) {
    own_[static_cast<size_t>(t)].packed_expert = -1;
    if (!unchecked_.empty() && !check_experts(ffn, t))
      return false;
    const bool last = last_wave_;
    gate_up(ffn, t);
    barrier_.wait([&] { fill_experts(ffn.down, 1); });
    lap(Phase::gate_up, t);
    down(ffn, t);
    lap(Phase::down, t);
    barrier_.wait([&] { end_wave(ffn); });
    lap(model_.store ? Phase::fetch : Phase::down, t);
    if (give_up_)
      return false;
    if (last)
      return true;
  }
}

// Fills the queue with units of all active experts' matrices; the last one may be of another shape (shared experts).
void Workspace::fill_experts(const std::vector<Matrix> &matrices, int multiple) {
  unit_ = unit_blocks(matrices.front(), multiple);
  last_unit_ = unit_blocks(matrices.back(), multiple);
  const bool has_last = active_.back().expert == static_cast<int>(matrices.size()) - 1;
  units_ = units_of(matrices.front(), unit_);
  first_last_task_ = (static_cast<int>(active_.size()) - has_last) * units_;
  const int tasks = first_last_task_ + (has_last ? units_of(matrices.back(), last_unit_) : 0);
  queue_.fill(tasks, [&](int task) { return std::max(active_of(task).count, 4); });
}

Workspace::ExpertTask Workspace::expert_task(const std::vector<Matrix> &matrices, int task) const {
  const Active &a = active_of(task);
  const Matrix &matrix = matrices[static_cast<size_t>(a.expert)];
  const bool last = task >= first_last_task_;
  const int unit = last ? last_unit_ : unit_, block = (last ? task - first_last_task_ : task % units_) * unit;
  return {a, matrix, block, std::min(unit, matrix.blocks() - block)};
}

// CRC of the records that are read for the first time, or that were just fetched.
bool Workspace::check_experts(const Feedforward &ffn, int t) {
  ExpertStore *store = model_.store.get();
  queue_.drain(t, [&](int task) {
    const auto [expert, plane] = unchecked_[static_cast<size_t>(task)];
    const auto at = static_cast<size_t>(expert);
    const Matrix &up = ffn.gate_up[at], &down = ffn.down[at];
    const uint8_t *data = plane ? up.lsb : up.msb;
    const size_t bytes = plane ? up.lsb_bytes() + down.lsb_bytes() : up.msb_bytes() + down.msb_bytes();
    const uint32_t wanted =
        store ? store->crc(plane, ffn.moe_layer, expert) : (plane ? ffn.lsb_crc : ffn.msb_crc)[at];
    if (crc32(data, bytes) != wanted) {
      if (!damaged_.exchange(true))
        note_fault(ffn, {plane, ffn.moe_layer, expert, kBadChecksum});
    } else if (store) {
      store->set_checked(plane, ffn.moe_layer, expert);
    } else {
      (plane ? ffn.lsb_seen : ffn.msb_seen)[at] = 1;
    }
  });
  barrier_.wait([&] {
    unchecked_.clear();
    if (!damaged_)
      fill_wave(ffn);
  });
  return !damaged_;
}

void Workspace::note_fault(const Feedforward &ffn, const StoreFault &fault) {
  damaged_ = true;
  out_->fault = fault;
  for (int r = 0; r < in_->rows; ++r) {
    const int32_t *used = &chosen_[static_cast<size_t>(r * used_)];
    if (fault.layer != ffn.moe_layer || std::find(used, used + used_, fault.expert) != used + used_)
      out_->fault_rows.push_back(r); // a record read ahead for another layer: nobody knows who would need it
  }
}

void Workspace::gate_up(const Feedforward &ffn, int t) {
  OfThread &own = own_[static_cast<size_t>(t)];
  float *products = own.products.data();
  queue_.drain(t, [&](int number) {
    const auto [a, w, b, blocks] = expert_task(ffn.gate_up, number);
    const WeightBits bits = bits_of(w);
    const Packed &all = w.mxfp4 ? packed_mxfp4_ : packed_;
    const bool in_order = a.count == in_->rows; // all rows as they are packed already
    if (!in_order && own.packed_expert != a.expert) {
      for (int s = 0; s < a.count; ++s) {
        const int r = slot_rows_[static_cast<size_t>(a.first + s)];
        const int from = chunk_first(r), to = chunk_first(s);
        copy_row(all.chunk(from), r - from, chunk_rows(from, in_->rows), own.expert_rows.chunk(to), s - to,
                 chunk_rows(to, a.count), 2 * w.tiles());
      }
      own.packed_expert = a.expert;
    }
    const Packed &input = in_order ? all : own.expert_rows;
    const int32_t excess = bits_of(ffn.down[static_cast<size_t>(a.expert)]).excess();
    const size_t stride = static_cast<size_t>(blocks) * kTileRows;
    float *gated = products + stride * static_cast<size_t>(max_rows_);
    for (int c = 0; c < a.count; c += max_rows_) {
      const int rows = chunk_rows(c, a.count);
      k_.matmul(bits, rows, w.msb_block(b), w.lsb_block(b), blocks, w.tiles(), input.chunk(c), products, stride);
      add_bias(w, b, blocks, rows, products, stride);
      const int inner = blocks * kTileRows / 2;
      const PackedRows into = from_group(inner_.chunk(a.first + c), b * kTileRows / 2 / kGroup, rows);
      for (int m = 0; m < rows; ++m) {
        const float *pairs = products + static_cast<size_t>(m) * stride;
        if (ffn.limit > 0)
          k_.gate_clamped(pairs, inner, ffn.alpha, ffn.limit, gated);
        else
          k_.gate(pairs, inner, gated);
        k_.quantize(gated, inner, excess, m, rows, into);
      }
    }
  });
}

void Workspace::down(const Feedforward &ffn, int t) {
  queue_.drain(t, [&](int number) {
    const auto [a, w, b, blocks] = expert_task(ffn.down, number);
    for (int c = 0; c < a.count; c += max_rows_) {
      const int rows = chunk_rows(c, a.count);
      float *y = &expert_out_[static_cast<size_t>(a.first + c) * width_ + static_cast<size_t>(b) * kTileRows];
      k_.matmul(bits_of(w), rows, w.msb_block(b), w.lsb_block(b), blocks, w.tiles(), inner_.chunk(a.first + c), y,
                width_);
      add_bias(w, b, blocks, rows, y, width_);
    }
  });
}

} // namespace elmoe
