// A model as Python builds it up: views of its arrays, and one forward pass.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <unistd.h>

#include "model.h"
#include "pass.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace elmoe {

template <class T, int N> using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N> using Out = nb::ndarray<nb::numpy, T, nb::ndim<N>>;
using Bytes = In<uint8_t, 1>;
using Floats = In<float, 1>;

// A new NumPy array; its memory is owned by the array.
template <class T, int N> Out<T, N> make(std::initializer_list<size_t> shape) {
  size_t count = 1;
  for (size_t n : shape)
    count *= n;
  T *data = new T[count ? count : 1]();
  nb::capsule owner(data, [](void *p) noexcept { delete[] static_cast<T *>(p); });
  return Out<T, N>(data, shape, owner);
}

inline void require(bool holds, const char *what) {
  if (!holds)
    throw std::invalid_argument(what);
}

inline void check_aligned(const void *p) {
  if (reinterpret_cast<uintptr_t>(p) % 64)
    throw std::invalid_argument("planes must begin at a multiple of 64 bytes");
}

inline bool has(const Floats &vector, int count) { return vector.size() == static_cast<size_t>(count); }

// Planes of a matrix, kept alive with the arrays that they come from.
struct BoundMatrix {
  Matrix matrix;
  Bytes msb, lsb;
  std::optional<Floats> bias;

  BoundMatrix(Bytes msb_plane, Bytes lsb_plane, int outputs, int inputs, std::optional<Floats> bias_vector, bool mxfp4)
      : msb(msb_plane), lsb(lsb_plane), bias(bias_vector) {
    if (outputs < 1 || inputs < kGroup || inputs % kGroup)
      throw std::invalid_argument("a matrix needs outputs >= 1 and inputs a multiple of 32");
    matrix = {msb.data(), lsb.data(), outputs, inputs, bias ? bias->data() : nullptr, mxfp4};
    require(msb.size() == matrix.msb_bytes() && lsb.size() == matrix.lsb_bytes(), "planes do not fit the matrix");
    require(!bias || has(*bias, outputs), "the bias does not fit the matrix");
    check_aligned(msb.data());
    if (!mxfp4)
      check_aligned(lsb.data());
  }
};

inline WeightBits weight_bits(int kind, int keep, int set) {
  return {static_cast<WeightBits::Kind>(kind), static_cast<uint8_t>(keep), static_cast<uint8_t>(set)};
}

class BoundModel {
public:
  BoundModel(int vocab, int hidden, int moe_layers, int experts, int experts_per_tok) {
    if (hidden % kGroup || experts_per_tok > kMostExpertsPerTok)
      throw std::invalid_argument("hidden size must be a multiple of 32, experts per token at most 64");
    model_.vocab = vocab;
    model_.hidden = hidden;
    model_.moe_layers = moe_layers;
    model_.experts = experts;
    model_.experts_per_tok = experts_per_tok;
    model_.kernels = &kernels();
  }

