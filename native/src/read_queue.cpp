#include "read_queue.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include <csignal>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if __has_include(<linux/io_uring.h>) && defined(__NR_io_uring_setup)
#include <linux/io_uring.h>
#define ELMOE_IO_URING 1
#endif

namespace elmoe {

size_t Read::bytes() const {
  size_t sum = 0;
  for (int i = first_; i < count; ++i)
    sum += parts[static_cast<size_t>(i)].iov_len;
  return sum;
}

bool Read::advance(size_t done) {
  offset += done;
  while (first_ < count && done >= parts[static_cast<size_t>(first_)].iov_len)
    done -= parts[static_cast<size_t>(first_++)].iov_len;
  if (first_ == count)
    return false;
  iovec &part = parts[static_cast<size_t>(first_)];
  part.iov_base = static_cast<uint8_t *>(part.iov_base) + done;
  part.iov_len -= done;
  return true;
}

namespace {

#ifdef ELMOE_IO_URING

int setup(unsigned entries, io_uring_params *params) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}
int enter(int ring, unsigned submit, unsigned complete, unsigned flags) {
  return static_cast<int>(syscall(__NR_io_uring_enter, ring, submit, complete, flags, nullptr, 0));
}
int enlist(int ring, unsigned what, const void *arg, unsigned count) {
  return static_cast<int>(syscall(__NR_io_uring_register, ring, what, arg, count));
}

uint32_t load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
void store_release(uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

// The rings of io_uring(7), one user at a time.
class Uring final : public ReadQueue {
public:
  explicit Uring(int depth) {
    io_uring_params params{};
    ring_ = setup(static_cast<unsigned>(depth), &params);
    if (ring_ < 0)
      throw std::runtime_error(std::string("io_uring_setup: ") + std::strerror(errno));
    if (!(params.features & IORING_FEAT_SINGLE_MMAP)) {
      close(ring_);
      throw std::runtime_error("io_uring: the kernel is older than 5.4");
    }
    size_ = std::max(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                     params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    entries_size_ = params.sq_entries * sizeof(io_uring_sqe);
    auto map = [&](size_t size, off_t what) {
      return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_, what);
    };
    base_ = map(size_, IORING_OFF_SQ_RING);
    void *entries = base_ == MAP_FAILED ? MAP_FAILED : map(entries_size_, IORING_OFF_SQES);
    if (entries == MAP_FAILED) {
      if (base_ != MAP_FAILED)
        munmap(base_, size_);
      close(ring_);
      throw std::runtime_error(std::string("io_uring: ") + std::strerror(errno));
    }
    entries_ = static_cast<io_uring_sqe *>(entries);
    auto at = [&](uint32_t offset) { return reinterpret_cast<uint32_t *>(static_cast<uint8_t *>(base_) + offset); };
    sq_tail_ = at(params.sq_off.tail);
    sq_mask_ = *at(params.sq_off.ring_mask);
    sq_array_ = at(params.sq_off.array);
    cq_head_ = at(params.cq_off.head);
    cq_tail_ = at(params.cq_off.tail);
    cq_mask_ = *at(params.cq_off.ring_mask);
    cqes_ = reinterpret_cast<io_uring_cqe *>(static_cast<uint8_t *>(base_) + params.cq_off.cqes);
  }
  ~Uring() override {
    munmap(entries_, entries_size_);
    munmap(base_, size_);
    close(ring_);
  }
  Uring(const Uring &) = delete;
  Uring &operator=(const Uring &) = delete;

  const char *name() const override { return "io_uring"; }

  bool register_buffers(std::span<const iovec> buffers) override {
    if (registered_)
      enlist(ring_, IORING_UNREGISTER_BUFFERS, nullptr, 0);
    registered_ =
        !buffers.empty() &&
        enlist(ring_, IORING_REGISTER_BUFFERS, buffers.data(), static_cast<unsigned>(buffers.size())) == 0;
    return registered_;
  }

  void start(std::span<Read *const> reads) override {
    for (Read *read : reads)
      push(*read);
    submit();
  }

  Read *finished(bool wait) override {
    for (;;) {
      const uint32_t head = *cq_head_;
      if (head == load_acquire(cq_tail_)) {
        if (!wait)
          return nullptr;
        if (enter(ring_, to_submit_, 1, IORING_ENTER_GETEVENTS) >= 0)
          to_submit_ = 0;
        else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)
          throw std::runtime_error(std::string("io_uring_enter: ") + std::strerror(errno));
        continue;
      }
      const io_uring_cqe &done = cqes_[head & cq_mask_];
      Read *read = reinterpret_cast<Read *>(done.user_data);
      const int result = done.res;
      store_release(cq_head_, head + 1);
      if (result > 0) {
        if (!read->advance(static_cast<size_t>(result)))
          return read;
      } else if (result == 0) {
        read->error = kEndOfFile;
        return read;
      } else if (result != -EINTR && result != -EAGAIN) {
        read->error = -result;
        return read;
      }
      push(*read); // the rest of it
      submit();
    }
  }

private:
  void push(Read &read) {
    const uint32_t tail = *sq_tail_, slot = tail & sq_mask_;
    io_uring_sqe &entry = entries_[slot];
    entry = {};
    entry.fd = read.file;
    entry.off = read.offset;
    entry.user_data = reinterpret_cast<uint64_t>(&read);
    if (registered_ && read.buffer >= 0) {
      entry.opcode = IORING_OP_READ_FIXED;
      entry.addr = reinterpret_cast<uint64_t>(read.left()->iov_base);
      entry.len = static_cast<uint32_t>(read.left()->iov_len);
      entry.buf_index = static_cast<uint16_t>(read.buffer);
    } else {
      entry.opcode = IORING_OP_READV;
      entry.addr = reinterpret_cast<uint64_t>(read.left());
      entry.len = static_cast<uint32_t>(read.parts_left());
    }
    sq_array_[slot] = slot;
    store_release(sq_tail_, tail + 1);
    ++to_submit_;
  }
  void submit() {
    while (to_submit_ > 0) {
      const int count = enter(ring_, to_submit_, 0, 0);
      if (count >= 0)
        to_submit_ -= static_cast<unsigned>(count);
      else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)
        throw std::runtime_error(std::string("io_uring_enter: ") + std::strerror(errno));
    }
  }

