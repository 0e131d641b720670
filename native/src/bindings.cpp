// What Python sees: a model built up once, a forward pass, and kernels one by one for tests and benchmarks.
#include "bound_model.h"

#include <algorithm>
#include <chrono>

#include "crc32.h"

namespace elmoe {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const Kernels &kernels_named(const std::string &isa) {
  if (isa.empty())
    return kernels();
  if (const Kernels *found = find_kernels(isa.c_str()))
    return *found;
  throw std::invalid_argument("this machine has no kernels named " + isa);
}

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
        bits_(matrix_.mxfp4 ? WeightBits{WeightBits::mxfp4}
                            : weight_bits(std::get<0>(bits), std::get<1>(bits), std::get<2>(bits))) {
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
Out<float, 2> linear(const BoundMatrix &matrix, In<float, 2> x, std::tuple<int, int, int> bits,
                     const std::string &isa) {
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
    pool.run([&](int t) {
      sums[static_cast<size_t>(t) * 8] += k.read(pages.as<uint8_t>() + static_cast<size_t>(t) * share, share);
    });
    seconds.push_back(seconds_since(start));
  }
  return seconds;
}

} // namespace
} // namespace elmoe

NB_MODULE(_native, m) {
  using namespace elmoe;
  nb::class_<BoundMatrix>(m, "Matrix")
      .def(nb::init<Bytes, Bytes, int, int, std::optional<Floats>, bool>(), "msb"_a, "lsb"_a, "outputs"_a, "inputs"_a,
           "bias"_a = nb::none(), "mxfp4"_a = false);
  nb::class_<BoundModel>(m, "Model")
      .def(nb::init<int, int, int, int, int>(), "vocab"_a, "hidden"_a, "moe_layers"_a, "experts"_a, "experts_per_tok"_a)
      .def("set_embedding", &BoundModel::set_embedding)
      .def("set_head", &BoundModel::set_head, "matrix"_a, "norm"_a, "eps"_a)
      .def("add_rope", &BoundModel::add_rope)
      .def("extend_rope", &BoundModel::extend_rope)
      .def("set_scales", &BoundModel::set_scales, "embedding"_a, "residual"_a, "logit_divisor"_a)
      .def("add_layer", &BoundModel::add_layer, "attention_norm"_a, "attention_eps"_a, "ffn_norm"_a, "ffn_eps"_a)
      .def("set_grouped_attention", &BoundModel::set_grouped_attention, "qkv"_a, "out"_a, "heads"_a, "kv_heads"_a,
           "head_dim"_a, "rope"_a, "score_scale"_a, "query_norm"_a.none(), "key_norm"_a.none(), "head_eps"_a, "clip"_a,
           "window"_a, "sinks"_a.none())
      .def("set_latent_attention", &BoundModel::set_latent_attention, "down"_a, "query_norm"_a.none(), "query_eps"_a,
           "query_up"_a.none(), "latent_norm"_a, "latent_eps"_a, "key_up"_a, "value_up"_a, "out"_a, "heads"_a,
           "nope_dim"_a, "rope_dim"_a, "latent_dim"_a, "value_dim"_a, "rope"_a, "score_scale"_a)
      .def("set_mlp", &BoundModel::set_mlp)
      .def("set_router", &BoundModel::set_router, "moe_layer"_a, "weight"_a, "bias"_a.none(), "correction"_a.none(),
           "experts_per_tok"_a, "sigmoid"_a, "renormalize"_a, "scale"_a, "groups"_a, "groups_kept"_a, "best_two"_a)
      .def("set_experts", &BoundModel::set_experts, "inner"_a, "mxfp4"_a, "msb_file"_a.none(), "lsb_file"_a.none(), "msb_offsets"_a,
           "lsb_offsets"_a, "msb_crc"_a, "lsb_crc"_a, "gate_up_bias"_a.none(), "down_bias"_a.none(), "alpha"_a,
           "limit"_a)
      .def("set_shared_experts", &BoundModel::set_shared_experts, "gate_up"_a, "down"_a, "gate"_a.none())
      .def("set_store", &BoundModel::set_store, "msb_file"_a, "lsb_file"_a, "direct"_a,
           "segment_bytes"_a, "segments"_a, "staging"_a, "reader"_a)
      .def("arrange_store", &BoundModel::arrange_store)
      .def("kept", &BoundModel::kept)
      .def("store_reader", &BoundModel::store_reader)
      .def("store_counters", &BoundModel::store_counters)
      .def("allocate", &BoundModel::allocate)
      .def("release", &BoundModel::release)
      .def("move", &BoundModel::move)
      .def("copy", &BoundModel::copy)
      .def("forward", &BoundModel::forward, "tokens"_a.noconvert(), "sequences"_a.noconvert(),
           "positions"_a.noconvert(), "cells"_a.noconvert(), "prefix"_a.noconvert(), "path"_a.noconvert(),
           "wanted"_a.noconvert(), "pool"_a.noconvert().none(), "bits"_a, "experts_per_tok"_a, "best"_a,
           "values"_a.noconvert().none() = nb::none(), "expected"_a.noconvert().none() = nb::none())
      .def("phase_seconds", &BoundModel::phase_seconds)
      .def_prop_ro("isa", &BoundModel::isa);
  m.def("quantize", &quantize, "x"_a, "isa"_a = "");
  m.def("linear", &linear, "matrix"_a, "x"_a, "bits"_a, "isa"_a = "");
  m.def("time_linear", &time_linear, "matrices"_a, "x"_a, "bits"_a, "repeats"_a, "isa"_a = "");
  m.def("time_reads", &time_reads, "size_bytes"_a, "repeats"_a);
  m.def("crc32", [](Bytes data) { return crc32(data.data(), data.size()); });
  m.attr("BAD_CHECKSUM") = kBadChecksum;
  m.attr("END_OF_FILE") = kEndOfFile;
  m.def("threads", [] { return ThreadPool::shared().size(); });
  m.def("isas", [] {
    int count = 0;
    const char *const *names = usable_isas(&count);
    return std::vector<std::string>(names, names + count);
  });
}
