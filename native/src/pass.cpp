#include "pass.h"

#include <algorithm>
#include <stdexcept>

#include "units.h"

namespace elmoe {

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
      own_(static_cast<size_t>(threads)) {
  guesses_right_.fill(1);
}

void Workspace::lap(Phase phase, int t) {
  if (t != 0)
    return;
  const double time = now();
  seconds[static_cast<size_t>(phase)] += time - last_lap_;
  last_lap_ = time;
}

// `inputs` values, from group `group` of row r on, of `rows` rows.
void Workspace::quantize_part(const float *x, int inputs, int group, int r, int rows, const Packed &into,
                              int32_t excess) const {
  const int first = chunk_first(r), together = chunk_rows(first, rows);
  k_.quantize(x, inputs, excess, r - first, together, from_group(into.chunk(first), group, together));
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
  give_up_ = false;
  pending_ = false;
  ExpertStore *store = model_.store.get();
  if (store) {
    store->begin_pass(in.values, in.fresh);
    ranked_.clear();
    for (const Layer &layer : model_.layers)
      if (layer.ffn.experts > 0) {
        expect_listed(layer.ffn);
        break;
      }
  }
  run_on_threads(pool);
  if (store && damaged_)
    store->abort(out.fault);
  else if (store)
    store->end_pass();
  out.finite = finite_;
}

// All threads, unless somebody else keeps the CPUs busy: threads that wait for one that has no CPU are slower than one
// thread alone. Results do not depend on it.
void Workspace::run_on_threads(ThreadPool &pool) {
  threads_ = alone_left_ > 0 ? 1 : pool.size();
  barrier_.begin(threads_, model_.store && !in_->pool);
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
  auto refuse = [](const std::string &what, int row) {
    throw std::invalid_argument(what + " of row " + std::to_string(row));
  };
  if (in.rows < 1)
    throw std::invalid_argument("a pass needs at least one row");
  int smallest_window = 0; // 0: none
  for (const Layer &layer : model_.layers)
    if (const int window = layer.attention.window; window && (!smallest_window || window < smallest_window))
      smallest_window = window;
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
    int seen = in.prefix[r];
    for (int i = 0; i < in.path_width && path[i] >= 0; ++i)
      ++seen;
    if (seen == 0 || (smallest_window && in.positions[r] - smallest_window >= seen - 1))
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
  for (size_t i = 0; in.pool && model_.store && i < static_cast<size_t>(model_.moe_layers * model_.experts); ++i)
    if (const int at = static_cast<int>(i); in.pool[i] && !model_.store->kept(0, at / model_.experts, at % model_.experts))
      throw std::invalid_argument("the pool has an expert that is not in fast memory");
  if (model_.store && (!in.values || !in.fresh))
    throw std::invalid_argument("a pass over a model with a store needs values");
  if (in.best < 0 || in.best > model_.vocab)
    throw std::invalid_argument("best logits beyond the vocabulary");
}

// Memory for every layer of this pass; nothing is allocated once the threads run.
void Workspace::grow() {
  const int R = in_->rows, D = model_.hidden;
  int inputs = D, qkv = 0, mixed = 0, queries = 0, carried = 0, values = 0, inner = 0, experts = 1, used = 1, head = 0;
  size_t attend = 0, widest = kHeadChunk;
  bool any_mxfp4 = false;
  for (const Layer &layer : model_.layers) {
    const Attention &a = layer.attention;
    const Feedforward &f = layer.ffn;
    inputs = std::max({inputs, a.out.inputs, a.query_up.inputs});
    qkv = std::max(qkv, a.input.outputs + kTileRows); // a latent is stored with its padding
    mixed = std::max(mixed, a.heads * a.mixed_dim());
    if (a.latent) {
      queries = std::max(queries, a.query_up.outputs);
      carried = std::max(carried, a.heads * a.key_dim());
      values = std::max(values, a.out.inputs);
      widest = std::max(widest, padded(a.value_dim) + kTileRows);
      head = std::max({head, a.key_up.inputs, a.value_up.inputs});
    }
    if (a.padded()) {
      carried = std::max(carried, (a.heads + 2 * a.kv_heads) * a.key_dim());
      values = std::max(values, a.out.inputs);
    }
    inner = std::max({inner, f.down.front().inputs, f.down.back().inputs}); // an expert's, the shared experts'
    experts = std::max(experts, static_cast<int>(f.gate_up.size()));
    used = std::max(used, (f.experts ? f.experts_per_tok : 1) + f.shared);
    any_mxfp4 |= f.mxfp4();
    attend = std::max(attend, attend_scratch(a.heads_together(), a.key_dim()));
    // products: a unit of any matrix for a chunk of rows
    widest = std::max(widest, static_cast<size_t>(unit_blocks(a.out, 1)) * kTileRows);
    for (const Matrix *m : {&f.gate_up.front(), &f.gate_up.back()})
      widest = std::max(widest, static_cast<size_t>(unit_blocks(*m, kGateBlocks)) * kTileRows);
  }
  width_ = padded(D);
  qkv_stride_ = padded(qkv);
  query_stride_ = padded(queries);
  score_stride_ = padded(experts);
  const auto rows = static_cast<size_t>(R), slots = rows * static_cast<size_t>(used);
  x_.grow(rows * width_);
  normed_.grow(std::max(rows, static_cast<size_t>(in_->wanted_count)) * width_);
  qkv_.grow(rows * qkv_stride_);
  mixed_.grow(rows * static_cast<size_t>(mixed));
  queries_.grow(rows * query_stride_);
  carried_.grow(rows * static_cast<size_t>(carried));
  values_.grow(rows * static_cast<size_t>(values));
  scores_.grow(rows * score_stride_ * 2);
  expert_out_.grow(slots * width_);
  packed_.grow(std::max(R, in_->wanted_count), inputs, max_rows_);
  if (any_mxfp4)
    packed_mxfp4_.grow(R, D, max_rows_);
  inner_.grow(static_cast<int>(slots), inner, max_rows_);
  chosen_.grow(slots);
  slots_.grow(slots);
  weights_.grow(slots);
  slot_rows_.grow(slots);
  counts_.resize(static_cast<size_t>(experts) + 1);
  active_.reserve(static_cast<size_t>(experts) + 1);
  if (model_.store)
    ahead_.grow(width_ + score_stride_);
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
  for (OfThread &own : own_) {
    own.products.grow(widest * static_cast<size_t>(max_rows_) * 2);
    own.attention.grow(attend);
    own.expert_rows.grow(R, D, max_rows_);
    if (head) {
      own.head.grow(static_cast<size_t>(head));
      own.head_rows.grow(max_rows_, head, max_rows_);
    }
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
  for (int r = t; r < in_->rows; r += threads_) {
    k_.decode_row(e.msb, e.lsb, in_->tokens[r], e.inputs, x_row(r));
    if (model_.embedding_scale != 1)
      k_.scale(model_.embedding_scale, model_.hidden, x_row(r));
  }
  lap(Phase::embed, t); // rows stay with their thread until they have been normed: no barrier
}

bool Workspace::layer(int index, int t) {
  const Layer &layer = model_.layers[static_cast<size_t>(index)];
  norm_rows(layer.attention_norm, true, false, t);
  barrier_.wait([&] { fill_units(layer.attention.input); });
  lap(Phase::norm, t);
  attention(index, t);
  norm_rows(layer.ffn_norm, !layer.ffn.mxfp4() || layer.ffn.shared, layer.ffn.mxfp4(), t);
  barrier_.wait();
  lap(Phase::norm, t);
  if (t == 0)
    index_ = index; // read after the next barrier
  return route(layer.ffn, t) && experts(layer.ffn, t);
}

void Workspace::fill_units(const Matrix &matrix) {
  unit_ = unit_blocks(matrix, 1);
  queue_.fill(units_of(matrix, unit_));
}

} // namespace elmoe
