// Aligned memory that only grows, and zeroed pages for the KV cache.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>
#include <sys/mman.h>

namespace elmoe {

// Scratch space of T: 64-byte aligned, contents lost when it grows.
template <class T> class Scratch {
public:
  Scratch() = default;
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  Scratch(Scratch &&other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  ~Scratch() { std::free(data_); }
  T *grow(size_t count) {
    if (count > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
      if (!data_)
        throw std::bad_alloc();
      size_ = count;
    }
    return data_;
  }
  T *data() const { return data_; }
  T &operator[](size_t i) const { return data_[i]; }

private:
  T *data_ = nullptr;
  size_t size_ = 0;
};

// Zeroed anonymous pages; physical memory is taken as it is touched.
class Pages {
public:
  explicit Pages(size_t bytes) : bytes_(bytes ? bytes : 1) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED)
      throw std::bad_alloc();
  }
  Pages(const Pages &) = delete;
  Pages &operator=(const Pages &) = delete;
  ~Pages() { munmap(data_, bytes_); }
  // Only where all of it is going to be touched: a huge page is zeroed whole.
  void prefer_huge() { madvise(data_, bytes_, MADV_HUGEPAGE); }
  template <class T> T *as() const { return static_cast<T *>(data_); }

private:
  void *data_;
  size_t bytes_;
};

} // namespace elmoe
