#include "pass.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "crc32.h"

namespace elmoe {
namespace {

constexpr int kUnitBytes = 64 << 10; // weights of a task: long enough to stream, short enough to share out evenly
constexpr int kGateBlocks = 8;       // row blocks of gate_up that make one tile of the inputs of down
constexpr int kHeadChunk = 512;      // logits that are scanned together, whatever the number of threads

size_t padded(int n) { return static_cast<size_t>((n + kTileRows - 1) / kTileRows * kTileRows); }

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Row blocks of a task over a matrix; a multiple of `multiple`.
int unit_blocks(const Matrix &matrix, int multiple) {
  const int wanted = kUnitBytes / (matrix.tiles() * (kMsbTileBytes + kLsbTileBytes));
  return std::max(1, wanted / multiple) * multiple;
}

int units_of(const Matrix &matrix, int unit) { return (matrix.blocks() + unit - 1) / unit; }

void add_bias(const Matrix &matrix, int first_block, int blocks, int rows, float *y, size_t stride) {
  if (!matrix.bias)
    return;
  const int first = first_block * kTileRows, last = std::min(first + blocks * kTileRows, matrix.outputs);
  for (int m = 0; m < rows; ++m)
    for (int i = first; i < last; ++i)
      y[static_cast<size_t>(m) * stride + static_cast<size_t>(i - first)] += matrix.bias[i];
}

// The part of M packed rows that begins with a group.
PackedRows from_group(const PackedRows &rows, int group, int M) {
  const size_t at = static_cast<size_t>(group) * static_cast<size_t>(M);
  return {rows.codes + at * kGroup, rows.scales + at, rows.offsets + at};
}

// Row m of M packed rows -> row n of N.
void copy_row(const PackedRows &from, int m, int M, const PackedRows &to, int n, int N, int groups) {
  for (int g = 0; g < groups; ++g) {
    const size_t a = static_cast<size_t>(g) * static_cast<size_t>(M) + static_cast<size_t>(m);
    const size_t b = static_cast<size_t>(g) * static_cast<size_t>(N) + static_cast<size_t>(n);
    std::memcpy(to.codes + b * kGroup, from.codes + a * kGroup, kGroup);
    to.scales[b] = from.scales[a];
    to.offsets[b] = from.offsets[a];
  }
}

} // namespace

void Packed::grow(int rows, int inputs, int max_rows) {
  groups_ = static_cast<size_t>(tiles_of(inputs)) * 2;
  const auto places = static_cast<size_t>(rows + max_rows) * groups_;
  codes_.grow(places * kGroup);
  scales_.grow(places);
  offsets_.grow(places);
}

PackedRows Packed::chunk(int first) const {
  const size_t at = static_cast<size_t>(first) * groups_;
  return {codes_.data() + at * kGroup, scales_.data() + at, offsets_.data() + at};
}

Workspace::Workspace(Model &model, int threads)
    : model_(model), k_(*model.kernels), max_rows_(model.kernels->max_rows), queue_(threads),
      own_(static_cast<size_t>(threads)) {}

void Workspace::lap(Phase phase, int t) {
  if (t != 0)
    return;
  const double time = now();
  seconds[static_cast<size_t>(phase)] += time - last_lap_;
  last_lap_ = time;
}

// `inputs` values, from group `group` of row r on, of `rows` rows.
void Workspace::quantize_part(const float *x, int inputs, int group, int r, int rows, const Packed &into) const {
  const int first = chunk_first(r), together = chunk_rows(first, rows);
  k_.quantize(x, inputs, in_->bits.excess(), r - first, together, from_group(into.chunk(first), group, together));
}

// --- the whole -----------------------------------------------------------------------------------------------------

void Workspace::run(const PassInput &in, PassOutput &out, ThreadPool &pool) {
  check(in);
  in_ = &in;
  out_ = &out;
  caches_.clear();
  independent_ = true;
  ++passes_;
  for (int r = 0; r < in.rows; ++r) {
    KvCache *cache = model_.sequences.at(in.sequences[r]).get();
    if (r > 0 && cache == caches_.back())
      independent_ = false;
    else if (cache->last_pass == passes_)
      throw std::invalid_argument("rows of sequence " + std::to_string(in.sequences[r]) + " are not adjacent");
    cache->last_pass = passes_;
    caches_.push_back(cache);
  }
  grow();
  finite_ = true;
  damaged_ = false;
  pending_ = false;
  run_on_threads(pool);
  out.finite = finite_;
}

// All threads, unless somebody else keeps the CPUs busy: threads that wait for one that has no CPU are slower than one
// thread alone. Results do not depend on it.
void Workspace::run_on_threads(ThreadPool &pool) {
  threads_ = alone_left_ > 0 ? 1 : pool.size();
  barrier_.begin(threads_);
  queue_.begin(threads_);
  if (threads_ == 1) {
    alone_left_ = std::max(0, alone_left_ - 1);
    work(0);
    return;
  }
  const double start = now();
  double finished = 0; // by this thread
  pool.run([&](int t) {
    work(t);
    if (t == 0)
      finished = now();
  });
  const double end = now(), stalled = barrier_.stalled_seconds() + (end - finished);
  if (stalled < 0.3 * threads_ * (end - start)) {
    stalled_passes_ = alone_passes_ = 0;
  } else if (++stalled_passes_ >= 2) {
    alone_passes_ = std::clamp(2 * alone_passes_, 4, 64);
    alone_left_ = alone_passes_;
  }
}

void Workspace::check(const PassInput &in) const {
  auto refuse = [](const std::string &what, int row) { throw std::invalid_argument(what + " of row " + std::to_string(row)); };
  if (in.rows < 1)
    throw std::invalid_argument("a pass needs at least one row");
  for (int r = 0; r < in.rows; ++r) {
    if (in.tokens[r] < 0 || in.tokens[r] >= model_.vocab)
      refuse("unknown token " + std::to_string(in.tokens[r]), r);
    const auto found = model_.sequences.find(in.sequences[r]);
    if (found == model_.sequences.end())
      refuse("no KV cache for sequence " + std::to_string(in.sequences[r]), r);
    const int cells = found->second->cells();
    if (in.cells[r] < 0 || in.cells[r] >= cells || in.prefix[r] < 0 || in.prefix[r] > cells)
      refuse("cell or prefix outside the KV cache", r);
    if (in.positions[r] < 0 || in.positions[r] >= cells)
      refuse("position outside the KV cache", r);
    for (const RopeTable &rope : model_.ropes)
      if (in.positions[r] >= rope.positions())
        refuse("position outside the context", r);
    const int32_t *path = in.path + static_cast<size_t>(r) * static_cast<size_t>(in.path_width);
    for (int i = 0; i < in.path_width; ++i)
      if (path[i] >= cells)
        refuse("path cell outside the KV cache", r);
      else if (i > 0 && path[i] >= 0 && path[i - 1] < 0)
        refuse("path cell after the end of the path", r);
    if (in.prefix[r] == 0 && (in.path_width == 0 || path[0] < 0))
      refuse("nothing to attend to", r);
  }
  for (int q = 0; q < in.wanted_count; ++q)
    if (in.wanted[q] < 0 || in.wanted[q] >= in.rows)
      throw std::invalid_argument("wanted logits of a row that is not there");
  if (in.experts_per_tok < 0 || in.experts_per_tok > model_.experts_per_tok)
    throw std::invalid_argument("experts per token beyond the model's own");
  for (int l = 0; in.pool && l < model_.moe_layers; ++l) {
    const uint8_t *of_layer = in.pool + static_cast<size_t>(l * model_.experts);
    if (std::count(of_layer, of_layer + model_.experts, 0) > model_.experts - in.experts_per_tok)
      throw std::invalid_argument("the pool of layer " + std::to_string(l) + " has fewer experts than a token uses");
  }
  if (in.best < 0 || in.best > model_.vocab)
    throw std::invalid_argument("best logits beyond the vocabulary");
}

// Memory for every layer of this pass; nothing is allocated once the threads run.
void Workspace::grow() {
  const int R = in_->rows, D = model_.hidden;
  int inputs = D, qkv = 0, heads_width = 0, inner = 0, experts = 1, slots = R, attend = 0;
  for (const Layer &layer : model_.layers) {
    const Attention &a = layer.attention;
    inputs = std::max({inputs, a.out.inputs});
    qkv = std::max(qkv, a.qkv.outputs);
    heads_width = std::max(heads_width, a.heads * a.head_dim);
    inner = std::max(inner, layer.ffn.inner);
    experts = std::max(experts, layer.ffn.experts);
    slots = std::max(slots, R * layer.ffn.experts_per_tok);
    attend = std::max(attend, static_cast<int>(attend_scratch(a.heads / a.kv_heads, a.head_dim)));
  }
  width_ = padded(D);
  qkv_stride_ = padded(qkv);
  score_stride_ = padded(experts);
  const auto rows = static_cast<size_t>(R), all_slots = static_cast<size_t>(slots);
  x_.grow(rows * width_);
  normed_.grow(std::max(rows, static_cast<size_t>(in_->wanted_count)) * width_);
  qkv_.grow(rows * qkv_stride_);
  mixed_.grow(rows * static_cast<size_t>(heads_width));
  scores_.grow(rows * score_stride_);
  expert_out_.grow(all_slots * width_);
  packed_.grow(std::max(R, in_->wanted_count), inputs, max_rows_);
  inner_.grow(slots, inner, max_rows_);
  chosen_.grow(all_slots);
  slots_.grow(all_slots);
  weights_.grow(all_slots);
  slot_rows_.grow(all_slots);
  counts_.resize(static_cast<size_t>(experts) + 1);
  active_.reserve(static_cast<size_t>(experts));
  unchecked_.reserve(2 * static_cast<size_t>(experts));
  head_chunks_ = (model_.vocab + kHeadChunk - 1) / kHeadChunk;
  const size_t parts = static_cast<size_t>(in_->wanted_count) * static_cast<size_t>(head_chunks_);
  if (in_->best > 0) {
    part_best_ = static_cast<size_t>(std::min(in_->best, kHeadChunk));
    part_scores_.grow(parts * part_best_);
    part_tokens_.grow(parts * part_best_);
    part_max_.grow(parts);
    part_sum_.grow(parts);
  }
  // products: a unit of any matrix for a chunk of rows
  size_t widest = kHeadChunk;
  for (const Layer &layer : model_.layers) {
    widest = std::max(widest, static_cast<size_t>(unit_blocks(layer.attention.out, 1)) * kTileRows);
    widest = std::max(widest, static_cast<size_t>(unit_blocks(layer.ffn.gate_up[0], kGateBlocks)) * kTileRows);
  }
  for (OfThread &own : own_) {
    own.products.grow(widest * static_cast<size_t>(max_rows_) * 2);
    own.attention.grow(static_cast<size_t>(attend));
    own.expert_rows.grow(R, D, max_rows_);
    own.packed_expert = -1;
  }
}

void Workspace::work(int t) {
  if (t == 0)
    last_lap_ = now();
  embed(t);
  for (int index = 0; index < static_cast<int>(model_.layers.size()); ++index)
    if (!layer(index, t))
      return;
  if (in_->wanted_count > 0)
    head(t);
}

void Workspace::embed(int t) {
  const Matrix &e = model_.embedding;
  for (int r = t; r < in_->rows; r += threads_)
    k_.decode_row(e.msb, e.lsb, in_->tokens[r], e.inputs, x_row(r));
  lap(Phase::embed, t); // rows stay with their thread until they have been normed: no barrier
}

bool Workspace::layer(int index, int t) {
  const Layer &layer = model_.layers[static_cast<size_t>(index)];
  norm_rows(layer.attention_norm, t);
  barrier_.wait([&] { fill_units(layer.attention.qkv); });
  lap(Phase::norm, t);
  attention(index, t);
  norm_rows(layer.ffn_norm, t);
  barrier_.wait();
  lap(Phase::norm, t);
  if (!route(layer.ffn, t))
    return false;
  gate_up(layer.ffn, t);
  const Matrix &second = layer.ffn.down[0];
  barrier_.wait([&] {
    unit_ = unit_blocks(second, 1);
    const int units = units_of(second, unit_);
    queue_.fill(static_cast<int>(active_.size()) * units,
                [&](int task) { return std::max(active_[static_cast<size_t>(task / units)].count, 4); });
  });
  lap(Phase::gate_up, t);
  down(layer.ffn, t);
  barrier_.wait([&] { pending_ = true; });
  lap(Phase::down, t);
  return true;
}

void Workspace::fill_units(const Matrix &matrix) {
  unit_ = unit_blocks(matrix, 1);
  queue_.fill(units_of(matrix, unit_));
}

// --- attention ------------------------------------------------------------------------------------------------------

// Adds the experts' outputs of the layer before to y, in the order of their scores.
void Workspace::combine_row(int r, float *y) const {
  const float *outputs[64];
  const auto first = static_cast<size_t>(r * used_);
  for (int k = 0; k < used_; ++k)
    outputs[k] = &expert_out_[static_cast<size_t>(slots_[first + static_cast<size_t>(k)]) * width_];
  k_.combine(outputs, &weights_[first], used_, model_.hidden, y);
}

void Workspace::norm_rows(const Norm &norm, int t) {
  for (int r = t; r < in_->rows; r += threads_) {
    if (pending_)
      combine_row(r, x_row(r));
    k_.rms_norm(x_row(r), norm.weight, norm.eps, model_.hidden, normed_row(r));
    quantize_part(normed_row(r), model_.hidden, 0, r, in_->rows, packed_);
  }
}

void Workspace::attention(int index, int t) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  const int R = in_->rows;
  queue_.drain(t, [&](int unit) {
    const int b = unit * unit_, blocks = std::min(unit_, a.qkv.blocks() - b);
    for (int first = 0; first < R; first += max_rows_) {
      const int rows = chunk_rows(first, R);
      float *y = &qkv_[static_cast<size_t>(first) * qkv_stride_ + static_cast<size_t>(b) * kTileRows];
      k_.matmul(in_->bits, rows, a.qkv.msb_block(b), a.qkv.lsb_block(b), blocks, a.qkv.tiles(), packed_.chunk(first),
                y, qkv_stride_);
      add_bias(a.qkv, b, blocks, rows, y, qkv_stride_);
    }
  });
  auto share_heads = [&] {
    pending_ = false;
    queue_.fill(R * a.kv_heads, [&](int task) { return in_->prefix[task / a.kv_heads] + 32; });
  };
  if (!independent_) { // rows of one sequence see each other's keys: all are stored before any row looks
    barrier_.wait([&] { queue_.fill(R * a.kv_heads); });
    lap(Phase::qkv, t);
    queue_.drain(t, [&](int task) { store_keys(index, task / a.kv_heads, task % a.kv_heads); });
  }
  barrier_.wait(share_heads);
  lap(independent_ ? Phase::qkv : Phase::rope, t);

