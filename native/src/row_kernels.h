// Everything of `Kernels` but the matrix product, written once on 16 FP32 lanes; each instruction-set path compiles it.
//
// Included after a lanes_*.h. No operation fuses (-ffp-contract=off) and every sum has one order, so all paths, and
// backend/reference.py, give the same bits; see docs/numerics.md.
#pragma once
#include <cmath>
#include <limits>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "kernels.h"

namespace elmoe::ELMOE_ISA_NAMESPACE {

constexpr float kSmallestAmax = 0x1p-100f; // below it 127 / amax would leave the FP32 range: the group is zero
constexpr float kLargestHalf = 65504.0f;

// exp(x) for x <= 88: range reduction to |r| <= ln(2)/2 and a polynomial (Cephes expf), error below 2 ulp.
// Below -87.3, where the result would not be a normal number, exactly 0.
inline Lanes exponential(Lanes x) {
  const Lanes least = all(-87.3f);
  const Lanes inside = min(max(x, least), all(88.0f));
  const Lanes n = round(inside * all(1.44269504f));
  const Lanes r = (inside - n * all(0.693359375f)) + n * all(2.12194440e-4f);
  Lanes p = all(1.9875691500e-4f);
  p = p * r + all(1.3981999507e-3f);
  p = p * r + all(8.3334519073e-3f);
  p = p * r + all(4.1665795894e-2f);
  p = p * r + all(1.6666665459e-1f);
  p = p * r + all(5.0000001201e-1f);
  p = p * (r * r) + (r + all(1.0f));
  return zero_below(scale_by_power(p, n), x, least);
}

// Largest magnitude of a group of 32.
inline float group_amax(const float *x) { return highest(max(abs(load(x)), abs(load(x + 16)))); }

// Changes no finite activation; one that is not a number (the pass is void then) must not overflow the sum of codes.
inline Lanes in_range(Lanes code) { return min(max(code, all(-127.0f)), all(127.0f)); }

inline void quantize(const float *x, int inputs, int32_t excess, int m, int M, const PackedRows &packed) {
  const int groups = inputs / kGroup, padded = tiles_of(inputs) * 2;
  for (int g = 0; g < groups; ++g) {
    const float amax = group_amax(x + kGroup * g);
    const bool live = amax >= kSmallestAmax;
    const Lanes inverse = all(live ? 127.0f / amax : 0.0f);
    const size_t at = static_cast<size_t>(g) * M + m;
    int8_t *codes = packed.codes + at * kGroup;
    int32_t total = store_codes(codes, in_range(load(x + kGroup * g) * inverse));
    total += store_codes(codes + 16, in_range(load(x + kGroup * g + 16) * inverse));
    packed.scales[at] = live ? amax / 127.0f : 0.0f;
    packed.offsets[at] = -excess * total;
  }
  for (int g = groups; g < padded; ++g) {
    const size_t at = static_cast<size_t>(g) * M + m;
    for (int i = 0; i < kGroup; ++i)
      packed.codes[at * kGroup + i] = 0;
    packed.scales[at] = 0.0f;
    packed.offsets[at] = 0;
  }
}

// The order of every long sum: element i goes to lane i % 32, ascending; then the lanes are folded in halves.
struct LaneSum {
  Lanes even = all(0.0f), odd = all(0.0f);
  float folded() const { return sum(even + odd); }
};

inline void rms_norm(const float *x, const float *weight, float eps, int count, int n, float *y) {
  LaneSum squares;
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const Lanes a = load(x + i), b = load(x + i + 16);
    squares.even = squares.even + a * a;
    squares.odd = squares.odd + b * b;
  }
  if (i < n) {
    const Lanes a = load(x + i);
    squares.even = squares.even + a * a;
  }
  const Lanes root = all(std::sqrt(squares.folded() / static_cast<float>(count) + eps));
  for (i = 0; i < n; i += 16)
    store(y + i, load(x + i) / root * load(weight + i));
}

