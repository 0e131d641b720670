#include "expert_store.h"

#include <algorithm>
#include <fcntl.h>
#include <stdexcept>
#include <sys/mman.h>
#include <unistd.h>

#include "units.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 // Linux 5.14
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 // Linux 6.1; older kernels refuse it, which does no harm
#endif

namespace elmoe {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kMergedBytes = 1 << 20; // neighbours in the file are read together up to this
constexpr size_t kMostRegistered = 1 << 14, kMostRegisteredBytes = size_t{1} << 30;
// Experts computed between two looks at what has come: of those that pass through, whose room the disk waits for, and of
// those that stay.
constexpr int kPassing = 2, kFiller = 4;
constexpr size_t kHugeArena = 16 << 20; // from this on huge pages waste little

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

} // namespace

ExpertStore::ExpertStore(StorePlan plan) : plan_(std::move(plan)) {
  records_of_plane_ = static_cast<size_t>(plan_.layers) * static_cast<size_t>(plan_.experts);
  for (size_t p = 0; p < kPlanes; ++p)
    strides_[p] = pages(plan_.bytes[p]);
  segment_bytes_ = plan_.segment_bytes;
  staging_ = plan_.staging;
  merged_ = static_cast<int>(
      std::clamp<size_t>(kMergedBytes / strides_[0], 1, static_cast<size_t>(std::min(kMostParts, staging_))));
  depth_ = kPlanes * staging_;
  for (size_t p = 0; p < kPlanes; ++p)
    per_segment_[p] = strides_[p] ? static_cast<int>(segment_bytes_ / strides_[p]) : 0;
  segments_.resize(static_cast<size_t>(plan_.segments));
  arena_ = std::make_unique<Pages>(segments_.size() * segment_bytes_);
  huge_ = segments_.size() * segment_bytes_ >= kHugeArena;
  if (huge_)
    arena_->prefer_huge();
  const size_t records = kPlanes * records_of_plane_;
  places_.resize(records);
  states_.resize(records, absent);
  kept_.resize(records);
  unchecked_.resize(records);
  ahead_.resize(records);
  leaving_.resize(records);
  values_.resize(records);
  fresh_.resize(records);
  kept_count_.resize(static_cast<size_t>(kPlanes * plan_.layers));
  quotas_.resize(static_cast<size_t>(kPlanes * plan_.layers));
  missing_.resize(static_cast<size_t>(plan_.experts), -1);
  reopen_queue();
}

ExpertStore::~ExpertStore() {
  if (owner_ != getpid()) { // a fork's copy: the threads and the ring are the parent's
    queue_.release();
    return;
  }
  if (under_way_ > 0)
    abort({});
  queue_.reset();
  for (int file : plan_.files)
    if (file >= 0)
      close(file);
}

void ExpertStore::reopen_queue() {
  if (queue_)
    queue_.release();
  queue_ = ReadQueue::open(depth_, plan_.reader);
  owner_ = getpid();
  register_segments();
}

uint32_t ExpertStore::crc(int plane, int layer, int expert) const {
  return plan_.crcs[static_cast<size_t>(plane)][id(0, layer, expert)];
}

// --- the arena -----------------------------------------------------------------------------------------------------

