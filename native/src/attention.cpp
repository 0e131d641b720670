// The attention phases of a pass.
#include <algorithm>

#include "pass.h"
#include "units.h"

namespace elmoe {

// Adds the experts' outputs of the layer before to y, in the order of their scores.
void Workspace::combine_row(int r, float *y) const {
  const float *outputs[kMostExpertsPerTok + 1];
  const auto first = static_cast<size_t>(r * used_);
  for (int k = 0; k < used_; ++k)
    outputs[k] = &expert_out_[static_cast<size_t>(slots_[first + static_cast<size_t>(k)]) * width_];
  k_.combine(outputs, &weights_[first], used_, model_.hidden, y);
}

// Packs the normed rows for INT8 matrices, for MXFP4 ones, or for both.
void Workspace::norm_rows(const Norm &norm, bool for_int8, bool for_mxfp4, int t) {
  for (int r = t; r < in_->rows; r += threads_) {
    if (pending_)
      combine_row(r, x_row(r));
    k_.rms_norm(x_row(r), norm.weight, norm.eps, model_.hidden, model_.hidden, normed_row(r));
    if (for_int8)
      quantize_part(normed_row(r), model_.hidden, 0, r, in_->rows, packed_, in_->bits.excess());
    if (for_mxfp4)
      quantize_part(normed_row(r), model_.hidden, 0, r, in_->rows, packed_mxfp4_,
                    WeightBits{WeightBits::mxfp4}.excess());
  }
}

void Workspace::attention(int index, int t) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  project(a.input, qkv_.data(), qkv_stride_, t);
  if (a.latent)
    latent_attention(index, t);
  else
    grouped_attention(index, t);
  barrier_.wait();
  lap(Phase::out, t);
}

// The packed rows times a matrix whose units the queue holds.
void Workspace::project(const Matrix &matrix, float *y, size_t stride, int t) {
  queue_.drain(t, [&](int unit) {
    const int b = unit * unit_, blocks = std::min(unit_, matrix.blocks() - b);
    for (int first = 0; first < in_->rows; first += max_rows_) {
      const int rows = chunk_rows(first, in_->rows);
      float *part = y + static_cast<size_t>(first) * stride + static_cast<size_t>(b) * kTileRows;
      k_.matmul(in_->bits, rows, matrix.msb_block(b), matrix.lsb_block(b), blocks, matrix.tiles(), packed_.chunk(first),
                part, stride);
      add_bias(matrix, b, blocks, rows, part, stride);
    }
  });
}

// The last step of attention: x += residual_scale * out(what the heads have mixed, packed).
void Workspace::project_out(const Attention &a, int t) {
  float *products = own_[static_cast<size_t>(t)].products.data();
  queue_.drain(t, [&](int unit) {
    const int b = unit * unit_, blocks = std::min(unit_, a.out.blocks() - b), columns = blocks * kTileRows;
    for (int first = 0; first < in_->rows; first += max_rows_) {
      const int rows = chunk_rows(first, in_->rows);
      k_.matmul(in_->bits, rows, a.out.msb_block(b), a.out.lsb_block(b), blocks, a.out.tiles(), packed_.chunk(first),
                products, static_cast<size_t>(columns));
      add_bias(a.out, b, blocks, rows, products, static_cast<size_t>(columns));
      for (int m = 0; m < rows; ++m)
        k_.add(products + static_cast<size_t>(m) * static_cast<size_t>(columns), model_.residual_scale, columns,
               x_row(first + m) + static_cast<size_t>(b) * kTileRows);
    }
  });
}