// N weight rows at a time share the loads of x; the order of a row's sum does not depend on it.
template <int N> inline void dot_some(const float *x, const float *weight, int n, float *y) {
  LaneSum products[N];
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const Lanes a = load(x + i), b = load(x + i + 16);
    for (int k = 0; k < N; ++k) {
      const float *w = weight + static_cast<size_t>(k) * n + i;
      products[k].even = products[k].even + a * load(w);
      products[k].odd = products[k].odd + b * load(w + 16);
    }
  }
  if (i < n)
    for (int k = 0; k < N; ++k)
      products[k].even = products[k].even + load(x + i) * load(weight + static_cast<size_t>(k) * n + i);
  for (int k = 0; k < N; ++k)
    y[k] = products[k].folded();
}

inline void dot_rows(const float *x, const float *weight, int count, int n, float *y) {
  int row = 0;
  for (; row + 4 <= count; row += 4)
    dot_some<4>(x, weight + static_cast<size_t>(row) * n, n, y + row);
  for (; row < count; ++row)
    dot_some<1>(x, weight + static_cast<size_t>(row) * n, n, y + row);
}

// x = exp(x - top) in place, n a multiple of 16; returns the sum.
inline float exponentials(float *x, int n, Lanes top) {
  LaneSum total;
  for (int i = 0; i < n; i += 16) {
    const Lanes e = exponential(load(x + i) - top);
    store(x + i, e);
    Lanes &lanes = i % 32 ? total.odd : total.even;
    lanes = lanes + e;
  }
  return total.folded();
}

inline void softmax(float *scores, int n) {
  const int padded = (n + 15) / 16 * 16;
  for (int i = n; i < padded; ++i)
    scores[i] = -std::numeric_limits<float>::infinity();
  Lanes top = load(scores);
  for (int i = 16; i < padded; i += 16)
    top = max(top, load(scores + i));
  const Lanes highest_score = all(highest(top));
  const Lanes divisor = all(exponentials(scores, padded, highest_score));
  for (int i = 0; i < padded; i += 16)
    store(scores + i, load(scores + i) / divisor);
}

inline Lanes sigmoid_of(Lanes x) { return all(1.0f) / (all(1.0f) + exponential(all(0.0f) - x)); }

inline void sigmoid(float *x, int n) {
  for (int i = 0; i < n; i += 16)
    store(x + i, sigmoid_of(load(x + i)));
}

inline void gate(const float *gate_up, int n, float *y) {
  for (int f = 0; f < n; f += 16) {
    const Lanes g = load(gate_up + 2 * f), up = load(gate_up + 2 * f + 16);
    const Lanes silu = g / (all(1.0f) + exponential(all(0.0f) - g));
    store(y + f, silu * up);
  }
}

inline void gate_clamped(const float *gate_up, int n, float alpha, float limit, float *y) {
  for (int f = 0; f < n; f += 16) {
    const Lanes g = min(load(gate_up + 2 * f), all(limit));
    const Lanes up = min(max(load(gate_up + 2 * f + 16), all(-limit)), all(limit));
    const Lanes glu = g / (all(1.0f) + exponential(all(0.0f) - g * all(alpha)));
    store(y + f, glu * (up + all(1.0f)));
  }
}

inline void combine(const float *const *x, const float *weight, int count, int n, float *y) {
  for (int i = 0; i < n; i += 16) {
    Lanes total = load(x[0] + i) * all(weight[0]);
    for (int k = 1; k < count; ++k)
      total = total + load(x[k] + i) * all(weight[k]);
    store(y + i, load(y + i) + total);
  }
}

inline void add(const float *x, float factor, int n, float *y) {
  for (int i = 0; i < n; i += 16)
    store(y + i, load(y + i) + load(x + i) * all(factor));
}

inline void scale(float factor, int n, float *x) {
  for (int i = 0; i < n; i += 16)
    store(x + i, load(x + i) * all(factor));
}

