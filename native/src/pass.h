// One forward pass: rows in; routing and logits out. Runs on all threads of the pool; every distinct expert is read
// once, and every number depends on its own row alone.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "model.h"
#include "threads.h"

namespace elmoe {

// See `Rows` in backend/protocol.py.
struct PassInput {
  int rows = 0, wanted_count = 0, path_width = 0;
  const int32_t *tokens = nullptr, *sequences = nullptr, *positions = nullptr, *cells = nullptr, *prefix = nullptr;
  const int32_t *path = nullptr;   // [rows][path_width]
  const int32_t *wanted = nullptr; // rows whose logits are wanted
  const uint8_t *pool = nullptr;   // [moe_layers][experts] that routing is restricted to; null: all
  WeightBits bits;
  int experts_per_tok = 0; // used per row, at most the model's own
  int best = 0;            // 0: all logits
  // Of a model with a store: see ExpertStore::begin_pass, and how likely the pass needs an expert (0: unlikely).
  const float *values = nullptr, *fresh = nullptr; // [planes][moe_layers][experts]
  const uint8_t *expected = nullptr;               // [moe_layers][experts]; null: not known
};

struct PassOutput {
  float *logits = nullptr;        // [wanted][vocab], where best == 0
  int32_t *best_tokens = nullptr; // [wanted][best]
  float *best_logits = nullptr;
  float *log_total = nullptr; // [wanted]
  int16_t *experts = nullptr; // [rows][moe_layers][model.experts_per_tok]
  uint8_t *read = nullptr;    // [moe_layers][experts], zeroed by the caller
  bool finite = true;
  StoreFault fault;             // a record that could not be read or fails its CRC; plane < 0: none
  std::vector<int> fault_rows;  // rows that needed it
};

// What a pass spends its time on, in the order of a layer.
enum class Phase { embed, norm, qkv, rope, attend, out, route, gate_up, down, fetch, head, count };
using PhaseSeconds = std::array<double, static_cast<size_t>(Phase::count)>;

// Activations of some rows, in chunks of at most the kernel's rows, each packed by itself.
class Packed {
public:
  void grow(int rows, int inputs, int max_rows);
  // The chunk that begins at row `first` (a multiple of max_rows after its group's first row).
  PackedRows chunk(int first) const;

private:
  size_t groups_ = 0;
  Scratch<int8_t> codes_;
  Scratch<float> scales_;
  Scratch<int32_t> offsets_;
};

// The memory of passes over one model; reused from pass to pass.
class Workspace {
public:
  Workspace(Model &model, int threads);
  void run(const PassInput &in, PassOutput &out, ThreadPool &pool);
  PhaseSeconds seconds{}; // summed over passes, as thread 0 saw them

private:
  // Rows of one expert: slots first .. first + count - 1.
  struct Active {
    int expert, first, count;
  };
  struct OfThread {
    Scratch<float> products, attention, head;
    Packed expert_rows, head_rows;
    int packed_expert = -1; // what expert_rows holds
  };

  void check(const PassInput &in) const;
  void run_on_threads(ThreadPool &pool);
  void grow();
  void work(int t);
  void embed(int t);
  bool layer(int index, int t);
  void norm_rows(const Norm &norm, bool for_int8, bool for_mxfp4, int t);
  void attention(int index, int t);
  void grouped_attention(int index, int t);
  void latent_attention(int index, int t);
  void project(const Matrix &matrix, float *y, size_t stride, int t);
  void project_out(const Attention &a, int t);
  void prepare_heads(const Attention &a, int r) const;
  void store_keys(int index, int r, int kv);
  void store_latent(int index, int r);
  void carry_query(const Attention &a, const float *queries, size_t stride, int task, OfThread &own);
  void carry_value(const Attention &a, int task, OfThread &own);
  void pack_head(const float *x, size_t stride, int width, int inputs, int rows, OfThread &own) const;
  Attended attended(int index, int r, int kv) const;
  bool route(const Feedforward &ffn, int t);
  void choose(const Feedforward &ffn, int row);
  void mark_kept_groups(const Feedforward &ffn, const float *ranks, uint8_t *kept) const;
  // Some row blocks of an active expert's matrix.
  struct ExpertTask {
    const Active &active;
    const Matrix &matrix;
    int block, blocks;
  };
  void fill_experts(const std::vector<Matrix> &matrices, int multiple);
  const Active &active_of(int task) const {
    return task < first_last_task_ ? active_[static_cast<size_t>(task / units_)] : active_.back();
  }
  ExpertTask expert_task(const std::vector<Matrix> &matrices, int task) const;
  void group(const Feedforward &ffn);
  bool experts(const Feedforward &ffn, int t);
  bool check_experts(const Feedforward &ffn, int t);
  void note_fault(const Feedforward &ffn, const StoreFault &fault);
  void begin_waves(const Feedforward &ffn);
  void end_wave(const Feedforward &ffn);
  void next_wave();
  void fill_wave(const Feedforward &ffn);
  void look_ahead();
  void expect_listed(const Feedforward &ffn);
  void gate_up(const Feedforward &ffn, int t);
  void down(const Feedforward &ffn, int t);
  void head(int t);
  void scan_head(int q, int chunk, const float *logits, int count);
  void merge_head(int q);
  void lap(Phase phase, int t);

