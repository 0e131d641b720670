// The last phase of a pass: logits, or the best of them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "pass.h"
#include "units.h"

namespace elmoe {

void Workspace::head(int t) {
  const Matrix &w = model_.head;
  const int Q = in_->wanted_count, V = model_.vocab, chunk_blocks = kHeadChunk / kTileRows;
  for (int q = t; q < Q; q += threads_) {
    const int r = in_->wanted[q];
    float *y = normed_row(q);
    std::memcpy(y, x_row(r), static_cast<size_t>(model_.hidden) * sizeof(float));
    if (pending_)
      combine_row(r, y);
    float squares = 0; // a residual that has become infinite or not a number would be quantised to zeros
    k_.dot_rows(y, y, 1, model_.hidden, &squares);
    if (!std::isfinite(squares))
      finite_.store(false, std::memory_order_relaxed);
    k_.rms_norm(y, model_.final_norm.weight, model_.final_norm.eps, model_.hidden, model_.hidden, y);
    quantize_part(y, model_.hidden, 0, q, Q, packed_, in_->bits.excess());
  }
  barrier_.wait([&] { queue_.fill(head_chunks_); });
  float *products = own_[static_cast<size_t>(t)].products.data();
  queue_.drain(t, [&](int chunk) {
    const int b = chunk * chunk_blocks, blocks = std::min(chunk_blocks, w.blocks() - b);
    const int token = b * kTileRows, count = std::min(kHeadChunk, V - token);
    for (int first = 0; first < Q; first += max_rows_) {
      const int rows = chunk_rows(first, Q);
      k_.matmul(in_->bits, rows, w.msb_block(b), w.lsb_block(b), blocks, w.tiles(), packed_.chunk(first), products,
                kHeadChunk);
      add_bias(w, b, blocks, rows, products, kHeadChunk);
      for (int m = 0; m < rows; ++m) {
        float *logits = products + static_cast<size_t>(m) * kHeadChunk;
        for (int i = 0; model_.logit_divisor != 1 && i < count; ++i)
          logits[i] /= model_.logit_divisor;
        scan_head(first + m, chunk, logits, count);
      }
    }
  });
  barrier_.wait();
  if (in_->best > 0)
    for (int q = t; q < Q; q += threads_)
      merge_head(q);
  lap(Phase::head, t);
}

// Some logits of wanted row q: given out whole, or only what is needed of them kept.
void Workspace::scan_head(int q, int chunk, const float *logits, int count) {
  float top = 0, total = 0;
  float none_score = 0;
  int32_t none_token = 0;
  Best best{&none_score, &none_token, 0, 0};
  const size_t part = static_cast<size_t>(q) * static_cast<size_t>(head_chunks_) + static_cast<size_t>(chunk);
  if (in_->best > 0)
    best = {&part_scores_[part * part_best_], &part_tokens_[part * part_best_], 0, static_cast<int>(part_best_)};
  else
    best.most = 1;
  if (!k_.scan(logits, count, chunk * kHeadChunk, &best, &top, &total))
    finite_.store(false, std::memory_order_relaxed);
  if (in_->best > 0) {
    part_max_[part] = top;
    part_sum_[part] = total;
  } else {
    std::memcpy(out_->logits + static_cast<size_t>(q) * static_cast<size_t>(model_.vocab) + chunk * kHeadChunk, logits,
                static_cast<size_t>(count) * sizeof(float));
  }
}

// The best of all chunks, in the order of the vocabulary, and the normaliser.
void Workspace::merge_head(int q) {
  const size_t first = static_cast<size_t>(q) * static_cast<size_t>(head_chunks_);
  const int most = in_->best;
  int32_t *tokens = out_->best_tokens + static_cast<size_t>(q) * static_cast<size_t>(most);
  float *logits = out_->best_logits + static_cast<size_t>(q) * static_cast<size_t>(most);
  int found = 0;
  float top = -std::numeric_limits<float>::infinity();
  for (int c = 0; c < head_chunks_; ++c) {
    const size_t part = first + static_cast<size_t>(c);
    const int count = std::min({most, kHeadChunk, model_.vocab - c * kHeadChunk});
    for (int i = 0; i < count; ++i) {
      const float logit = part_scores_[part * part_best_ + static_cast<size_t>(i)];
      if (found == most && !(logit > logits[most - 1]))
        break;
      int at = found < most ? found++ : most - 1;
      for (; at > 0 && logit > logits[at - 1]; --at) {
        logits[at] = logits[at - 1];
        tokens[at] = tokens[at - 1];
      }
      logits[at] = logit;
      tokens[at] = part_tokens_[part * part_best_ + static_cast<size_t>(i)];
    }
    top = std::max(top, part_max_[part]);
  }
  double total = 0;
  for (int c = 0; c < head_chunks_; ++c) {
    const size_t part = first + static_cast<size_t>(c);
    const double below = static_cast<double>(part_max_[part]) - static_cast<double>(top);
    total += static_cast<double>(part_sum_[part]) * std::exp(below);
  }
  out_->log_total[q] = static_cast<float>(static_cast<double>(top) + std::log(total));
}

} // namespace elmoe