inline void clamp(float bound, int n, float *x) {
  for (int i = 0; i < n; i += 16)
    store(x + i, min(max(load(x + i), all(-bound)), all(bound)));
}

inline void rotate(const float *cosine, const float *sine, float factor, int d, float *x) {
  const Lanes scale = all(factor);
  const int half = d / 2;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    const Lanes low = load(x + i), high = load(x + i + half), c = load(cosine + i), s = load(sine + i);
    store(x + i, (low * c - high * s) * scale);
    store(x + i + half, (high * c + low * s) * scale);
  }
  for (; i < half; ++i) {
    const float low = x[i], high = x[i + half];
    x[i] = (low * cosine[i] - high * sine[i]) * factor;
    x[i + half] = (high * cosine[i] + low * sine[i]) * factor;
  }
}

inline Lanes saturated(Lanes x) { return max(min(x, all(kLargestHalf)), all(-kLargestHalf)); }

inline void store_key(const float *x, int head_dim, int cell, Half *keys) {
  Half *column = keys + static_cast<size_t>(cell / kKeyBlock) * head_dim * kKeyBlock + cell % kKeyBlock;
  for (int i = 0; i < head_dim; i += 16) {
    Half narrow[16];
    store_half(narrow, saturated(load(x + i)));
    for (int k = 0; k < 16; ++k)
      column[static_cast<size_t>(i + k) * kKeyBlock] = narrow[k];
  }
}

inline void store_value(const float *x, int head_dim, Half *value) {
  for (int i = 0; i < head_dim; i += 16)
    store_half(value + i, saturated(load(x + i)));
}

// --- attention ---------------------------------------------------------------------------------------------------

inline int cell_of(const Attended &seen, int position) {
  return position < seen.prefix ? position : seen.path[position - seen.prefix];
}

// 16 rows of d halves -> [d][16]; d is a multiple of 8.
inline void transpose(const Half *const (&rows)[kKeyBlock], int d, Half *tile) {
#ifdef __SSE2__
  for (int i = 0; i < d; i += 8)
    for (int side = 0; side < kKeyBlock; side += 8) {
      __m128i a[8], b[8];
      for (int k = 0; k < 8; ++k)
        a[k] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows[side + k] + i));
      for (int k = 0; k < 4; ++k) {
        b[2 * k] = _mm_unpacklo_epi16(a[k], a[k + 4]);
        b[2 * k + 1] = _mm_unpackhi_epi16(a[k], a[k + 4]);
      }
      for (int k = 0; k < 4; ++k) {
        a[2 * k] = _mm_unpacklo_epi16(b[k], b[k + 4]);
        a[2 * k + 1] = _mm_unpackhi_epi16(b[k], b[k + 4]);
      }
      for (int k = 0; k < 4; ++k) {
        b[2 * k] = _mm_unpacklo_epi16(a[k], a[k + 4]);
        b[2 * k + 1] = _mm_unpackhi_epi16(a[k], a[k + 4]);
      }
      for (int k = 0; k < 8; ++k)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(tile + static_cast<size_t>(i + k) * kKeyBlock + side), b[k]);
    }
#else
  for (int lane = 0; lane < kKeyBlock; ++lane)
    for (int i = 0; i < d; ++i)
      tile[static_cast<size_t>(i) * kKeyBlock + lane] = rows[lane][i];
#endif
}