  float *x_row(int r) const { return &x_[static_cast<size_t>(r) * width_]; }
  float *normed_row(int r) const { return &normed_[static_cast<size_t>(r) * width_]; }
  float *score_row(int r) const { return &scores_[static_cast<size_t>(r) * 2 * score_stride_]; } // then ranks
  int chunk_first(int r) const { return r / max_rows_ * max_rows_; }
  int chunk_rows(int first, int rows) const { return rows - first < max_rows_ ? rows - first : max_rows_; }
  void quantize_part(const float *x, int inputs, int group, int r, int rows, const Packed &into, int32_t excess) const;
  WeightBits bits_of(const Matrix &m) const { return m.mxfp4 ? WeightBits{WeightBits::mxfp4} : in_->bits; }
  float *mixed_row(int r, const Attention &a) const {
    return &mixed_[static_cast<size_t>(r * a.heads) * static_cast<size_t>(a.mixed_dim())];
  }
  float *carried_row(int r, const Attention &a) const {
    return &carried_[static_cast<size_t>(r * a.heads) * static_cast<size_t>(a.key_dim())];
  }
  // Queries, keys and values of a row, [heads + 2 * kv_heads][key_dim].
  float *heads_row(int r, const Attention &a) const {
    const auto stride = static_cast<size_t>((a.heads + 2 * a.kv_heads) * a.key_dim());
    return a.padded() ? &carried_[static_cast<size_t>(r) * stride] : &qkv_[static_cast<size_t>(r) * qkv_stride_];
  }
  void combine_row(int r, float *y) const;
  void fill_units(const Matrix &matrix);

  Model &model_;
  const Kernels &k_;
  const int max_rows_;
  int threads_ = 1; // that take part in the running pass
  Barrier barrier_;
  WorkQueue queue_;
  const PassInput *in_ = nullptr;
  PassOutput *out_ = nullptr;
  std::vector<KvCache *> caches_; // of each row
  bool independent_ = false;      // every row is of another sequence
  uint64_t passes_ = 0;

  size_t width_ = 0, qkv_stride_ = 0, score_stride_ = 0; // floats of a row
  Scratch<float> x_, normed_, qkv_, mixed_, scores_, expert_out_;
  Scratch<float> queries_, carried_, values_; // of latent attention: rows of query_up, [heads][key_dim], value_up;
                                              // carried_ and values_ also of heads that are moved apart
  size_t query_stride_ = 0;
  Packed packed_, packed_mxfp4_, inner_;
  int unit_ = 1; // row blocks of a task of the running phase
  int units_ = 1;                           // tasks per expert
  int last_unit_ = 1, first_last_task_ = 0; // the same for the shared experts, and the first task over them

  // routing of the running layer
  int used_ = 0;                    // experts per row, the shared ones counted as one
  bool pending_ = false;            // expert_out_ is still to be added to x_
  Scratch<int32_t> chosen_, slots_; // [rows][used]: expert, then its slot
  Scratch<float> weights_;          // [rows][used]
  Scratch<int32_t> slot_rows_;      // row of each slot
  std::vector<Active> active_;
  std::vector<int> counts_;
  std::vector<std::array<int, 2>> unchecked_; // expert, plane

  // A layer's experts are computed in waves, those first that are there.
  int index_ = 0; // of the running layer
  std::vector<Active> all_active_;
  std::vector<int> wave_, candidates_; // experts
  std::vector<std::pair<int, int>> ranked_; // the next layer's experts as guessed: rank in their row, expert
  std::array<float, kMostExpertsPerTok> guesses_right_; // share of guesses of a rank that were right
  Scratch<float> ahead_; // a row as the next layer's router might see it, and its scores
  bool last_wave_ = true;
  bool give_up_ = false; // a read failed: set while all threads are at a barrier, so that they leave together

  // partial results of the head: [wanted][chunks]
  int head_chunks_ = 0;
  size_t part_best_ = 0;
  Scratch<float> part_scores_, part_max_, part_sum_;
  Scratch<int32_t> part_tokens_;
  std::atomic<bool> finite_{true}, damaged_{false}; // damaged_: out_->fault is set

  std::vector<OfThread> own_;
  double last_lap_ = 0;

  // Passes in a row that stalled, and how many passes one thread still makes alone because of it, of how many.
  int stalled_passes_ = 0, alone_left_ = 0, alone_passes_ = 0;
};

} // namespace elmoe