  void set_embedding(const BoundMatrix &m) { model_.embedding = keep(m); }
  void set_head(const BoundMatrix &m, Floats norm, float eps) {
    model_.head = keep(m);
    model_.final_norm = {keep(norm), eps};
  }
  int add_rope() {
    model_.ropes.emplace_back();
    return static_cast<int>(model_.ropes.size()) - 1;
  }
  // Appends angles of the next positions: cos and sin [2][positions][head_dim / 2].
  void extend_rope(int rope, In<float, 3> angles) {
    const Alone alone(*this);
    RopeTable &table = model_.ropes.at(static_cast<size_t>(rope));
    const size_t count = angles.shape(1) * angles.shape(2);
    table.half = static_cast<int>(angles.shape(2));
    table.cosines.insert(table.cosines.end(), angles.data(), angles.data() + count);
    table.sines.insert(table.sines.end(), angles.data() + count, angles.data() + 2 * count);
  }
  void set_scales(float embedding, float residual, float logit_divisor) {
    model_.embedding_scale = embedding;
    model_.residual_scale = residual;
    model_.logit_divisor = logit_divisor;
  }
  void add_layer(Floats attention_norm, float attention_eps, Floats ffn_norm, float ffn_eps) {
    Layer layer;
    layer.attention_norm = {keep(attention_norm), attention_eps};
    layer.ffn_norm = {keep(ffn_norm), ffn_eps};
    model_.layers.push_back(std::move(layer));
  }
  // Of the layer added last, as everything that follows.
  void set_grouped_attention(const BoundMatrix &qkv, const BoundMatrix &out, int heads, int kv_heads, int head_dim,
                             int rope, float score_scale, std::optional<Floats> query_norm,
                             std::optional<Floats> key_norm, float head_eps, float clip, int window,
                             std::optional<Floats> sinks) {
    require(heads % kv_heads == 0 && head_dim % 2 == 0, "heads must be a multiple of kv heads, head_dim of 2");
    require(fits(qkv, (heads + 2 * kv_heads) * head_dim, model_.hidden) && fits(out, model_.hidden, heads * head_dim),
            "a projection does not fit the heads");
    require(!sinks || has(*sinks, heads), "sinks do not fit the heads");
    require_rope(rope);
    Attention &a = model_.layers.back().attention;
    a.input = keep(qkv);
    a.out = keep(out);
    a.heads = heads;
    a.kv_heads = kv_heads;
    a.head_dim = head_dim;
    a.rope = rope;
    a.score_scale = score_scale;
    auto norm = [&](const std::optional<Floats> &vector, int of_heads) -> Norm {
      if (!vector)
        return {};
      a.whole_norms |= !has(*vector, head_dim);
      require(has(*vector, a.whole_norms ? of_heads * head_dim : head_dim), "a norm fits neither one head nor all");
      if (a.whole_norms || !a.padded())
        return {keep(*vector), head_eps};
      model_.padded_norms.emplace_back(vector->data(), vector->data() + head_dim); // zeros behind it
      model_.padded_norms.back().resize(static_cast<size_t>(a.key_dim()));
      return {model_.padded_norms.back().data(), head_eps};
    };
    a.query_norm = norm(query_norm, heads);
    a.key_norm = norm(key_norm, kv_heads);
    a.clip = clip;
    a.window = window;
    a.sinks = keep_or_null(sinks);
  }
  void set_latent_attention(const BoundMatrix &down, std::optional<Floats> query_norm, float query_eps,
                            std::optional<const BoundMatrix *> query_up, Floats latent_norm, float latent_eps,
                            const BoundMatrix &key_up, const BoundMatrix &value_up, const BoundMatrix &out, int heads,
                            int nope_dim, int rope_dim, int latent_dim, int value_dim, int rope, float score_scale) {
    require(latent_dim % kGroup == 0 && rope_dim % 2 == 0, "latent_dim must be a multiple of 32, rope_dim of 2");
    const int width = heads * (nope_dim + rope_dim), part = down.matrix.outputs - latent_dim - rope_dim;
    require(down.matrix.inputs == model_.hidden && (query_up ? part > 0 : part == width),
            "the first projection does not fit queries and latents");
    require(!query_up || fits(**query_up, width, part), "the second projection does not fit the queries");
    require(fits(key_up, heads * latent_dim, static_cast<int>(padded_to(nope_dim, kGroup))) &&
                fits(value_up, heads * value_dim, latent_dim) && fits(out, model_.hidden, heads * value_dim),
            "a projection does not fit heads and latents");
    require(has(latent_norm, latent_dim) && (!query_norm || has(*query_norm, part)), "a norm does not fit its vector");
    require_rope(rope);
    Attention &a = model_.layers.back().attention;
    a.latent = true;
    a.input = keep(down);
    if (query_up)
      a.query_up = keep(**query_up);
    if (query_norm)
      a.query_norm = {keep(*query_norm), query_eps};
    a.latent_norm = {keep(latent_norm), latent_eps};
    a.key_up = keep(key_up);
    a.value_up = keep(value_up);
    a.out = keep(out);
    a.heads = heads;
    a.nope_dim = nope_dim;
    a.rope_dim = rope_dim;
    a.latent_dim = latent_dim;
    a.value_dim = value_dim;
    a.rope = rope;
    a.score_scale = score_scale;
  }
  void set_mlp(const BoundMatrix &gate_up, const BoundMatrix &down) {
    require_gated(gate_up, down);
    Feedforward &f = model_.layers.back().ffn;
    f.gate_up = {keep(gate_up)};
    f.down = {keep(down)};
  }
  void set_router(int moe_layer, In<float, 2> weight, std::optional<Floats> bias, std::optional<Floats> correction,
                  int experts_per_tok, bool sigmoid, bool renormalize, float scale, int groups, int groups_kept,
                  bool best_two) {
    Feedforward &f = model_.layers.back().ffn;
    f.experts = static_cast<int>(weight.shape(0));
    require(f.experts == model_.experts && weight.shape(1) == static_cast<size_t>(model_.hidden) &&
                (!bias || has(*bias, f.experts)) && (!correction || has(*correction, f.experts)),
            "the router does not fit the model");
    require(groups >= 1 && groups <= kMostGroups && f.experts % groups == 0 && groups_kept >= 1 &&
                groups_kept <= groups,
            "the experts do not divide into the router's groups");
    arrays_.push_back(nb::cast(weight));
    f.router = weight.data();
    f.router_bias = keep_or_null(bias);
    f.correction = keep_or_null(correction);
    f.experts_per_tok = experts_per_tok;
    f.sigmoid = sigmoid;
    f.renormalize = renormalize;
    f.scale = scale;
    f.groups = groups;
    f.groups_kept = groups_kept;
    f.best_two = best_two;
    f.moe_layer = moe_layer;
  }
  // Records of all experts in one file each: [MSB tiles of gate_up, of down], the same for the LSBs. Biases are of all
  // experts, one after the other. limit > 0: the clamped SwiGLU.
  // Without files the records come from the store.
  void set_experts(int inner, bool mxfp4, std::optional<Bytes> msb_file, std::optional<Bytes> lsb_file,
                   In<int64_t, 1> msb_offsets, In<int64_t, 1> lsb_offsets, In<uint32_t, 1> msb_crc,
                   In<uint32_t, 1> lsb_crc, std::optional<In<float, 2>> gate_up_bias,
                   std::optional<In<float, 2>> down_bias, float alpha, float limit) {
    Feedforward &f = model_.layers.back().ffn;
    const auto count = static_cast<size_t>(f.experts);
    require(msb_offsets.size() == count && lsb_offsets.size() == count && msb_crc.size() == count &&
                lsb_crc.size() == count,
            "a record is missing");
    f.alpha = alpha;
    f.limit = limit;
    require(msb_file.has_value() == lsb_file.has_value(), "both files or none");
    if (msb_file) {
      arrays_.push_back(nb::cast(*msb_file));
      arrays_.push_back(nb::cast(*lsb_file));
    }
    const Matrix up{nullptr, nullptr, 2 * inner, model_.hidden, nullptr, mxfp4};
    const Matrix down{nullptr, nullptr, model_.hidden, inner, nullptr, mxfp4};
    auto bias = [&](const std::optional<In<float, 2>> &vectors, size_t e, const Matrix &of) -> const float * {
      if (!vectors)
        return nullptr;
      require(vectors->shape(0) == count && vectors->shape(1) == static_cast<size_t>(of.outputs),
              "the biases do not fit the experts");
      if (e == 0)
        arrays_.push_back(nb::cast(*vectors));
      return vectors->data() + e * static_cast<size_t>(of.outputs);
    };
    for (size_t e = 0; e < count; ++e) {
      Matrix first = up, second = down;
      first.bias = bias(gate_up_bias, e, up);
      second.bias = bias(down_bias, e, down);
      if (msb_file) {
        const auto msb_at = static_cast<size_t>(msb_offsets.data()[e]);
        const auto lsb_at = static_cast<size_t>(lsb_offsets.data()[e]);
        require(msb_at + up.msb_bytes() + down.msb_bytes() <= msb_file->size() &&
                    lsb_at + up.lsb_bytes() + down.lsb_bytes() <= lsb_file->size(),
                "an expert's record lies outside its file");
        first.msb = msb_file->data() + msb_at;
        first.lsb = lsb_file->data() + lsb_at;
        second.msb = first.msb + up.msb_bytes();
        second.lsb = first.lsb + up.lsb_bytes();
        check_aligned(first.msb);
        if (!mxfp4)
          check_aligned(first.lsb);
      }
      f.gate_up.push_back(first);
      f.down.push_back(second);
    }
    msb_offsets_.insert(msb_offsets_.end(), msb_offsets.data(), msb_offsets.data() + count);
    lsb_offsets_.insert(lsb_offsets_.end(), lsb_offsets.data(), lsb_offsets.data() + count);
    f.msb_crc.assign(msb_crc.data(), msb_crc.data() + count);
    f.lsb_crc.assign(lsb_crc.data(), lsb_crc.data() + count);
    f.msb_seen.assign(count, 0);
    f.lsb_seen.assign(count, mxfp4); // there is nothing to check
  }
  void set_shared_experts(const BoundMatrix &gate_up, const BoundMatrix &down, std::optional<Floats> gate) {
    require_gated(gate_up, down);
    require(!gate || has(*gate, model_.hidden), "the gate of the shared experts does not fit");
    Feedforward &f = model_.layers.back().ffn;
    f.gate_up.push_back(keep(gate_up));
    f.down.push_back(keep(down));
    f.shared = true;
    f.shared_gate = keep_or_null(gate);
  }