// Keys of the 16 positions from `first` on, interleaved; gathered into `tile` where they do not lie so.
inline const Half *keys_of(const Attended &seen, int first, int positions, Half *tile) {
  const size_t block_halves = static_cast<size_t>(seen.key_dim) * kKeyBlock;
  if (seen.keys && (seen.path_count == 0 || first + kKeyBlock <= seen.prefix))
    return seen.keys + static_cast<size_t>(first / kKeyBlock) * block_halves;
  const Half *rows[kKeyBlock];
  for (int lane = 0; lane < kKeyBlock; ++lane) {
    const int cell = cell_of(seen, first + lane < positions ? first + lane : first);
    if (!seen.keys) {
      rows[lane] = seen.values + static_cast<size_t>(cell) * seen.value_stride;
      continue;
    }
    const Half *column = seen.keys + static_cast<size_t>(cell / kKeyBlock) * block_halves + cell % kKeyBlock;
    for (int i = 0; i < seen.key_dim; ++i)
      tile[i * kKeyBlock + lane] = column[static_cast<size_t>(i) * kKeyBlock];
  }
  if (!seen.keys)
    transpose(rows, seen.key_dim, tile);
  return tile;
}

// Sums over dimensions and positions: eight products are folded in halves, blocks of eight are added in order.
template <class F> inline Lanes fold_eight(F product) {
  const Lanes a = (product(0) + product(4)) + (product(2) + product(6));
  const Lanes b = (product(1) + product(5)) + (product(3) + product(7));
  return a + b;
}

// Scores of one block of 16 positions for N heads.
template <int N> inline void scores_of(const Half *keys, int d, const float *query, float *scores, size_t stride) {
  Lanes total[N];
  for (int h = 0; h < N; ++h)
    total[h] = all(0.0f);
  for (int i = 0; i < d; i += 8) {
    Lanes key[8];
    for (int k = 0; k < 8; ++k)
      key[k] = load_half(keys + static_cast<size_t>(i + k) * kKeyBlock);
    for (int h = 0; h < N; ++h)
      total[h] = total[h] + fold_eight([&](int k) { return all(query[h * d + i + k]) * key[k]; });
  }
  for (int h = 0; h < N; ++h)
    store(scores + h * stride, total[h]);
}

// out[h] += sum over positions of weight * value, for N heads and C vectors of 16 dimensions from `dim` on.
// Positions begin..count-1 after `first`; weights are padded to a multiple of 8 with zeros.
template <int N, int C>
inline void mix(const Attended &seen, int first, int begin, int count, const float *weights, int dim, float *out) {
  Lanes total[N][C];
  for (int h = 0; h < N; ++h)
    for (int c = 0; c < C; ++c)
      total[h][c] = load(out + h * seen.value_dim + dim + 16 * c);
  for (int j = begin; j < count; j += 8) {
    const Half *values[8];
    for (int k = 0; k < 8; ++k) {
      const int cell = cell_of(seen, j + k < count ? first + j + k : first + j);
      values[k] = seen.values + static_cast<size_t>(cell) * seen.value_stride + dim;
    }
    for (int c = 0; c < C; ++c) {
      Lanes value[8];
      for (int k = 0; k < 8; ++k)
        value[k] = load_half(values[k] + 16 * c);
      for (int h = 0; h < N; ++h)
        total[h][c] = total[h][c] + fold_eight([&](int k) { return all(weights[h * kAttendSpan + j + k]) * value[k]; });
    }
  }
  for (int h = 0; h < N; ++h)
    for (int c = 0; c < C; ++c)
      store(out + h * seen.value_dim + dim + 16 * c, total[h][c]);
}

// f.operator()<N>(h) for groups of N = 4, 2, 1 heads from h on.
template <class F> inline void by_heads(int heads, F f) {
  int h = 0;
  for (; h + 4 <= heads; h += 4)
    f.template operator()<4>(h);
  for (; h + 2 <= heads; h += 2)
    f.template operator()<2>(h);
  for (; h < heads; ++h)
    f.template operator()<1>(h);
}