  const int width = a.heads / a.kv_heads * a.head_dim; // of the heads that share keys
  const bool whole_tiles = width % kTileInputs == 0;
  queue_.drain(t, [&](int task) {
    const int r = task / a.kv_heads, kv = task % a.kv_heads;
    const Attended seen = attended(index, r, kv);
    if (independent_) {
      k_.fetch(seen);
      store_keys(index, r, kv);
    }
    k_.attend(seen, a.heads / a.kv_heads, &qkv_[static_cast<size_t>(r) * qkv_stride_ + static_cast<size_t>(kv * width)],
              mixed_row(r, a) + kv * width, own_[static_cast<size_t>(t)].attention.data());
    if (whole_tiles)
      quantize_part(mixed_row(r, a) + kv * width, width, kv * width / kGroup, r, R, packed_);
  });
  if (!whole_tiles) {
    barrier_.wait();
    for (int r = t; r < R; r += threads_)
      quantize_part(mixed_row(r, a), a.out.inputs, 0, r, R, packed_);
  }
  barrier_.wait([&] { fill_units(a.out); });
  lap(Phase::attend, t);

  float *products = own_[static_cast<size_t>(t)].products.data();
  queue_.drain(t, [&](int unit) {
    const int b = unit * unit_, blocks = std::min(unit_, a.out.blocks() - b), columns = blocks * kTileRows;
    for (int first = 0; first < R; first += max_rows_) {
      const int rows = chunk_rows(first, R);
      k_.matmul(in_->bits, rows, a.out.msb_block(b), a.out.lsb_block(b), blocks, a.out.tiles(), packed_.chunk(first),
                products, static_cast<size_t>(columns));
      add_bias(a.out, b, blocks, rows, products, static_cast<size_t>(columns));
      for (int m = 0; m < rows; ++m)
        k_.add(products + static_cast<size_t>(m) * static_cast<size_t>(columns), columns,
               x_row(first + m) + static_cast<size_t>(b) * kTileRows);
    }
  });
  barrier_.wait();
  lap(Phase::out, t);
}

