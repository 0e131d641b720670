// Many reads of files at once, without the page cache: by io_uring where the kernel has it, else by threads.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <sys/uio.h>

namespace elmoe {

constexpr int kMostParts = 8;       // pieces of memory that one read fills
constexpr int kEndOfFile = -1;      // error of a read that the file was too short for

// A contiguous piece of a file, read into one or several pieces of memory. Owned by the caller until it has finished.
struct Read {
  int file = -1; // descriptor
  uint64_t offset = 0;
  std::array<iovec, kMostParts> parts{};
  int count = 0;
  int buffer = -1; // number of the registered buffer that holds the only part; -1: none does
  int error = 0;   // 0, an errno, or kEndOfFile
  std::array<int, kMostParts> records{}; // the caller's

  size_t bytes() const;
  // What is left after `done` more bytes; false if nothing is.
  bool advance(size_t done);

private:
  int first_ = 0; // part that is being read

public:
  const iovec *left() const { return &parts[static_cast<size_t>(first_)]; }
  int parts_left() const { return count - first_; }
};

class ReadQueue {
public:
  // depth: reads that may be under way. kind: "io_uring", "threads", or "" for the first of these that works here.
  static std::unique_ptr<ReadQueue> open(int depth, const std::string &kind);
  virtual ~ReadQueue() = default;
  virtual const char *name() const = 0;
  // Memory that reads will go to, in pieces; pins it. False where that is not possible: reads work all the same.
  virtual bool register_buffers(std::span<const iovec> buffers) = 0;
  // Begins some reads, in this order.
  virtual void start(std::span<Read *const> reads) = 0;
  // A read that has finished. None has: waits for one if `wait`, else null. At least one must be under way to wait for.
  virtual Read *finished(bool wait) = 0;
};

} // namespace elmoe
