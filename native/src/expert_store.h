// The expert records that are in fast memory, and how the others get there: a bounded arena in front of two files.
//
// A record is one plane (MSB, LSB) of one expert. Some records stay from pass to pass, at most `quota` per plane and
// layer; the others pass through: they are read when a layer needs them, used once, and make room. What a pass reads may
// stay in place of a record of less value, so nothing is ever read to be kept alone. Who values what is decided outside.
// Used by one thread at a time.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <sys/types.h>
#include <vector>

#include "memory.h"
#include "read_queue.h"

namespace elmoe {

constexpr int kPlanes = 2; // MSB, LSB
constexpr int kBadChecksum = -2; // beside the errors of `Read`

struct StorePlan {
  int layers = 0, experts = 0;
  std::array<size_t, kPlanes> bytes{};  // of a record; LSB: 0 for MXFP4, which has one plane
  std::array<int, kPlanes> files{{-1, -1}}; // descriptors, closed by the store
  bool direct = true;                   // the descriptors go around the page cache; else what is read is dropped from it
  std::array<std::vector<int64_t>, kPlanes> offsets; // [layers * experts], multiples of 4096
  std::array<std::vector<uint32_t>, kPlanes> crcs;
  size_t segment_bytes = 0; // the arena is made of segments, each for records of one plane; see `TierLayout`
  int segments = 0, staging = 0; // staging: records of each plane, beside those that stay, that others pass through
  std::string reader;         // see ReadQueue::open
};

struct StoreCounters {
  int64_t bytes_read = 0, reads = 0;
  std::array<int64_t, kPlanes> hits{}, misses{}; // records that a pass needed
  int64_t prefetched = 0, prefetch_used = 0;     // records read ahead, and those of them that were needed
  int64_t admitted = 0;                          // records that stayed
  double wait_seconds = 0;                       // with nothing to compute
};

struct StoreFault {
  int plane = -1, layer = -1, expert = -1;
  int error = 0; // errno, kEndOfFile or kBadChecksum
};

class ExpertStore {
public:
  explicit ExpertStore(StorePlan plan);
  ~ExpertStore();
  ExpertStore(const ExpertStore &) = delete;
  ExpertStore &operator=(const ExpertStore &) = delete;

  // Between passes: quotas [planes][layers]. Throws std::invalid_argument if the arena cannot hold them.
  void arrange(const int32_t *quotas);
  bool kept(int plane, int layer, int expert) const { return kept_[id(plane, layer, expert)]; }
  const char *reader() const { return queue_->name(); }
  bool registered() const { return registered_; }

  // A pass. values: of records that stay, while this pass does not use them; fresh: of records that it has used; both
  // [planes][layers][experts].
  void begin_pass(const float *values, const float *fresh);
  // Begins to read what is missing of these experts (ascending). both: LSB planes, too.
  void begin_layer(int layer, std::span<const int> experts, bool both);
  // Experts of the layer that are ready and not yet released; none: all have been. `idle` is called once per layer,
  // when all its reads have begun. False: a read failed, see `fault`.
  bool next(std::vector<int> &ready, const std::function<void()> &idle);
  const uint8_t *record(int plane, int layer, int expert) const { return places_[id(plane, layer, expert)].at; }
  // Whether it was read since `release` and its checksum is still to be compared.
  bool unchecked(int plane, int layer, int expert) const { return unchecked_[id(plane, layer, expert)]; }
  void set_checked(int plane, int layer, int expert) { unchecked_[id(plane, layer, expert)] = 0; }
  uint32_t crc(int plane, int layer, int expert) const;
  // These have been used: they stay or make room.
  void release(std::span<const int> experts);
  // Reads ahead for a later layer, likeliest first, once this layer's reads have begun and as far as there is room.
  void expect(int layer, std::span<const int> experts);
  void end_pass();
  // Ends a pass that failed: waits for its reads and forgets them.
  void abort(const StoreFault &fault);
  const StoreFault &fault() const { return fault_; }

  StoreCounters counters;

private:
  enum State : uint8_t { absent, loading, abandoned, ready };
  static constexpr int kHandedOut = 1000;
  struct Place {
    uint8_t *at = nullptr;
    int segment = -1;
  };
  struct Segment {
    int plane = -1; // -1: its memory has been given back
    int used = 0;
  };

  size_t id(int plane, int layer, int expert) const {
    return (static_cast<size_t>(plane) * static_cast<size_t>(plan_.layers) + static_cast<size_t>(layer)) *
               static_cast<size_t>(plan_.experts) +
           static_cast<size_t>(expert);
  }
  int plane_of(size_t record) const { return record >= records_of_plane_ ? 1 : 0; }
  uint8_t *segment_at(int segment) const { return arena_->as<uint8_t>() + static_cast<size_t>(segment) * segment_bytes_; }
  size_t stride(int plane) const { return strides_[static_cast<size_t>(plane)]; }
  std::vector<Place> &free_places(int plane) { return free_[static_cast<size_t>(plane)]; }
  int &kept_count(int plane, int layer) { return kept_count_[static_cast<size_t>(plane * plan_.layers + layer)]; }
  Place take_place(int plane);
  void give_back(size_t record);
  size_t coldest(int plane, int layer) const;
  size_t coldest_waiting(int plane) const;
  void evict(size_t record);
  int segments_of(int plane) const;
  void vacate(int segment);
  void commit(int segment, int plane);
  void register_segments();
  void reopen_queue();
  void hand_out(bool passing, int most, std::vector<int> &to);
  void drop_ahead(size_t record);
  void want(int layer, std::span<const int> experts, bool both);
  bool hope();
  void pump();
  void collect(Read *read);
  void settle(size_t record);
  void keep_or_drop(size_t record, int plane);
  Read *new_read();

  StorePlan plan_;
  size_t records_of_plane_ = 0;
  std::array<size_t, kPlanes> strides_{};
  std::array<int, kPlanes> per_segment_{};
  size_t segment_bytes_ = 0;
  int staging_ = 0, depth_ = 0, merged_ = 1;
  std::unique_ptr<Pages> arena_;
  bool huge_ = false; // in huge pages where there are any
  std::vector<Segment> segments_;
  std::array<std::vector<Place>, kPlanes> free_;
  std::unique_ptr<ReadQueue> queue_;
  pid_t owner_ = 0;
  bool registered_ = false;
  size_t registered_count_ = 0; // segments, from the first on

  std::vector<Place> places_;
  std::vector<State> states_;
  std::vector<uint8_t> kept_, unchecked_;
  std::vector<uint8_t> ahead_, leaving_; // read for a layer that has not asked yet; kept until it has been used
  std::vector<float> values_, fresh_;
  std::vector<int> kept_count_;
  std::vector<int32_t> quotas_;

  // the running layer
  int layer_ = -1;
  bool both_ = false, idle_called_ = false;
  std::vector<int> missing_;     // planes that an expert still waits for, or kHandedOut; -1: not needed or released
  int remaining_ = 0;            // experts not yet handed out
  std::vector<size_t> wanted_;   // records to read, in order
  size_t next_wanted_ = 0;
  std::vector<int> hopes_;       // experts of hoped_layer_ to read ahead, likeliest first
  size_t next_hope_ = 0;
  int hoped_layer_ = -1;
  std::vector<size_t> ahead_list_; // records of ahead_
  std::vector<size_t> passing_;    // records of a plane that were used and do not stay yet

  std::deque<Read> reads_;
  std::vector<Read *> idle_reads_, batch_;
  int under_way_ = 0;
  StoreFault fault_;
};

} // namespace elmoe