  // After all layers, whose experts were set without files. Takes over the descriptors.
  void set_store(int msb_file, int lsb_file, bool direct, size_t segment_bytes, int segments, int staging,
                 const std::string &reader) {
    StorePlan plan;
    plan.layers = model_.moe_layers;
    plan.experts = model_.experts;
    plan.files = {msb_file, lsb_file};
    plan.direct = direct;
    plan.offsets = {msb_offsets_, lsb_offsets_};
    plan.segment_bytes = segment_bytes;
    plan.segments = segments;
    plan.staging = staging;
    plan.reader = reader;
    for (const Layer &layer : model_.layers)
      if (const Feedforward &f = layer.ffn; f.experts > 0) {
        plan.bytes = {f.gate_up[0].msb_bytes() + f.down[0].msb_bytes(), f.gate_up[0].lsb_bytes() + f.down[0].lsb_bytes()};
        plan.crcs[0].insert(plan.crcs[0].end(), f.msb_crc.begin(), f.msb_crc.end());
        plan.crcs[1].insert(plan.crcs[1].end(), f.lsb_crc.begin(), f.lsb_crc.end());
      }
    model_.store = std::make_unique<ExpertStore>(std::move(plan));
  }
  void arrange_store(In<int32_t, 2> quotas) {
    const Alone alone(*this);
    require(quotas.shape(0) == kPlanes && quotas.shape(1) == static_cast<size_t>(model_.moe_layers),
            "quotas are of planes and layers");
    nb::gil_scoped_release others_may_run;
    store().arrange(quotas.data());
  }
  // [planes, layers, experts]
  Out<bool, 3> kept() {
    const auto layers = static_cast<size_t>(model_.moe_layers), experts = static_cast<size_t>(model_.experts);
    auto kept = make<bool, 3>({kPlanes, layers, experts});
    bool *to = kept.data();
    for (int p = 0; p < kPlanes; ++p)
      for (int l = 0; l < model_.moe_layers; ++l)
        for (int e = 0; e < model_.experts; ++e)
          *to++ = store().kept(p, l, e);
    return kept;
  }
  std::string store_reader() {
    return std::string(store().reader()) + (store().registered() ? " with registered buffers" : "");
  }
  nb::dict store_counters() {
    const StoreCounters &c = store().counters;
    nb::dict counters;
    counters["bytes_read"] = c.bytes_read;
    counters["reads"] = c.reads;
    counters["msb_hits"] = c.hits[0];
    counters["msb_misses"] = c.misses[0];
    counters["lsb_hits"] = c.hits[1];
    counters["lsb_misses"] = c.misses[1];
    counters["prefetched"] = c.prefetched;
    counters["prefetch_used"] = c.prefetch_used;
    counters["admitted"] = c.admitted;
    counters["wait_seconds"] = c.wait_seconds;
    return counters;
  }