void Workspace::grouped_attention(int index, int t) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  const int R = in_->rows;
  if (a.whole_norms || a.padded()) {
    barrier_.wait([&] { queue_.fill(R); });
    queue_.drain(t, [&](int r) { prepare_heads(a, r); });
  }
  auto share_heads = [&] {
    pending_ = false;
    queue_.fill(R * a.kv_heads, [&](int task) {
      const int cells = in_->prefix[task / a.kv_heads];
      return (a.window ? std::min(cells, a.window) : cells) + 32;
    });
  };
  if (!independent_) { // rows of one sequence see each other's keys: all are stored before any row looks
    barrier_.wait([&] { queue_.fill(R * a.kv_heads); });
    lap(Phase::qkv, t);
    queue_.drain(t, [&](int task) { store_keys(index, task / a.kv_heads, task % a.kv_heads); });
  }
  barrier_.wait(share_heads);
  lap(independent_ ? Phase::qkv : Phase::rope, t);

  const int width = a.heads_together() * a.key_dim();
  const bool whole_tiles = !a.padded() && width % kTileInputs == 0;
  queue_.drain(t, [&](int task) {
    const int r = task / a.kv_heads, kv = task % a.kv_heads;
    const Attended seen = attended(index, r, kv);
    if (independent_) {
      k_.fetch(seen);
      store_keys(index, r, kv);
    }
    k_.attend(seen, a.heads_together(), heads_row(r, a) + kv * width, mixed_row(r, a) + kv * width,
              own_[static_cast<size_t>(t)].attention.data());
    if (whole_tiles)
      quantize_part(mixed_row(r, a) + kv * width, width, kv * width / kGroup, r, R, packed_, in_->bits.excess());
  });
  if (!whole_tiles) {
    barrier_.wait();
    for (int r = t; r < R; r += threads_) {
      const float *mixed = mixed_row(r, a);
      if (a.padded()) {
        float *close = &values_[static_cast<size_t>(r) * static_cast<size_t>(a.out.inputs)];
        for (int h = 0; h < a.heads; ++h)
          std::copy_n(mixed + h * a.key_dim(), a.head_dim, close + h * a.head_dim);
        mixed = close;
      }
      quantize_part(mixed, a.out.inputs, 0, r, R, packed_, in_->bits.excess());
    }
  }
  barrier_.wait([&] { fill_units(a.out); });
  lap(Phase::attend, t);
  project_out(a, t);
}

// Norms over all heads of a row as one vector; heads moved apart where whole vectors would reach into the next one.
void Workspace::prepare_heads(const Attention &a, int r) const {
  float *query = &qkv_[static_cast<size_t>(r) * qkv_stride_], *key = query + a.heads * a.head_dim;
  auto norm = [&](const Norm &norm, int n, float *x) {
    if (a.whole_norms && norm.weight)
      k_.rms_norm(x, norm.weight, norm.eps, n, n, x);
  };
  norm(a.query_norm, a.heads * a.head_dim, query);
  norm(a.key_norm, a.kv_heads * a.head_dim, key);
  if (!a.padded())
    return;
  float *apart = heads_row(r, a);
  for (int h = 0; h < a.heads + 2 * a.kv_heads; ++h) {
    std::copy_n(query + h * a.head_dim, a.head_dim, apart + h * a.key_dim());
    std::fill(apart + h * a.key_dim() + a.head_dim, apart + (h + 1) * a.key_dim(), 0.0f);
  }
}

// Norms, rotates and stores what one row contributes to one key-value head; its query heads too.
void Workspace::store_keys(int index, int r, int kv) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  const RopeTable &rope = model_.ropes[static_cast<size_t>(a.rope)];
  const int d = a.key_dim(), shared = a.heads_together(), position = in_->positions[r], cell = in_->cells[r];
  const float *cosine = rope.cosines_at(position), *sine = rope.sines_at(position);
  float *row = heads_row(r, a);
  auto turn = [&](float *x, const Norm &norm, float factor) {
    if (norm.weight && !a.whole_norms)
      k_.rms_norm(x, norm.weight, norm.eps, a.head_dim, d, x);
    if (a.clip > 0)
      k_.clamp(a.clip, d, x);
    k_.rotate(cosine, sine, factor, a.head_dim, x);
  };
  for (int h = kv * shared; h < (kv + 1) * shared; ++h)
    turn(row + h * d, a.query_norm, a.score_scale);
  float *key = row + (a.heads + kv) * d, *value = row + (a.heads + a.kv_heads + kv) * d;
  turn(key, a.key_norm, 1.0f);
  if (a.clip > 0)
    k_.clamp(a.clip, d, value);
  const KvCache &cache = *caches_[static_cast<size_t>(r)];
  k_.store_key(key, d, cell, cache.keys(index, kv));
  k_.store_value(value, d, cache.values(index, kv) + static_cast<size_t>(cell) * static_cast<size_t>(d));
}

Attended Workspace::attended(int index, int r, int kv) const {
  const KvCache &cache = *caches_[static_cast<size_t>(r)];
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  Attended seen{cache.keys(index, kv),
                cache.values(index, kv),
                a.key_dim(),
                a.mixed_dim(),
                a.key_dim(),
                a.window ? std::max(0, in_->positions[r] - a.window + 1) : 0,
                in_->prefix[r],
                in_->path + static_cast<size_t>(r) * static_cast<size_t>(in_->path_width),
                0,
                a.sinks ? a.sinks + kv * a.heads_together() : nullptr};
  int end = 0;
  while (end < in_->path_width && seen.path[end] >= 0)
    ++end;
  int skip = 0; // path cells that go on where the prefix ends are read like a prefix
  while (skip < end && seen.path[skip] == seen.prefix)
    ++seen.prefix, ++skip;
  seen.path += skip;
  seen.path_count = end - skip;
  return seen;
}

} // namespace elmoe
