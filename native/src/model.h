// A layer program with its weights, and the KV caches of its sequences. See src/elmoe/models/program.py.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace elmoe {

// A matrix in tiles, inside memory that somebody else owns.
struct Matrix {
  const uint8_t *msb = nullptr, *lsb = nullptr;
  int outputs = 0, inputs = 0;
  const float *bias = nullptr; // [outputs] or none

  int blocks() const { return blocks_of(outputs); }
  int tiles() const { return tiles_of(inputs); }
  const uint8_t *msb_block(int b) const { return msb + static_cast<size_t>(b) * tiles() * kMsbTileBytes; }
  const uint8_t *lsb_block(int b) const { return lsb + static_cast<size_t>(b) * tiles() * kLsbTileBytes; }
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
  const float *cosines_at(int position) const { return &cosines[static_cast<size_t>(position) * static_cast<size_t>(half)]; }
  const float *sines_at(int position) const { return &sines[static_cast<size_t>(position) * static_cast<size_t>(half)]; }
};

struct Attention {
  Matrix qkv, out;
  int heads = 0, kv_heads = 0, head_dim = 0;
  Norm query_norm, key_norm;
  int rope = 0;          // index into Model::ropes
  float score_scale = 0; // 1 / sqrt(head_dim)
};

// Experts with a router, or (experts == 0) one gated MLP that every row takes.
struct Feedforward {
  int experts = 0, experts_per_tok = 1;
  bool renormalize = false;
  const float *router = nullptr; // [experts][hidden]
  int moe_layer = -1;
  int inner = 0;                                   // width between gate_up and down
  std::vector<Matrix> gate_up, down;               // one per expert, or the one
  std::vector<uint32_t> msb_crc, lsb_crc;          // one per expert
  mutable std::vector<uint8_t> msb_seen, lsb_seen; // checked already
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
  Half *keys(int layer, int kv_head) const; // [cells / 16][head_dim][16]
  Half *values(int layer, int kv_head) const;
  void move(const int32_t *source, const int32_t *destination, int count);
  uint64_t last_pass = 0; // number of the last pass that had rows of this sequence

private:
  struct Place {
    size_t offset; // in halves; keys of all heads, then values of all heads
    int kv_heads, head_dim;
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
  std::vector<Layer> layers;
  std::vector<RopeTable> ropes;
  const Kernels *kernels = nullptr;
  std::unordered_map<int, std::unique_ptr<KvCache>> sequences;
};

} // namespace elmoe