// Scores of one head and span -> weights: exp(score - top). Rescales `out` [n] and *total where the top grows.
inline void soften(float *s, int hidden, int count, float *top, float *total, int n, float *out) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  const int padded = (count + 15) / 16 * 16;
  for (int j = 0; j < hidden; ++j)
    s[j] = lowest;
  for (int j = count; j < padded; ++j)
    s[j] = lowest;
  Lanes best = load(s);
  for (int j = 16; j < padded; j += 16)
    best = max(best, load(s + j));
  const float span_top = highest(best), new_top = span_top > *top ? span_top : *top;
  if (*top > lowest && new_top > *top) {
    alignas(64) float factor[16];
    store(factor, exponential(all(*top - new_top)));
    *total *= factor[0];
    for (int i = 0; i < n; i += 16)
      store(out + i, load(out + i) * all(factor[0]));
  }
  *top = new_top;
  *total += exponentials(s, padded, all(new_top));
}

// All heads over all positions: online softmax, rescaled after every kAttendSpan positions. Positions that a window
// hides weigh nothing, and spans that it hides whole are left out: both add exact zeros.
inline void attend(const Attended &seen, int heads, const float *query, float *out, float *scratch) {
  const int d = seen.key_dim, n = seen.value_dim, positions = seen.prefix + seen.path_count;
  float *scores = scratch, *top = scores + static_cast<size_t>(heads) * kAttendSpan, *total = top + heads;
  Half *tile = reinterpret_cast<Half *>(total + heads);
  for (int h = 0; h < heads; ++h) { // a sink is a position before all others, without a value
    top[h] = seen.sinks ? seen.sinks[h] : -std::numeric_limits<float>::infinity();
    total[h] = seen.sinks ? 1.0f : 0.0f;
  }
  for (int i = 0; i < heads * n; i += 16)
    store(out + i, all(0.0f));
  for (int first = seen.first / kAttendSpan * kAttendSpan; first < positions; first += kAttendSpan) {
    const int count = positions - first < kAttendSpan ? positions - first : kAttendSpan;
    const int hidden = seen.first > first ? seen.first - first : 0;
    for (int b = hidden / kKeyBlock * kKeyBlock; b < count; b += kKeyBlock) {
      const Half *keys = keys_of(seen, first + b, positions, tile);
      by_heads(heads, [&]<int N>(int h) {
        scores_of<N>(keys, d, query + h * d, scores + h * kAttendSpan + b, kAttendSpan);
      });
    }
    for (int h = 0; h < heads; ++h)
      soften(scores + h * kAttendSpan, hidden, count, top + h, total + h, n, out + h * n);
    const int begin = hidden / 8 * 8;
    by_heads(heads, [&]<int N>(int h) {
      const float *weights = scores + h * kAttendSpan;
      int dim = 0;
      for (; dim + 64 <= n; dim += 64)
        mix<N, 4>(seen, first, begin, count, weights, dim, out + h * n);
      for (; dim < n; dim += 16)
        mix<N, 1>(seen, first, begin, count, weights, dim, out + h * n);
    });
  }
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < n; i += 16)
      store(out + h * n + i, load(out + h * n + i) / all(total[h]));
}

// The keys and values of a prefix, as far as they are worth fetching ahead: the hardware follows a long run by itself.
inline void fetch(const Attended &seen) {
  constexpr size_t most = 8 << 10;
  const int hidden = seen.first / kKeyBlock * kKeyBlock, cells = seen.prefix > hidden ? seen.prefix - hidden : 0;
  const Half *keys = seen.keys + static_cast<size_t>(hidden) * seen.key_dim;
  const Half *values = seen.values + static_cast<size_t>(hidden) * seen.value_stride;
  const size_t bytes = static_cast<size_t>(cells) * static_cast<size_t>(seen.key_dim) * sizeof(Half);
  for (size_t at = 0; at < bytes && at < most; at += 64) {
    __builtin_prefetch(reinterpret_cast<const char *>(keys) + at);
    __builtin_prefetch(reinterpret_cast<const char *>(values) + at);
  }
}

// --- the head ----------------------------------------------------------------------------------------------------

