// What Python sees: a model built up once, a forward pass, and kernels one by one for tests and benchmarks.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <unistd.h>

#include "crc32.h"
#include "model.h"
#include "pass.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace elmoe {
namespace {

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

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void check_aligned(const void *p) {
  if (reinterpret_cast<uintptr_t>(p) % 64)
    throw std::invalid_argument("planes must begin at a multiple of 64 bytes");
}

// Planes of a matrix, kept alive with the arrays that they come from.
struct BoundMatrix {
  Matrix matrix;
  Bytes msb, lsb;
  std::optional<Floats> bias;

  BoundMatrix(Bytes msb_plane, Bytes lsb_plane, int outputs, int inputs, std::optional<Floats> bias_vector)
      : msb(msb_plane), lsb(lsb_plane), bias(bias_vector) {
    if (outputs < 1 || inputs < kGroup || inputs % kGroup)
      throw std::invalid_argument("a matrix needs outputs >= 1 and inputs a multiple of 32");
    matrix = {msb.data(), lsb.data(), outputs, inputs, bias ? bias->data() : nullptr};
    const size_t tiles = static_cast<size_t>(matrix.blocks()) * static_cast<size_t>(matrix.tiles());
    if (msb.size() != tiles * kMsbTileBytes || lsb.size() != tiles * kLsbTileBytes)
      throw std::invalid_argument("planes do not fit the matrix");
    if (bias && bias->size() != static_cast<size_t>(outputs))
      throw std::invalid_argument("the bias does not fit the matrix");
    check_aligned(msb.data());
    check_aligned(lsb.data());
  }
};

WeightBits weight_bits(int kind, int keep, int set) {
  return {static_cast<WeightBits::Kind>(kind), static_cast<uint8_t>(keep), static_cast<uint8_t>(set)};
}

const Kernels &kernels_named(const std::string &isa) {
  if (isa.empty())
    return kernels();
  if (const Kernels *found = find_kernels(isa.c_str()))
    return *found;
  throw std::invalid_argument("this machine has no kernels named " + isa);
}

class BoundModel {
public:
  BoundModel(int vocab, int hidden, int moe_layers, int experts, int experts_per_tok) {
    if (hidden % kGroup || experts_per_tok > 64)
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
    RopeTable &table = model_.ropes.at(static_cast<size_t>(rope));
    const size_t count = angles.shape(1) * angles.shape(2);
    table.half = static_cast<int>(angles.shape(2));
    table.cosines.insert(table.cosines.end(), angles.data(), angles.data() + count);
    table.sines.insert(table.sines.end(), angles.data() + count, angles.data() + 2 * count);
  }
  void add_layer(Floats attention_norm, float attention_eps, const BoundMatrix &qkv, const BoundMatrix &out, int heads,
                 int kv_heads, int head_dim, int rope, std::optional<Floats> query_norm,
                 std::optional<Floats> key_norm, float head_eps, Floats ffn_norm, float ffn_eps) {
    if (heads % kv_heads || head_dim % 32)
      throw std::invalid_argument("heads must be a multiple of kv heads, head_dim a multiple of 32");
    Layer layer;
    layer.attention_norm = {keep(attention_norm), attention_eps};
    layer.ffn_norm = {keep(ffn_norm), ffn_eps};
    Attention &a = layer.attention;
    a = {keep(qkv), keep(out), heads, kv_heads, head_dim, {}, {}, rope, static_cast<float>(std::pow(head_dim, -0.5))};
    if (query_norm)
      a.query_norm = {keep(*query_norm), head_eps};
    if (key_norm)
      a.key_norm = {keep(*key_norm), head_eps};
    model_.layers.push_back(std::move(layer));
  }
  void set_mlp(const BoundMatrix &gate_up, const BoundMatrix &down) {
    Feedforward &f = model_.layers.back().ffn;
    f.gate_up = {keep(gate_up)};
    f.down = {keep(down)};
    f.inner = down.matrix.inputs;
  }
  // Records of all experts in one file each: [MSB tiles of gate_up, of down], the same for the LSBs.
  void set_experts(int moe_layer, In<float, 2> router, int experts_per_tok, bool renormalize, int inner, Bytes msb_file,
                   Bytes lsb_file, In<int64_t, 1> msb_offsets, In<int64_t, 1> lsb_offsets, In<uint32_t, 1> msb_crc,
                   In<uint32_t, 1> lsb_crc) {
    Feedforward &f = model_.layers.back().ffn;
    const auto count = router.shape(0);
    f.experts = static_cast<int>(count);
    f.experts_per_tok = experts_per_tok;
    f.renormalize = renormalize;
    f.router = router.data();
    f.moe_layer = moe_layer;
    f.inner = inner;
    arrays_.push_back(nb::cast(router));
    arrays_.push_back(nb::cast(msb_file));
    arrays_.push_back(nb::cast(lsb_file));
    const Matrix up{nullptr, nullptr, 2 * inner, model_.hidden, nullptr}, down{nullptr, nullptr, model_.hidden, inner, nullptr};
    const size_t up_tiles = static_cast<size_t>(up.blocks()) * static_cast<size_t>(up.tiles());
    const size_t tiles = up_tiles + static_cast<size_t>(down.blocks()) * static_cast<size_t>(down.tiles());
    for (size_t e = 0; e < count; ++e) {
      const auto msb_at = static_cast<size_t>(msb_offsets.data()[e]), lsb_at = static_cast<size_t>(lsb_offsets.data()[e]);
      if (msb_at + tiles * kMsbTileBytes > msb_file.size() || lsb_at + tiles * kLsbTileBytes > lsb_file.size())
        throw std::invalid_argument("an expert's record lies outside its file");
      Matrix first = up, second = down;
      first.msb = msb_file.data() + msb_at;
      first.lsb = lsb_file.data() + lsb_at;
      second.msb = first.msb + up_tiles * kMsbTileBytes;
      second.lsb = first.lsb + up_tiles * kLsbTileBytes;
      check_aligned(first.msb);
      check_aligned(first.lsb);
      f.gate_up.push_back(first);
      f.down.push_back(second);
    }
    f.msb_crc.assign(msb_crc.data(), msb_crc.data() + count);
    f.lsb_crc.assign(lsb_crc.data(), lsb_crc.data() + count);
    f.msb_seen.assign(count, 0);
    f.lsb_seen.assign(count, 0);
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

  nb::tuple forward(In<int32_t, 1> tokens, In<int32_t, 1> sequences, In<int32_t, 1> positions, In<int32_t, 1> cells,
                    In<int32_t, 1> prefix, In<int32_t, 2> path, In<int32_t, 1> wanted,
                    std::optional<In<bool, 2>> pool, std::tuple<int, int, int> bits, int experts_per_tok, int best) {
    const Alone alone(*this);
    const size_t rows = tokens.size();
    for (size_t n : {sequences.size(), positions.size(), cells.size(), prefix.size(), path.shape(0)})
      if (n != rows)
        throw std::invalid_argument("the arrays of a pass must have one entry per row");
    if (pool && (pool->shape(0) != static_cast<size_t>(model_.moe_layers) || pool->shape(1) != static_cast<size_t>(model_.experts)))
      throw std::invalid_argument("the pool does not have the model's layers and experts");
    PassInput in;
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
    auto experts = make<int16_t, 3>({rows, static_cast<size_t>(model_.moe_layers), static_cast<size_t>(model_.experts_per_tok)});
    auto read = make<bool, 2>({static_cast<size_t>(model_.moe_layers), static_cast<size_t>(model_.experts)});
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
    nb::object damage = nb::none();
    if (out.damaged_expert >= 0)
      damage = nb::make_tuple(out.damaged_msb ? "msb" : "lsb", out.damaged_layer, out.damaged_expert);
    return nb::make_tuple(logits, best_tokens, best_logits, log_total, experts, read, out.finite, damage);
  }

  nb::dict phase_seconds() const {
    static constexpr const char *names[] = {"embed", "norm", "qkv", "rope", "attend", "out", "route", "gate_up", "down", "head"};
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

  Matrix keep(const BoundMatrix &m) {
    arrays_.push_back(nb::cast(m.msb));
    arrays_.push_back(nb::cast(m.lsb));
    if (m.bias)
      keep(*m.bias);
    return m.matrix;
  }
  const float *keep(const Floats &vector) {
    arrays_.push_back(nb::cast(vector));
    return vector.data();
  }

  Model model_;
  std::vector<nb::object> arrays_; // what the pointers of model_ point into
  std::unique_ptr<Workspace> workspace_;
  ThreadPool *pool_ = nullptr;    // that workspace_ was made for
  std::atomic<pid_t> user_{0};    // process that has a call running; a forked child finds its parent's
};

// --- kernels one by one -------------------------------------------------------------------------------------------

// x [M, K] quantised: codes [M, K], scales [M, K / 32].
nb::tuple quantize(In<float, 2> x, const std::string &isa) {
  const Kernels &k = kernels_named(isa);
  const auto rows = x.shape(0), inputs = x.shape(1);
  if (inputs % kGroup)
    throw std::invalid_argument("inputs must be a multiple of 32");
  auto codes = make<int8_t, 2>({rows, inputs});
  auto scales = make<float, 2>({rows, inputs / kGroup});
  Packed packed;
  packed.grow(1, static_cast<int>(inputs), 1);
  const PackedRows row = packed.chunk(0);
  for (size_t r = 0; r < rows; ++r) {
    k.quantize(x.data() + r * inputs, static_cast<int>(inputs), 128, 0, 1, row);
    std::copy(row.codes, row.codes + inputs, codes.data() + r * inputs);
    std::copy(row.scales, row.scales + inputs / kGroup, scales.data() + r * (inputs / kGroup));
  }
  return nb::make_tuple(codes, scales);
}

// Runs over all of a matrix on all threads, blocks dealt out as in a pass.
class Product {
public:
  Product(const BoundMatrix &matrix, In<float, 2> x, std::tuple<int, int, int> bits, const std::string &isa)
      : k_(kernels_named(isa)), matrix_(matrix.matrix), rows_(static_cast<int>(x.shape(0))),
        bits_(weight_bits(std::get<0>(bits), std::get<1>(bits), std::get<2>(bits))) {
    if (x.shape(1) != static_cast<size_t>(matrix_.inputs) || rows_ < 1)
      throw std::invalid_argument("x does not fit the matrix");
    packed_.grow(rows_, matrix_.inputs, k_.max_rows);
    for (int r = 0; r < rows_; ++r) {
      const int first = r / k_.max_rows * k_.max_rows;
      k_.quantize(x.data() + static_cast<size_t>(r) * x.shape(1), matrix_.inputs, bits_.excess(), r - first,
                  std::min(k_.max_rows, rows_ - first), packed_.chunk(first));
    }
  }
  size_t stride() const { return static_cast<size_t>(matrix_.blocks()) * kTileRows; }
  int rows() const { return rows_; }
  void run(int first_block, int blocks, float *y) const {
    for (int first = 0; first < rows_; first += k_.max_rows)
      k_.matmul(bits_, std::min(k_.max_rows, rows_ - first), matrix_.msb_block(first_block),
                matrix_.lsb_block(first_block), blocks, matrix_.tiles(), packed_.chunk(first),
                y + static_cast<size_t>(first) * stride() + static_cast<size_t>(first_block) * kTileRows, stride());
  }

private:
  const Kernels &k_;
  Matrix matrix_;
  int rows_;
  WeightBits bits_;
  Packed packed_;
};

// y [M, N] = x [M, K] quantised, times the matrix.
Out<float, 2> linear(const BoundMatrix &matrix, In<float, 2> x, std::tuple<int, int, int> bits, const std::string &isa) {
  const Product product(matrix, x, bits, isa);
  std::vector<float> wide(product.stride() * x.shape(0));
  product.run(0, matrix.matrix.blocks(), wide.data());
  const auto outputs = static_cast<size_t>(matrix.matrix.outputs);
  auto y = make<float, 2>({x.shape(0), outputs});
  for (size_t r = 0; r < x.shape(0); ++r)
    std::copy_n(&wide[r * product.stride()], outputs, y.data() + r * outputs);
  return y;
}

// Seconds of each of `repeats` products over the matrices, one after the other, on all threads.
std::vector<double> time_linear(const std::vector<const BoundMatrix *> &matrices, In<float, 2> x,
                                std::tuple<int, int, int> bits, int repeats, const std::string &isa) {
  std::vector<Product> products;
  size_t stride = 0;
  products.reserve(matrices.size());
  for (const BoundMatrix *matrix : matrices) {
    products.emplace_back(*matrix, x, bits, isa);
    stride = std::max(stride, products.back().stride());
  }
  Scratch<float> y;
  y.grow(stride * x.shape(0));
  ThreadPool &pool = ThreadPool::shared();
  std::vector<double> seconds;
  nb::gil_scoped_release others_may_run;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int t) {
      for (size_t m = 0; m < products.size(); ++m) {
        const int blocks = matrices[m]->matrix.blocks(), b = blocks * t / pool.size();
        products[m].run(b, blocks * (t + 1) / pool.size() - b, y.data());
      }
    });
    seconds.push_back(seconds_since(start));
  }
  return seconds;
}