  void allocate(int sequence, int cells) {
    const Alone alone(*this);
    if (cells < 1)
      throw std::invalid_argument("a KV cache needs at least one cell");
    model_.sequences[sequence] = std::make_unique<KvCache>(model_.layers, cells);
  }
  void release(int sequence) {
    const Alone alone(*this);
    model_.sequences.erase(sequence);
  }
  void move(int sequence, In<int32_t, 1> source, In<int32_t, 1> destination) {
    const Alone alone(*this);
    const auto found = model_.sequences.find(sequence);
    if (found == model_.sequences.end() || source.size() != destination.size())
      throw std::invalid_argument("no such sequence, or unequal numbers of cells");
    for (size_t i = 0; i < source.size(); ++i)
      for (int32_t cell : {source.data()[i], destination.data()[i]})
        if (cell < 0 || cell >= found->second->cells())
          throw std::invalid_argument("cell " + std::to_string(cell) + " is outside the KV cache");
    found->second->move(source.data(), destination.data(), static_cast<int>(source.size()));
  }

  void copy(int source, int destination, int cells) {
    const Alone alone(*this);
    const auto from = model_.sequences.find(source), to = model_.sequences.find(destination);
    if (from == model_.sequences.end() || to == model_.sequences.end())
      throw std::invalid_argument("no such sequence");
    if (cells < 0 || cells > from->second->cells() || cells > to->second->cells())
      throw std::invalid_argument("cell " + std::to_string(cells) + " is outside the KV cache");
    nb::gil_scoped_release others_may_run;
    to->second->take(*from->second, cells);
  }