void ExpertStore::arrange(const int32_t *quotas) {
  std::array<int, kPlanes> wanted{}; // segments
  for (int p = 0; p < kPlanes; ++p) {
    if (!stride(p))
      continue;
    int records = staging_;
    for (int l = 0; l < plan_.layers; ++l)
      records += quotas[p * plan_.layers + l];
    const int each = per_segment_[static_cast<size_t>(p)];
    wanted[static_cast<size_t>(p)] = (records + each - 1) / each;
  }
  if (static_cast<size_t>(wanted[0]) + static_cast<size_t>(wanted[1]) > segments_.size())
    throw std::invalid_argument("the arena has " + std::to_string(segments_.size()) + " segments, not " +
                                std::to_string(wanted[0] + wanted[1]));
  std::copy(quotas, quotas + quotas_.size(), quotas_.begin());
  for (int p = 0; p < kPlanes; ++p)
    for (int l = 0; l < plan_.layers; ++l)
      while (kept_count(p, l) > quotas_[static_cast<size_t>(p * plan_.layers + l)])
        evict(coldest(p, l));
  bool changed = false;
  for (int p = 0; p < kPlanes; ++p) {
    int have = segments_of(p);
    for (; have > wanted[static_cast<size_t>(p)]; --have, changed = true) {
      int emptiest = -1;
      for (int s = 0; s < static_cast<int>(segments_.size()); ++s) {
        const Segment &one = segments_[static_cast<size_t>(s)];
        if (one.plane == p && (emptiest < 0 || one.used < segments_[static_cast<size_t>(emptiest)].used))
          emptiest = s;
      }
      vacate(emptiest);
    }
  }
  for (int p = 0; p < kPlanes; ++p) {
    int have = segments_of(p);
    for (int s = 0; have < wanted[static_cast<size_t>(p)]; ++s)
      if (segments_[static_cast<size_t>(s)].plane < 0) {
        commit(s, p);
        ++have;
        changed = true;
      }
  }
  if (changed)
    register_segments();
}

int ExpertStore::segments_of(int plane) const {
  return static_cast<int>(
      std::count_if(segments_.begin(), segments_.end(), [plane](const Segment &s) { return s.plane == plane; }));
}

void ExpertStore::commit(int segment, int plane) {
  segments_[static_cast<size_t>(segment)] = {plane, 0};
  if (huge_) { // a read into small pages falls apart into hundreds of pieces: a disk gives half as much
    madvise(segment_at(segment), segment_bytes_, MADV_POPULATE_WRITE);
    madvise(segment_at(segment), segment_bytes_, MADV_COLLAPSE); // where memory was too scattered for huge pages
  }
  for (int i = per_segment_[static_cast<size_t>(plane)] - 1; i >= 0; --i)
    free_places(plane).push_back({segment_at(segment) + static_cast<size_t>(i) * stride(plane), segment});
}

// Moves what a segment holds to other segments of its plane and gives its memory back.
void ExpertStore::vacate(int segment) {
  const int plane = segments_[static_cast<size_t>(segment)].plane;
  auto &places = free_places(plane);
  std::erase_if(places, [&](const Place &place) { return place.segment == segment; });
  const size_t first = id(plane, 0, 0);
  for (size_t record = first; record < first + records_of_plane_; ++record)
    if (places_[record].segment == segment) {
      const uint8_t *from = places_[record].at;
      places_[record] = take_place(plane);
      std::memcpy(places_[record].at, from, stride(plane));
    }
  segments_[static_cast<size_t>(segment)] = {};
  registered_ = queue_->register_buffers({}); // unpins it
  madvise(segment_at(segment), segment_bytes_, MADV_DONTNEED);
}

void ExpertStore::register_segments() {
  std::vector<iovec> buffers; // a buffer's number is its segment's; segments without memory have empty ones
  for (size_t s = 0; s < std::min(segments_.size(), kMostRegistered); ++s)
    buffers.push_back(segments_[s].plane < 0 ? iovec{nullptr, 0}
                                             : iovec{segment_at(static_cast<int>(s)), segment_bytes_});
  registered_ = segment_bytes_ <= kMostRegisteredBytes && queue_->register_buffers(buffers);
  registered_count_ = registered_ ? buffers.size() : 0;
}

ExpertStore::Place ExpertStore::take_place(int plane) {
  auto &places = free_places(plane);
  const Place place = places.back();
  places.pop_back();
  ++segments_[static_cast<size_t>(place.segment)].used;
  return place;
}

void ExpertStore::give_back(size_t record) {
  Place &place = places_[record];
  --segments_[static_cast<size_t>(place.segment)].used;
  free_places(plane_of(record)).push_back(place);
  place = {};
  states_[record] = absent;
  unchecked_[record] = 0;
}