  int ring_ = -1;
  void *base_ = nullptr;
  size_t size_ = 0, entries_size_ = 0;
  io_uring_sqe *entries_ = nullptr;
  uint32_t *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
  uint32_t sq_mask_ = 0, cq_mask_ = 0, to_submit_ = 0;
  io_uring_cqe *cqes_ = nullptr;
  bool registered_ = false;
};

#endif

// preadv by threads that sleep while there is nothing to read.
class Readers final : public ReadQueue {
public:
  explicit Readers(int depth) {
    sigset_t every, before; // signals go to the threads of the application
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    try {
      for (int i = 0; i < std::min(depth, 16); ++i)
        threads_.emplace_back([this] { work(); });
    } catch (const std::system_error &) { // a limit on processes: go on with those that there are
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (threads_.empty())
      throw std::runtime_error("no thread could be started to read with");
  }
  ~Readers() override {
    {
      const std::lock_guard<std::mutex> lock(guard_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread &thread : threads_)
      thread.join();
  }
  const char *name() const override { return "threads"; }
  bool register_buffers(std::span<const iovec>) override { return false; }

  void start(std::span<Read *const> reads) override {
    {
      const std::lock_guard<std::mutex> lock(guard_);
      waiting_.insert(waiting_.end(), reads.begin(), reads.end());
    }
    wanted_.notify_all();
  }

  Read *finished(bool wait) override {
    std::unique_lock<std::mutex> lock(guard_);
    if (wait)
      ready_.wait(lock, [this] { return !done_.empty(); });
    if (done_.empty())
      return nullptr;
    Read *read = done_.front();
    done_.pop_front();
    return read;
  }

private:
  static void carry_out(Read &read) {
    for (;;) {
      const ssize_t got = preadv(read.file, read.left(), read.parts_left(), static_cast<off_t>(read.offset));
      if (got > 0 && !read.advance(static_cast<size_t>(got)))
        return;
      if (got == 0) {
        read.error = kEndOfFile;
        return;
      }
      if (got < 0 && errno != EINTR && errno != EAGAIN) {
        read.error = errno;
        return;
      }
    }
  }
  void work() {
    std::unique_lock<std::mutex> lock(guard_);
    for (;;) {
      wanted_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_)
        return;
      Read *read = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      carry_out(*read);
      lock.lock();
      done_.push_back(read);
      ready_.notify_one();
    }
  }

  std::mutex guard_;
  std::condition_variable wanted_, ready_;
  std::deque<Read *> waiting_, done_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

} // namespace

std::unique_ptr<ReadQueue> ReadQueue::open(int depth, const std::string &kind) {
#ifdef ELMOE_IO_URING
  if (kind != "threads") {
    try {
      return std::make_unique<Uring>(depth);
    } catch (const std::runtime_error &) { // seccomp, an old kernel, a sysctl
      if (kind == "io_uring")
        throw;
    }
  }
#else
  if (kind == "io_uring")
    throw std::runtime_error("io_uring: built without it");
#endif
  return std::make_unique<Readers>(depth);
}

} // namespace elmoe