// Norms, rotates and stores what one row contributes to one key-value head; its query heads too.
void Workspace::store_keys(int index, int r, int kv) {
  const Attention &a = model_.layers[static_cast<size_t>(index)].attention;
  const RopeTable &rope = model_.ropes[static_cast<size_t>(a.rope)];
  const int d = a.head_dim, shared = a.heads / a.kv_heads, position = in_->positions[r], cell = in_->cells[r];
  const float *cosine = rope.cosines_at(position), *sine = rope.sines_at(position);
  float *row = &qkv_[static_cast<size_t>(r) * qkv_stride_];
  auto turn = [&](float *x, const Norm &norm, float factor) {
    if (norm.weight)
      k_.rms_norm(x, norm.weight, norm.eps, d, x);
    k_.rotate(cosine, sine, factor, d, x);
  };
  for (int h = kv * shared; h < (kv + 1) * shared; ++h)
    turn(row + h * d, a.query_norm, a.score_scale);
  float *key = row + (a.heads + kv) * d;
  turn(key, a.key_norm, 1.0f);
  const KvCache &cache = *caches_[static_cast<size_t>(r)];
  k_.store_key(key, d, cell, cache.keys(index, kv));
  k_.store_value(row + (a.heads + a.kv_heads + kv) * d, d,
                 cache.values(index, kv) + static_cast<size_t>(cell) * static_cast<size_t>(d));
}

Attended Workspace::attended(int index, int r, int kv) const {
  const KvCache &cache = *caches_[static_cast<size_t>(r)];
  Attended seen{cache.keys(index, kv), cache.values(index, kv), model_.layers[static_cast<size_t>(index)].attention.head_dim,
                in_->prefix[r], in_->path + static_cast<size_t>(r) * static_cast<size_t>(in_->path_width), 0};
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

// --- experts --------------------------------------------------------------------------------------------------------

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

// --- the head -------------------------------------------------------------------------------------------------------

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
    k_.rms_norm(y, model_.final_norm.weight, model_.final_norm.eps, model_.hidden, y);
    quantize_part(y, model_.hidden, 0, q, Q, packed_);
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
      for (int m = 0; m < rows; ++m)
        scan_head(first + m, chunk, products + static_cast<size_t>(m) * kHeadChunk, count);
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
    total += static_cast<double>(part_sum_[part]) * std::exp(static_cast<double>(part_max_[part]) - static_cast<double>(top));
  }
  out_->log_total[q] = static_cast<float>(static_cast<double>(top) + std::log(total));
}

} // namespace elmoe