// Of the records that stay, the one of least value that this layer does not wait for; ties to the lower number.
size_t ExpertStore::coldest(int plane, int layer) const {
  const size_t first = id(plane, layer, 0);
  size_t best = SIZE_MAX;
  for (size_t e = 0; e < static_cast<size_t>(plan_.experts); ++e) {
    const size_t record = first + e;
    if (kept_[record] && !(layer == layer_ && missing_[e] >= 0) &&
        (best == SIZE_MAX || values_[record] < values_[best]))
      best = record;
  }
  return best;
}

// Likewise of the records of experts that are ready and have still to be used, by what they will be worth then.
size_t ExpertStore::coldest_waiting(int plane) const {
  const size_t first = id(plane, layer_, 0);
  size_t best = SIZE_MAX;
  for (size_t e = 0; e < static_cast<size_t>(plan_.experts); ++e)
    if (kept_[first + e] && missing_[e] == 0 && !leaving_[first + e] &&
        (best == SIZE_MAX || fresh_[first + e] < fresh_[best]))
      best = first + e;
  return best;
}

void ExpertStore::evict(size_t record) {
  leaving_[record] = 0;
  kept_[record] = 0;
  --kept_count_[record / static_cast<size_t>(plan_.experts)];
  give_back(record);
}

// --- a pass --------------------------------------------------------------------------------------------------------

void ExpertStore::begin_pass(const float *values, const float *fresh) {
  if (owner_ != getpid())
    reopen_queue(); // in a forked child
  std::copy(values, values + values_.size(), values_.begin());
  std::copy(fresh, fresh + fresh_.size(), fresh_.begin());
  fault_ = {};
  layer_ = -1;
}

void ExpertStore::begin_layer(int layer, std::span<const int> experts, bool both) {
  layer_ = layer;
  if (hoped_layer_ == layer)
    next_hope_ = hopes_.size(); // the layer knows better now
  both_ = both && stride(1) > 0;
  idle_called_ = false;
  remaining_ = static_cast<int>(experts.size());
  for (int e : experts) {
    int &missing = missing_[static_cast<size_t>(e)];
    missing = 0;
    for (int p = 0; p < (both_ ? 2 : 1); ++p) {
      const size_t record = id(p, layer, e);
      missing += states_[record] != ready;
      ++(kept_[record] ? counters.hits : counters.misses)[static_cast<size_t>(p)];
      if (ahead_[record]) {
        ahead_[record] = 0;
        counters.prefetch_used += states_[record] != absent;
      }
    }
  }
  std::erase_if(ahead_list_, [&](size_t record) {
    if (record / static_cast<size_t>(plan_.experts) % static_cast<size_t>(plan_.layers) != static_cast<size_t>(layer))
      return false;
    if (ahead_[record])
      drop_ahead(record);
    return true;
  });
  want(layer, experts, both_);
  pump();
}

// What was read ahead in vain makes room, at once or when it has come.
void ExpertStore::drop_ahead(size_t record) {
  ahead_[record] = 0;
  if (states_[record] == loading)
    states_[record] = abandoned;
  else if (states_[record] == ready)
    give_back(record);
}

// Lists the records to read: planes of an expert together, or of as many as are read together.
void ExpertStore::want(int layer, std::span<const int> experts, bool both) {
  wanted_.clear();
  next_wanted_ = 0;
  std::vector<int> group;
  auto flush = [&] {
    for (int p = 0; p < (both ? 2 : 1); ++p)
      for (int e : group)
        if (states_[id(p, layer, e)] == absent)
          wanted_.push_back(id(p, layer, e));
    group.clear();
  };
  for (int e : experts) {
    if (missing_[static_cast<size_t>(e)] == 0)
      continue;
    group.push_back(e);
    if (static_cast<int>(group.size()) == merged_)
      flush();
  }
  flush();
}

Read *ExpertStore::new_read() {
  Read *read = nullptr;
  if (idle_reads_.empty()) {
    read = &reads_.emplace_back();
  } else {
    read = idle_reads_.back();
    idle_reads_.pop_back();
  }
  *read = Read{};
  return read;
}