  nb::tuple forward(In<int32_t, 1> tokens, In<int32_t, 1> sequences, In<int32_t, 1> positions, In<int32_t, 1> cells,
                    In<int32_t, 1> prefix, In<int32_t, 2> path, In<int32_t, 1> wanted,
                    std::optional<In<bool, 2>> pool, std::tuple<int, int, int> bits, int experts_per_tok, int best,
                    std::optional<In<float, 4>> values, std::optional<In<uint8_t, 2>> expected) {
    const Alone alone(*this);
    const size_t rows = tokens.size();
    for (size_t n : {sequences.size(), positions.size(), cells.size(), prefix.size(), path.shape(0)})
      if (n != rows)
        throw std::invalid_argument("the arrays of a pass must have one entry per row");
    const auto layers = static_cast<size_t>(model_.moe_layers), count = static_cast<size_t>(model_.experts);
    if (pool && (pool->shape(0) != layers || pool->shape(1) != count))
      throw std::invalid_argument("the pool does not have the model's layers and experts");
    require(!values || (values->shape(0) == 2 && values->shape(1) == kPlanes && values->shape(2) == layers &&
                        values->shape(3) == count),
            "values must be of [2, planes, layers, experts]");
    require(!expected || (expected->shape(0) == layers && expected->shape(1) == count),
            "expected must be of [layers, experts]");
    PassInput in;
    in.values = values ? values->data() : nullptr;
    in.fresh = values ? values->data() + kPlanes * layers * count : nullptr;
    in.expected = expected ? expected->data() : nullptr;
    in.rows = static_cast<int>(rows);
    in.wanted_count = static_cast<int>(wanted.size());
    in.path_width = static_cast<int>(path.shape(1));
    in.tokens = tokens.data();
    in.sequences = sequences.data();
    in.positions = positions.data();
    in.cells = cells.data();
    in.prefix = prefix.data();
    in.path = path.data();
    in.wanted = wanted.data();
    in.pool = pool ? reinterpret_cast<const uint8_t *>(pool->data()) : nullptr;
    in.bits = weight_bits(std::get<0>(bits), std::get<1>(bits), std::get<2>(bits));
    in.experts_per_tok = experts_per_tok;
    in.best = best;
    const auto Q = wanted.size(), K = static_cast<size_t>(best < 0 ? 0 : best), V = static_cast<size_t>(model_.vocab);
    auto logits = make<float, 2>({K ? 0 : Q, V});
    auto best_tokens = make<int32_t, 2>({Q, K});
    auto best_logits = make<float, 2>({Q, K});
    auto log_total = make<float, 1>({K ? Q : 0});
    auto experts = make<int16_t, 3>({rows, layers, static_cast<size_t>(model_.experts_per_tok)});
    auto read = make<bool, 2>({layers, count});
    PassOutput out;
    out.logits = logits.data();
    out.best_tokens = best_tokens.data();
    out.best_logits = best_logits.data();
    out.log_total = log_total.data();
    out.experts = experts.data();
    out.read = reinterpret_cast<uint8_t *>(read.data());
    {
      nb::gil_scoped_release others_may_run;
      ThreadPool &threads = ThreadPool::shared();
      if (pool_ != &threads) { // the first pass, or the first in a forked child
        workspace_ = std::make_unique<Workspace>(model_, threads.size());
        pool_ = &threads;
      }
      workspace_->run(in, out, threads);
    }
    nb::object fault = nb::none();
    if (out.fault.plane >= 0)
      fault = nb::make_tuple(out.fault.plane ? "lsb" : "msb", out.fault.layer, out.fault.expert, out.fault.error,
                             out.fault_rows);
    return nb::make_tuple(logits, best_tokens, best_logits, log_total, experts, read, out.finite, fault);
  }