// Seconds of each of `repeats` reads of `bytes` bytes by all threads.
std::vector<double> time_reads(size_t bytes, int repeats) {
  ThreadPool &pool = ThreadPool::shared();
  const auto threads = static_cast<size_t>(pool.size());
  const size_t share = bytes / threads / 4096 * 4096;
  if (share == 0)
    throw std::invalid_argument("fewer bytes than a page per thread");
  nb::gil_scoped_release others_may_run;
  Pages pages(share * threads);
  pages.prefer_huge();
  std::vector<uint64_t> sums(threads * 8);
  std::vector<double> seconds;
  const Kernels &k = kernels();
  pool.run([&](int t) { std::fill_n(pages.as<uint8_t>() + static_cast<size_t>(t) * share, share, uint8_t{1}); });
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int t) { sums[static_cast<size_t>(t) * 8] += k.read(pages.as<uint8_t>() + static_cast<size_t>(t) * share, share); });
    seconds.push_back(seconds_since(start));
  }
  return seconds;
}

} // namespace
} // namespace elmoe

NB_MODULE(_native, m) {
  using namespace elmoe;
  nb::class_<BoundMatrix>(m, "Matrix")
      .def(nb::init<Bytes, Bytes, int, int, std::optional<Floats>>(), "msb"_a, "lsb"_a, "outputs"_a, "inputs"_a,
           "bias"_a = nb::none());
  nb::class_<BoundModel>(m, "Model")
      .def(nb::init<int, int, int, int, int>(), "vocab"_a, "hidden"_a, "moe_layers"_a, "experts"_a, "experts_per_tok"_a)
      .def("set_embedding", &BoundModel::set_embedding)
      .def("set_head", &BoundModel::set_head, "matrix"_a, "norm"_a, "eps"_a)
      .def("add_rope", &BoundModel::add_rope)
      .def("extend_rope", &BoundModel::extend_rope)
      .def("add_layer", &BoundModel::add_layer, "attention_norm"_a, "attention_eps"_a, "qkv"_a, "out"_a, "heads"_a,
           "kv_heads"_a, "head_dim"_a, "rope"_a, "query_norm"_a.none(), "key_norm"_a.none(), "head_eps"_a, "ffn_norm"_a,
           "ffn_eps"_a)
      .def("set_mlp", &BoundModel::set_mlp)
      .def("set_experts", &BoundModel::set_experts, "moe_layer"_a, "router"_a, "experts_per_tok"_a, "renormalize"_a,
           "inner"_a, "msb_file"_a, "lsb_file"_a, "msb_offsets"_a, "lsb_offsets"_a, "msb_crc"_a, "lsb_crc"_a)
      .def("allocate", &BoundModel::allocate)
      .def("release", &BoundModel::release)
      .def("move", &BoundModel::move)
      .def("forward", &BoundModel::forward, "tokens"_a.noconvert(), "sequences"_a.noconvert(),
           "positions"_a.noconvert(), "cells"_a.noconvert(), "prefix"_a.noconvert(), "path"_a.noconvert(),
           "wanted"_a.noconvert(), "pool"_a.noconvert().none(), "bits"_a, "experts_per_tok"_a, "best"_a)
      .def("phase_seconds", &BoundModel::phase_seconds)
      .def_prop_ro("isa", &BoundModel::isa);
  m.def("quantize", &quantize, "x"_a, "isa"_a = "");
  m.def("linear", &linear, "matrix"_a, "x"_a, "bits"_a, "isa"_a = "");
  m.def("time_linear", &time_linear, "matrices"_a, "x"_a, "bits"_a, "repeats"_a, "isa"_a = "");
  m.def("time_reads", &time_reads, "size_bytes"_a, "repeats"_a);
  m.def("crc32", [](Bytes data) { return crc32(data.data(), data.size()); });
  m.def("threads", [] { return ThreadPool::shared().size(); });
  m.def("isas", [] {
    int count = 0;
    const char *const *names = usable_isas(&count);
    return std::vector<std::string>(names, names + count);
  });
}