inline void insert(Best *best, float score, int32_t index) {
  int at = best->count < best->most ? best->count++ : best->most - 1;
  for (; at > 0 && score > best->scores[at - 1]; --at) {
    best->scores[at] = best->scores[at - 1];
    best->indices[at] = best->indices[at - 1];
  }
  best->scores[at] = score;
  best->indices[at] = index;
}

inline bool scan(const float *scores, int n, int32_t first, Best *best, float *top, float *total) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  Lanes maximum = all(lowest);
  bool finite = true;
  auto look = [&](Lanes a, int at, int count) {
    maximum = max(a, maximum);
    const bool full = best->count == best->most;
    if (full && !any_above(a, all(best->scores[best->most - 1])))
      return;
    for (int i = 0; i < count; ++i) // ascending indices: equal scores stay behind those that came first
      if (best->count < best->most || scores[at + i] > best->scores[best->most - 1])
        insert(best, scores[at + i], first + at + i);
  };
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const Lanes a = load(scores + i);
    finite &= all_finite(a);
    look(a, i, 16);
  }
  alignas(64) float rest[16];
  if (i < n) {
    for (int k = 0; k < 16; ++k)
      rest[k] = i + k < n ? scores[i + k] : lowest;
    for (int k = i; k < n; ++k)
      finite &= std::isfinite(scores[k]);
    look(load(rest), i, n - i);
  }
  *top = highest(maximum);
  Lanes sums = all(0.0f);
  for (int k = 0; k + 16 <= n; k += 16)
    sums = sums + exponential(load(scores + k) - all(*top));
  if (i < n)
    sums = sums + exponential(load(rest) - all(*top));
  *total = sum(sums);
  return finite;
}

// --- the embedding -----------------------------------------------------------------------------------------------

inline void decode_row(const uint8_t *msb, const uint8_t *lsb, int row, int inputs, float *y) {
  const int tiles = tiles_of(inputs), r = row % kTileRows;
  msb += static_cast<size_t>(row / kTileRows) * tiles * kMsbTileBytes;
  lsb += static_cast<size_t>(row / kTileRows) * tiles * kLsbTileBytes;
  for (int k = 0; k < inputs; k += kGroup) {
    const int group = k / kGroup % 2;
    const uint8_t *m = msb + 256 * group + 4 * r, *l = lsb + 256 * group + 4 * r;
    Half scales[16];
    const uint8_t *stored = msb + 512 + 32 * group;
    for (int i = 0; i < 16; ++i)
      scales[i] = static_cast<Half>(stored[2 * i] | stored[2 * i + 1] << 8);
    alignas(64) float wide[16];
    store(wide, load_half(scales));
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 4; ++i) {
        const int low = ((m[64 * j + i] & 15) << 4) + (l[64 * j + i] >> 4) - 128;
        const int high = (m[64 * j + i] & 0xf0) + (l[64 * j + i] & 15) - 128;
        y[k + 4 * j + i] = static_cast<float>(low) * wide[r];
        y[k + 16 + 4 * j + i] = static_cast<float>(high) * wide[r];
      }
    if (group == 1) {
      msb += kMsbTileBytes;
      lsb += kLsbTileBytes;
    }
  }
}

inline uint64_t read(const uint8_t *data, size_t bytes) {
  uint64_t sums[8] = {};
  const auto *words = reinterpret_cast<const uint64_t *>(data);
  for (size_t i = 0; i < bytes / 8; i += 8)
    for (size_t k = 0; k < 8; ++k)
      sums[k] ^= words[i + k];
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

} // namespace elmoe::ELMOE_ISA_NAMESPACE

// The table of a path, once its matmul is defined.
#define ELMOE_KERNELS(name)                                                                                            \
  {name,  kMaxRows, matmul, quantize, rms_norm,  dot_rows,    softmax, sigmoid, gate, gate_clamped, combine, add,      \
   scale, clamp,    rotate, store_key, store_value, attend, fetch,   scan,    decode_row, read}