// Begins wanted reads, then hoped ones, while there is room for what they bring.
void ExpertStore::pump() {
  batch_.clear();
  while (under_way_ < depth_) {
    if (next_wanted_ == wanted_.size() && !hope())
      break;
    const size_t first = wanted_[next_wanted_];
    const int plane = plane_of(first);
    const auto p = static_cast<size_t>(plane);
    Read *read = nullptr;
    while (next_wanted_ < wanted_.size() && !free_[p].empty() && (!read || read->count < merged_)) {
      const size_t record = wanted_[next_wanted_];
      if (plane_of(record) != plane)
        break;
      const auto offset = static_cast<uint64_t>(plan_.offsets[p][record % records_of_plane_]);
      if (read && offset != read->offset + read->bytes())
        break;
      if (!read) {
        read = new_read();
        read->file = plan_.files[p];
        read->offset = offset;
      }
      const Place place = places_[record] = take_place(plane);
      counters.prefetched += ahead_[record];
      states_[record] = loading;
      read->records[static_cast<size_t>(read->count)] = static_cast<int>(record);
      read->parts[static_cast<size_t>(read->count++)] = {place.at, stride(plane)};
      read->buffer =
          read->count == 1 && static_cast<size_t>(place.segment) < registered_count_ ? place.segment : -1;
      ++next_wanted_;
    }
    if (!read)
      break; // no room
    counters.bytes_read += static_cast<int64_t>(read->bytes());
    ++counters.reads;
    ++under_way_;
    batch_.push_back(read);
  }
  if (!batch_.empty())
    queue_->start(batch_);
}

// Takes a read that has finished.
void ExpertStore::collect(Read *read) {
  --under_way_;
  idle_reads_.push_back(read);
  for (int i = 0; i < read->count; ++i) {
    const auto record = static_cast<size_t>(read->records[static_cast<size_t>(i)]);
    if (read->error && fault_.plane < 0) {
      const auto place = record % records_of_plane_;
      fault_ = {plane_of(record), static_cast<int>(place) / plan_.experts, static_cast<int>(place) % plan_.experts,
                read->error};
    }
    if (!plan_.direct)
      posix_fadvise(read->file, plan_.offsets[static_cast<size_t>(plane_of(record))][record % records_of_plane_],
                    static_cast<off_t>(stride(plane_of(record))), POSIX_FADV_DONTNEED);
    settle(record);
  }
}

void ExpertStore::settle(size_t record) {
  if (states_[record] == abandoned) {
    give_back(record);
    return;
  }
  states_[record] = ready;
  unchecked_[record] = 1;
  const size_t place = record % records_of_plane_;
  if (static_cast<int>(place / static_cast<size_t>(plan_.experts)) == layer_ && !ahead_[record])
    --missing_[place % static_cast<size_t>(plan_.experts)];
}

// Experts that are ready: those that pass through first, since they take the room of what is still to be read; those that
// stay fill the time until more has come.
void ExpertStore::hand_out(bool passing, int most, std::vector<int> &to) {
  for (int e = 0; remaining_ > 0 && most > 0 && e < plan_.experts; ++e) {
    if (missing_[static_cast<size_t>(e)] != 0)
      continue;
    bool stays = true;
    for (int p = 0; p < (both_ ? 2 : 1); ++p)
      stays = stays && kept_[id(p, layer_, e)];
    if (stays == passing)
      continue;
    to.push_back(e);
    missing_[static_cast<size_t>(e)] = kHandedOut;
    --remaining_;
    --most;
  }
}

bool ExpertStore::next(std::vector<int> &ready_experts, const std::function<void()> &idle) {
  ready_experts.clear();
  for (;;) {
    while (under_way_ > 0) {
      Read *read = queue_->finished(false);
      if (!read)
        break;
      collect(read);
    }
    if (fault_.plane >= 0)
      return false;
    pump();
    if (next_wanted_ == wanted_.size() && !idle_called_) {
      idle_called_ = true;
      idle();
    }
    hand_out(true, kPassing, ready_experts);
    if (ready_experts.empty())
      hand_out(false, kFiller, ready_experts);
    if (!ready_experts.empty() || remaining_ == 0)
      return true;
    if (under_way_ == 0)
      throw std::logic_error("experts are missing and nothing reads them");
    const double start = now();
    collect(queue_->finished(true));
    counters.wait_seconds += now() - start;
  }
}