  nb::dict phase_seconds() const {
    static constexpr const char *names[] = {"embed", "norm",  "qkv",     "rope", "attend",
                                            "out",   "route", "gate_up", "down", "fetch", "head"};
    nb::dict seconds;
    for (size_t i = 0; i < static_cast<size_t>(Phase::count); ++i)
      seconds[names[i]] = workspace_ ? workspace_->seconds[i] : 0.0;
    return seconds;
  }
  const char *isa() const { return model_.kernels->name; }

private:
  // A model is used by one thread at a time; a second one is told so instead of being let in.
  class Alone {
  public:
    explicit Alone(BoundModel &model) : model_(model) {
      const pid_t self = getpid();
      if (model.user_.exchange(self) == self) {
        throw std::runtime_error("the model is in use by another thread; give each thread an engine of its own");
      }
    }
    ~Alone() { model_.user_ = 0; }
    Alone(const Alone &) = delete;
    Alone &operator=(const Alone &) = delete;

  private:
    BoundModel &model_;
  };

  ExpertStore &store() {
    if (!model_.store)
      throw std::invalid_argument("the model has no store");
    return *model_.store;
  }
  static bool fits(const BoundMatrix &m, int outputs, int inputs) {
    return m.matrix.outputs == outputs && m.matrix.inputs == inputs && !m.matrix.mxfp4;
  }
  void require_gated(const BoundMatrix &gate_up, const BoundMatrix &down) const {
    const int inner = down.matrix.inputs;
    require(fits(gate_up, 2 * inner, model_.hidden) && fits(down, model_.hidden, inner),
            "an MLP does not fit the model");
  }
  void require_rope(int rope) const {
    require(rope >= 0 && rope < static_cast<int>(model_.ropes.size()), "there is no such rotary embedding");
  }

  Matrix keep(const BoundMatrix &m) {
    arrays_.push_back(nb::cast(m.msb));
    arrays_.push_back(nb::cast(m.lsb));
    if (m.bias)
      keep(*m.bias);
    return m.matrix;
  }
  const float *keep_or_null(const std::optional<Floats> &vector) { return vector ? keep(*vector) : nullptr; }
  const float *keep(const Floats &vector) {
    arrays_.push_back(nb::cast(vector));
    return vector.data();
  }

  Model model_;
  std::vector<int64_t> msb_offsets_, lsb_offsets_; // of all experts, for the store
  std::vector<nb::object> arrays_; // what the pointers of model_ point into
  std::unique_ptr<Workspace> workspace_;
  ThreadPool *pool_ = nullptr;    // that workspace_ was made for
  std::atomic<pid_t> user_{0};    // process that has a call running; a forked child finds its parent's
};

} // namespace elmoe
