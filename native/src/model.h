// A layer program with its weights, and the KV caches of its sequences. See src/elmoe/models/program.py.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "expert_store.h"
#include "kernels.h"
#include "memory.h"

namespace elmoe {

constexpr int kMostExpertsPerTok = 64, kMostGroups = 256;

constexpr size_t padded_to(int n, int multiple) {
  return static_cast<size_t>((n + multiple - 1) / multiple * multiple);
}

// A matrix in tiles, inside memory that somebody else owns.
struct Matrix {
  const uint8_t *msb = nullptr, *lsb = nullptr;
  int outputs = 0, inputs = 0;
  const float *bias = nullptr; // [outputs] or none
  bool mxfp4 = false;          // msb is the one plane

  int blocks() const { return blocks_of(outputs); }
  int tiles() const { return tiles_of(inputs); }
  size_t msb_block_bytes() const {
    return mxfp4 ? mxfp4_block_bytes(tiles()) : static_cast<size_t>(tiles()) * kMsbTileBytes;
  }
  size_t lsb_block_bytes() const { return mxfp4 ? 0 : static_cast<size_t>(tiles()) * kLsbTileBytes; }
  const uint8_t *msb_block(int b) const { return msb + static_cast<size_t>(b) * msb_block_bytes(); }
  const uint8_t *lsb_block(int b) const { return lsb + static_cast<size_t>(b) * lsb_block_bytes(); }
  size_t msb_bytes() const { return static_cast<size_t>(blocks()) * msb_block_bytes(); }
  size_t lsb_bytes() const { return static_cast<size_t>(blocks()) * lsb_block_bytes(); }
};

struct Norm {
  const float *weight = nullptr; // null: no norm
  float eps = 0;
};

// cos and sin of position * frequency: [positions][half] each.
struct RopeTable {
  int half = 0;
  std::vector<float> cosines, sines;
  int positions() const { return half ? static_cast<int>(cosines.size()) / half : 0; }
  size_t at(int position) const { return static_cast<size_t>(position) * static_cast<size_t>(half); }
  const float *cosines_at(int position) const { return &cosines[at(position)]; }
  const float *sines_at(int position) const { return &sines[at(position)]; }
};

// See GroupedQueryAttention and LatentAttention.
struct Attention {
  bool latent = false;
  Matrix input, out; // input: queries, keys and values; of latent attention `down`
  int heads = 0;
  int rope = 0; // index into Model::ropes
  float score_scale = 0;

  // grouped-query
  int kv_heads = 1, head_dim = 0;
  Norm query_norm, key_norm;
  bool whole_norms = false; // the norms are over all heads as one vector
  float clip = 0;           // 0: none
  int window = 0;           // 0: none
  const float *sinks = nullptr;

  // latent
  Matrix query_up, key_up, value_up; // query_up.outputs == 0: the query part is the query
  Norm latent_norm;                  // query_norm is that of the query part
  int nope_dim = 0, rope_dim = 0, latent_dim = 0, value_dim = 0;

  int query_part() const { return input.outputs - latent_dim - rope_dim; }
  bool padded() const { return !latent && head_dim % kTileRows != 0; } // heads are kept with zeros behind them
  int key_dim() const { return static_cast<int>(padded_to(latent ? latent_dim + rope_dim : head_dim, kTileRows)); }
  int mixed_dim() const { return latent ? latent_dim : key_dim(); } // of one head, before it is carried out
  int heads_together() const { return heads / kv_heads; }         // that share keys
};

// Experts with a router and perhaps shared experts, or (experts == 0) one gated MLP that every row takes.
struct Feedforward {
  int experts = 0, experts_per_tok = 1;
  bool shared = false;           // its matrices are the last of gate_up and down
  const float *router = nullptr; // [experts][hidden]
  const float *router_bias = nullptr, *correction = nullptr, *shared_gate = nullptr;
  bool sigmoid = false, renormalize = false, best_two = false;
  int groups = 1, groups_kept = 1;
  float scale = 1;
  float alpha = 0, limit = 0; // of the clamped SwiGLU; limit == 0: SiLU
  int moe_layer = -1;
  std::vector<Matrix> gate_up, down;               // one per expert, that of the shared experts, or the one
  std::vector<uint32_t> msb_crc, lsb_crc;          // one per expert
  mutable std::vector<uint8_t> msb_seen, lsb_seen; // checked already

  bool mxfp4() const { return experts > 0 && gate_up[0].mxfp4; }
};

struct Layer {
  Norm attention_norm, ffn_norm;
  Attention attention;
  Feedforward ffn;
};

// Keys and values of one sequence, all layers.
class KvCache {
public:
  KvCache(const std::vector<Layer> &layers, int cells);
  int cells() const { return cells_; }
  Half *keys(int layer, int kv_head) const;   // [cells / 16][head_dim][16]; null for latent attention
  Half *values(int layer, int kv_head) const; // [cells][head_dim], or [cells][key_dim] latents
  void move(const int32_t *source, const int32_t *destination, int count);
  void take(const KvCache &other, int count); // its first cells; both have that many
  uint64_t last_pass = 0; // number of the last pass that had rows of this sequence

private:
  struct Place {
    size_t offset; // in halves; keys of all heads (but for latents), then values of all heads
    int kv_heads, width;
    bool latent;
  };
  std::vector<Place> places_;
  int cells_, padded_;
  std::unique_ptr<Pages> pages_;
};

struct Model {
  int vocab = 0, hidden = 0;
  int moe_layers = 0, experts = 0, experts_per_tok = 0; // 0 without MoE layers
  Matrix embedding, head;
  Norm final_norm;
  float embedding_scale = 1, residual_scale = 1, logit_divisor = 1;
  std::vector<Layer> layers;
  std::vector<RopeTable> ropes;
  std::deque<std::vector<float>> padded_norms; // of heads that are no multiple of 16
  const Kernels *kernels = nullptr;
  std::unordered_map<int, std::unique_ptr<KvCache>> sequences;
  std::unique_ptr<ExpertStore> store; // of the experts' records; null: all of them are in memory
};

} // namespace elmoe