void ExpertStore::release(std::span<const int> experts) {
  for (int e : experts)
    missing_[static_cast<size_t>(e)] = -1;
  for (int p = 0; p < (both_ ? 2 : 1); ++p) {
    passing_.clear();
    for (int e : experts) {
      const size_t record = id(p, layer_, e);
      values_[record] = fresh_[record];
      if (leaving_[record])
        evict(record);
      else if (!kept_[record])
        passing_.push_back(record);
    }
    for (size_t record : passing_)
      keep_or_drop(record, p);
  }
  pump(); // there is room again; after the last wave the next layer's attention comes before anybody asks
}

// A record that was read and used: it stays if there is room or something of less value.
void ExpertStore::keep_or_drop(size_t record, int plane) {
  if (kept_count(plane, layer_) >= quotas_[static_cast<size_t>(plane * plan_.layers + layer_)]) {
    const size_t victim = coldest(plane, layer_), waiting = coldest_waiting(plane);
    const bool later = waiting != SIZE_MAX && (victim == SIZE_MAX || fresh_[waiting] < values_[victim]);
    if (later ? !(values_[record] > fresh_[waiting]) : victim == SIZE_MAX || !(values_[record] > values_[victim])) {
      give_back(record);
      return;
    }
    if (later)
      leaving_[waiting] = 1; // it makes room once it has been used
    else
      evict(victim);
  }
  kept_[record] = 1;
  ++kept_count(plane, layer_);
  ++counters.admitted;
}

void ExpertStore::expect(int layer, std::span<const int> experts) {
  hopes_.assign(experts.begin(), experts.end());
  next_hope_ = 0;
  hoped_layer_ = layer;
  pump();
}

// Lists the next expert to read ahead if there is room for all that is missing of it: half an expert could block others.
bool ExpertStore::hope() {
  while (next_hope_ < hopes_.size()) {
    const int e = hopes_[next_hope_];
    std::array<bool, kPlanes> need{};
    for (int p = 0; p < kPlanes; ++p)
      need[static_cast<size_t>(p)] = stride(p) && states_[id(p, hoped_layer_, e)] == absent;
    if ((need[0] && free_[0].empty()) || (need[1] && free_[1].empty()) || under_way_ + kPlanes > depth_)
      return false;
    ++next_hope_;
    for (int p = 0; p < kPlanes; ++p)
      if (need[static_cast<size_t>(p)]) {
        const size_t record = id(p, hoped_layer_, e);
        wanted_.push_back(record);
        ahead_[record] = 1;
        ahead_list_.push_back(record);
      }
    if (need[0] || need[1])
      return true;
  }
  return false;
}

void ExpertStore::end_pass() {
  next_wanted_ = wanted_.size();
  next_hope_ = hopes_.size();
  layer_ = -1;
  for (size_t record : ahead_list_)
    if (ahead_[record])
      drop_ahead(record);
  ahead_list_.clear();
  while (under_way_ > 0)
    collect(queue_->finished(true));
}

void ExpertStore::abort(const StoreFault &fault) {
  if (fault_.plane < 0)
    fault_ = fault;
  while (under_way_ > 0)
    collect(queue_->finished(true));
  for (size_t record = 0; record < states_.size(); ++record)
    if (states_[record] != absent && (!kept_[record] || unchecked_[record])) {
      if (kept_[record])
        evict(record);
      else
        give_back(record);
    }
  std::fill(ahead_.begin(), ahead_.end(), 0);
  std::fill(leaving_.begin(), leaving_.end(), 0);
  ahead_list_.clear();
  std::fill(missing_.begin(), missing_.end(), -1);
  next_wanted_ = wanted_.size();
  next_hope_ = hopes_.size();
  layer_ = -1;
}

} // namespace elmoe
