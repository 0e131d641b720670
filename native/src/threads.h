// One pool of threads for the whole process, and the ways in which they share work.
//
// Several models share the pool, one pass at a time, so they never run more threads than there are CPUs. Threads spin
// briefly between and inside passes, then sleep. A forked child starts a pool of its own.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <vector>

namespace elmoe {

// Threads to use: ELMOE_NUM_THREADS, else one per physical core that affinity mask and cgroup quota allow.
int default_threads();

// Where all threads of a pass meet.
class Barrier {
public:
  // Before a pass: how many take part, and whether those that wait sleep soon: then the disk is waited for, too, and
  // the kernel needs the CPU. Forgets the stalls.
  void begin(int threads, bool sleepy) {
    threads_ = threads;
    sleepy_ = sleepy;
    stalled_ns_.store(0, std::memory_order_relaxed);
  }
  void wait() {
    wait([] {});
  }
  // The last thread to arrive runs `completion` before the others go on.
  template <class F> void wait(F &&completion) {
    if (threads_ == 1) {
      completion();
      return;
    }
    const uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      completion();
      generation_.store(generation + 1, std::memory_order_release);
      if (sleepy_)
        generation_.notify_all();
    } else if (sleepy_) {
      sleep_until_changed(generation);
    } else {
      spin_until_changed(generation);
    }
  }

  // Long waits of this pass, of all threads added up.
  double stalled_seconds() const { return 1e-9 * static_cast<double>(stalled_ns_.load(std::memory_order_relaxed)); }

private:
  void spin_until_changed(uint32_t generation);
  void sleep_until_changed(uint32_t generation);
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<int64_t> stalled_ns_{0};
  int threads_ = 1;
  bool sleepy_ = false;
};

// Tasks 0..n-1, dealt out in contiguous runs so that each thread streams its own weights in order; a thread that has
// finished takes from the end of another's run, so a thread that the machine holds up delays nobody for long.
class WorkQueue {
public:
  explicit WorkQueue(int most_threads) : runs_(static_cast<size_t>(most_threads)) {}
  void begin(int threads) { threads_ = static_cast<size_t>(threads); } // before a pass: how many take part
  // Called by one thread while all others wait: equal runs ...
  void fill(int tasks);
  // ... or runs of about equal cost; cost(task) > 0.
  template <class F> void fill(int tasks, F &&cost) {
    int64_t total = 0;
    for (int i = 0; i < tasks; ++i)
      total += cost(i);
    int next = 0;
    int64_t done = 0;
    const auto threads = static_cast<int64_t>(threads_);
    for (int64_t t = 0; t < threads; ++t) {
      const int begin = next;
      while (next < tasks && (t == threads - 1 || (done + cost(next) / 2) * threads < total * (t + 1)))
        done += cost(next++);
      runs_[static_cast<size_t>(t)].bounds.store(pack(begin, next), std::memory_order_relaxed);
    }
  }
  // Runs f(task) for tasks of thread `self`, then for those of others.
  template <class F> void drain(int self, F &&f) {
    for (int task; (task = take_front(runs_[static_cast<size_t>(self)])) >= 0;)
      f(task);
    for (size_t i = 1; i < threads_; ++i)
      for (int task; (task = take_back(runs_[(static_cast<size_t>(self) + i) % threads_])) >= 0;)
        f(task);
  }

private:
  struct alignas(64) Run {
    std::atomic<uint64_t> bounds{0}; // begin in the low half, end in the high half
  };
  static uint64_t pack(int begin, int end) {
    return static_cast<uint32_t>(begin) | static_cast<uint64_t>(static_cast<uint32_t>(end)) << 32;
  }
  static int take_front(Run &run);
  static int take_back(Run &run);
  std::vector<Run> runs_;
  size_t threads_ = 1;
};

class ThreadPool {
public:
  // The process's pool, started at first use and again in a forked child.
  static ThreadPool &shared();
  int size() const { return threads_; }
  // Runs f(thread) on all threads, the caller's being thread 0, and waits. Passes of several callers queue up.
  // f must not throw.
  template <class F> void run(F &&f) {
    const std::lock_guard<std::mutex> one_at_a_time(running_);
    call_ = [](void *body, int thread) { (*static_cast<std::remove_reference_t<F> *>(body))(thread); };
    body_ = &f;
    start();
    f(0);
    finish();
  }

private:
  explicit ThreadPool(int threads); // never destroyed: its threads may run when static objects are
  void work(int thread);
  void start();
  void finish();
  int threads_;
  std::mutex running_;
  void (*call_)(void *, int) = nullptr;
  void *body_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0}; // one more with every pass; the workers wait for it
  alignas(64) std::atomic<int> working_{0};
};

} // namespace elmoe
