#include "threads.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <pthread.h>
#include <sched.h>
#include <set>
#include <signal.h>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace elmoe {
namespace {

// Long enough to bridge the Python between two passes of a small model, short enough not to heat an idle machine.
constexpr auto kSpin = std::chrono::microseconds(400);
constexpr int kMaxThreads = 512;
// Then a waiting thread offers its CPU to others at every look: the thread that it waits for may need it.
constexpr int kSpinsBeforeYield = 1500;
// An uneven share of work makes a thread wait, but not as long as this (about 10 microseconds) most of the time.
constexpr int kSpinsBeforeStall = 300;
// Where the disk is waited for, too: about 30 microseconds, less than a read takes.
constexpr int kSpinsBeforeSleep = 1000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Distinct physical cores among the CPUs that this process may run on: a core's second hardware thread adds nothing to
// a loop that is bound by memory.
int allowed_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return std::max(1u, std::thread::hardware_concurrency());
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed))
      continue;
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::string package, core;
    std::ifstream(base + "physical_package_id") >> package;
    std::ifstream(base + "core_id") >> core;
    cores.insert(core.empty() ? "cpu" + std::to_string(cpu) : package + ":" + core);
  }
  return std::max(1, static_cast<int>(cores.size()));
}

// CPUs that the cgroup's quota pays for (v2, then v1), rounded up; a large number without one.
int cgroup_cpus() {
  std::string quota;
  double period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> quota >> period && quota != "max" && period > 0)
    return std::max(1, static_cast<int>(std::ceil(std::stod(quota) / period)));
  double microseconds = -1;
  std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> microseconds;
  std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  return microseconds > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(microseconds / period))) : kMaxThreads;
}

} // namespace

int default_threads() {
  if (const char *wanted = std::getenv("ELMOE_NUM_THREADS"); wanted && *wanted) {
    char *end = nullptr;
    const long count = std::strtol(wanted, &end, 10);
    if (*end || count < 1 || count > kMaxThreads)
      throw std::invalid_argument("ELMOE_NUM_THREADS must be 1 to " + std::to_string(kMaxThreads) + ", not " + wanted);
    return static_cast<int>(count);
  }
  return std::min({allowed_cores(), cgroup_cpus(), kMaxThreads});
}

void Barrier::spin_until_changed(uint32_t generation) {
  for (int spins = 0; spins < kSpinsBeforeStall; ++spins) {
    if (generation_.load(std::memory_order_acquire) != generation)
      return;
    relax();
  }
  const auto start = std::chrono::steady_clock::now();
  for (int spins = 0; spins < kSpinsBeforeYield; ++spins) {
    if (generation_.load(std::memory_order_acquire) != generation)
      break;
    relax();
  }
  while (generation_.load(std::memory_order_acquire) == generation) {
    relax();
    sched_yield();
  }
  const std::chrono::nanoseconds waited = std::chrono::steady_clock::now() - start;
  stalled_ns_.fetch_add(waited.count(), std::memory_order_relaxed);
}

void Barrier::sleep_until_changed(uint32_t generation) {
  for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
    if (generation_.load(std::memory_order_acquire) != generation)
      return;
    relax();
  }
  while (generation_.load(std::memory_order_acquire) == generation)
    generation_.wait(generation, std::memory_order_acquire);
}

void WorkQueue::fill(int tasks) {
  const auto threads = static_cast<int64_t>(threads_);
  for (int64_t t = 0; t < threads; ++t)
    runs_[static_cast<size_t>(t)].bounds.store(
        pack(static_cast<int>(tasks * t / threads), static_cast<int>(tasks * (t + 1) / threads)),
        std::memory_order_relaxed);
}

int WorkQueue::take_front(Run &run) {
  uint64_t bounds = run.bounds.load(std::memory_order_relaxed);
  for (;;) {
    const auto begin = static_cast<uint32_t>(bounds), end = static_cast<uint32_t>(bounds >> 32);
    if (begin >= end)
      return -1;
    if (run.bounds.compare_exchange_weak(bounds, bounds + 1, std::memory_order_relaxed))
      return static_cast<int>(begin);
  }
}

int WorkQueue::take_back(Run &run) {
  uint64_t bounds = run.bounds.load(std::memory_order_relaxed);
  for (;;) {
    const auto begin = static_cast<uint32_t>(bounds), end = static_cast<uint32_t>(bounds >> 32);
    if (begin >= end)
      return -1;
    if (run.bounds.compare_exchange_weak(bounds, bounds - (uint64_t{1} << 32), std::memory_order_relaxed))
      return static_cast<int>(end - 1);
  }
}

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  // Signals go to the threads of the application, not to ours.
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  for (int thread = 1; thread < threads; ++thread) {
    try {
      std::thread([this, thread] { work(thread); }).detach();
    } catch (const std::system_error &) { // a limit on processes: go on with those that there are
      threads_ = thread;
      break;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ThreadPool::work(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    const auto asleep_at = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 1; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
      relax();
      if (spins % 64 == 0 && std::chrono::steady_clock::now() > asleep_at)
        epoch_.wait(seen, std::memory_order_acquire);
    }
    call_(body_, thread);
    working_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::start() {
  if (threads_ == 1)
    return;
  working_.store(threads_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
}

void ThreadPool::finish() {
  for (int spins = 0; working_.load(std::memory_order_acquire) > 0; ++spins) {
    relax();
    if (spins > kSpinsBeforeYield)
      sched_yield();
  }
}

namespace {
std::mutex pool_guard;
ThreadPool *pool = nullptr; // a fork leaves the parent's, which has no threads there, behind in the child
} // namespace

ThreadPool &ThreadPool::shared() {
  static const int registered = pthread_atfork([] { pool_guard.lock(); }, [] { pool_guard.unlock(); },
                                               [] {
                                                 pool_guard.unlock();
                                                 pool = nullptr;
                                               });
  (void)registered;
  const std::lock_guard<std::mutex> lock(pool_guard);
  if (!pool)
    pool = new ThreadPool(default_threads());
  return *pool;
}

} // namespace elmoe
