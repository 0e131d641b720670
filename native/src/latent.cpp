// Multi-head latent attention in absorbed form: heads attend to the latents themselves, which are never expanded.
#include <algorithm>
#include <cstring>

#include "pass.h"
#include "units.h"

namespace elmoe {

// After `down`: qkv_ rows are [query part | latent | rope key].
void Workspace::latent_attention(int index, int t) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  OfThread &own = own_[static_cast<size_t>(t)];
  const int R = in_->rows, chunks = (R + max_rows_ - 1) / max_rows_;
  const bool compressed = a.query_up.outputs > 0;
  barrier_.wait([&] {
    pending_ = false;
    queue_.fill(R);
  });
  lap(Phase::qkv, t);
  queue_.drain(t, [&](int r) { store_latent(index, r); });
  if (compressed) {
    barrier_.wait([&] { fill_units(a.query_up); });
    project(a.query_up, queries_.data(), query_stride_, t);
  }
  barrier_.wait([&] { queue_.fill(a.heads * chunks); });
  const float *queries = compressed ? queries_.data() : qkv_.data();
  const size_t stride = compressed ? query_stride_ : qkv_stride_;
  queue_.drain(t, [&](int task) { carry_query(a, queries, stride, task, own); });

  const int shares = R >= threads_ ? 1 : std::min(threads_, a.heads); // all heads of a row read the same latents
  barrier_.wait([&] { queue_.fill(R * shares, [&](int task) { return in_->prefix[task / shares] + 32; }); });
  lap(Phase::rope, t);
  queue_.drain(t, [&](int task) {
    const int r = task / shares, part = task % shares;
    const int first = a.heads * part / shares, last = a.heads * (part + 1) / shares;
    k_.attend(attended(index, r, 0), last - first, carried_row(r, a) + first * a.key_dim(),
              mixed_row(r, a) + first * a.latent_dim, own.attention.data());
  });
  barrier_.wait([&] { queue_.fill(a.heads * chunks); });
  queue_.drain(t, [&](int task) { carry_value(a, task, own); });
  barrier_.wait();
  for (int r = t; r < R; r += threads_)
    quantize_part(&values_[static_cast<size_t>(r) * static_cast<size_t>(a.out.inputs)], a.out.inputs, 0, r, R, packed_,
                  in_->bits.excess());
  barrier_.wait([&] { fill_units(a.out); });
  lap(Phase::attend, t);
  project_out(a, t);
}

// Norms, rotates and stores the latent of one row; norms and packs a compressed query.
void Workspace::store_latent(int index, int r) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  const RopeTable &rope = model_.ropes[static_cast<size_t>(a.rope)];
  const int position = in_->positions[r], width = a.latent_dim + a.rope_dim;
  float *query = &qkv_[static_cast<size_t>(r) * qkv_stride_], *latent = query + a.query_part();
  k_.rms_norm(latent, a.latent_norm.weight, a.latent_norm.eps, a.latent_dim, a.latent_dim, latent);
  k_.rotate(rope.cosines_at(position), rope.sines_at(position), 1.0f, a.rope_dim, latent + a.latent_dim);
  // Whole vectors are stored; what lies behind the row is scratch, and the padding has to be zero.
  std::fill(latent + width, latent + a.key_dim(), 0.0f);
  Half *cell = caches_[static_cast<size_t>(r)]->values(index, 0) +
               static_cast<size_t>(in_->cells[r]) * static_cast<size_t>(a.key_dim());
  k_.store_value(latent, a.key_dim(), cell);
  if (a.query_up.outputs == 0)
    return;
  if (a.query_norm.weight)
    k_.rms_norm(query, a.query_norm.weight, a.query_norm.eps, a.query_part(), a.query_part(), query);
  quantize_part(query, a.query_up.inputs, 0, r, in_->rows, packed_, in_->bits.excess());
}

// One head of a chunk of rows packed by itself; row m begins at x + m * stride.
void Workspace::pack_head(const float *x, size_t stride, int width, int inputs, int rows, OfThread &own) const {
  for (int m = 0; m < rows; ++m) {
    const float *from = x + static_cast<size_t>(m) * stride;
    if (width < inputs) {
      std::memcpy(own.head.data(), from, static_cast<size_t>(width) * sizeof(float));
      std::fill(own.head.data() + width, own.head.data() + inputs, 0.0f);
      from = own.head.data();
    }
    k_.quantize(from, inputs, in_->bits.excess(), m, rows, own.head_rows.chunk(0));
  }
}

// The queries of one head and a chunk of rows, carried into the space of the latents and scaled.
void Workspace::carry_query(const Attention &a, const float *queries, size_t stride, int task, OfThread &own) {
  const int h = task % a.heads, first = task / a.heads * max_rows_, rows = chunk_rows(first, in_->rows);
  const int blocks = a.latent_dim / kTileRows, width = a.nope_dim + a.rope_dim, key_dim = a.key_dim();
  const float *query = queries + static_cast<size_t>(first) * stride + static_cast<size_t>(h * width);
  pack_head(query, stride, a.nope_dim, a.key_up.inputs, rows, own);
  float *carried = carried_row(first, a) + h * key_dim;
  const auto step = static_cast<size_t>(a.heads * key_dim);
  k_.matmul(in_->bits, rows, a.key_up.msb_block(h * blocks), a.key_up.lsb_block(h * blocks), blocks, a.key_up.tiles(),
            own.head_rows.chunk(0), carried, step);
  const RopeTable &rope = model_.ropes[static_cast<size_t>(a.rope)];
  for (int m = 0; m < rows; ++m) {
    const int position = in_->positions[first + m];
    float *row = carried + static_cast<size_t>(m) * step, *turned = row + a.latent_dim;
    k_.scale(a.score_scale, a.latent_dim, row);
    std::memcpy(turned, query + static_cast<size_t>(m) * stride + a.nope_dim,
                static_cast<size_t>(a.rope_dim) * sizeof(float));
    k_.rotate(rope.cosines_at(position), rope.sines_at(position), a.score_scale, a.rope_dim, turned);
    std::fill(turned + a.rope_dim, row + key_dim, 0.0f);
  }
}

// What one head has mixed, for a chunk of rows, carried out of the space of the latents.
void Workspace::carry_value(const Attention &a, int task, OfThread &own) {
  const int h = task % a.heads, first = task / a.heads * max_rows_, rows = chunk_rows(first, in_->rows);
  // The blocks of 16 rows that hold this head's; the first and the last may hold other heads' too.
  const int from = h * a.value_dim, block = from / kTileRows;
  const int blocks = blocks_of(from + a.value_dim) - block, columns = blocks * kTileRows;
  pack_head(mixed_row(first, a) + h * a.latent_dim, static_cast<size_t>(a.heads * a.latent_dim), a.latent_dim,
            a.latent_dim, rows, own);
  float *products = own.products.data();
  k_.matmul(in_->bits, rows, a.value_up.msb_block(block), a.value_up.lsb_block(block), blocks, a.value_up.tiles(),
            own.head_rows.chunk(0), products, static_cast<size_t>(columns));
  for (int m = 0; m < rows; ++m) {
    const float *mine = products + static_cast<size_t>(m * columns + from - block * kTileRows);
    std::copy_n(mine, a.value_dim, &values_[static_cast<size_t>(first + m) * static_cast<size_t>(a.out.inputs)] + from);
  }
}

} // namespace elmoe
