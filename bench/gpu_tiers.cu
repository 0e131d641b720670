// What a GPU with two memory tiers can do: device memory in front of pinned host memory. Prints one JSON document.
//   nvcc -O3 -std=c++17 -arch=sm_90 bench/gpu_tiers.cu -o gpu_tiers && ./gpu_tiers > tiers.json
// All rates are medians of repeated timings with CUDA events, in GB/s (1e9 bytes); latencies in microseconds.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(call)                                                                          \
  do {                                                                                       \
    cudaError_t status = (call);                                                             \
    if (status != cudaSuccess) {                                                             \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status));   \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (0)

constexpr size_t KIB = 1 << 10, MIB = 1 << 20, GIB = 1 << 30;
constexpr int REPEATS = 7;

// Sum of all words: nothing but reads, 16 bytes a thread, four in flight. The result is stored so that no read can be dropped.
__global__ void read_all(const uint4* __restrict__ words, size_t count, unsigned* out) {
  unsigned sum = 0;
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = words[i], b = words[i + stride], c = words[i + 2 * stride], d = words[i + 3 * stride];
    sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += stride) {
    const uint4 a = words[i];
    sum += a.x ^ a.y ^ a.z ^ a.w;
  }
  atomicAdd(out, sum);
}

__global__ void nothing() {}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Median GB/s of `work`, which moves `bytes` on the default stream or joins it.
template <typename Work>
double gb_per_s(size_t bytes, Work work) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<double> rates;
  for (int repeat = 0; repeat <= REPEATS; ++repeat) {
    CHECK(cudaEventRecord(begin));
    work();
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (repeat > 0) rates.push_back(bytes / (ms * 1e6));  // the first one warms up
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  return median(rates);
}

template <typename Work>
double host_us(Work work, int repeats) {
  std::vector<double> times;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  return median(times);
}

// Copies `total` bytes in chunks, dealt over `streams`, between two events of the default stream.
double chunked_copy(char* to, const char* from, size_t total, size_t chunk, const std::vector<cudaStream_t>& streams,
                    cudaMemcpyKind kind) {
  std::vector<cudaEvent_t> done(streams.size());
  for (auto& event : done) CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  cudaEvent_t start;
  CHECK(cudaEventCreateWithFlags(&start, cudaEventDisableTiming));
  const double rate = gb_per_s(total, [&] {
    CHECK(cudaEventRecord(start));
    for (auto stream : streams) CHECK(cudaStreamWaitEvent(stream, start));
    size_t number = 0;
    for (size_t at = 0; at < total; at += chunk, ++number)
      CHECK(cudaMemcpyAsync(to + at, from + at, chunk, kind, streams[number % streams.size()]));
    for (size_t s = 0; s < streams.size(); ++s) {
      CHECK(cudaEventRecord(done[s], streams[s]));
      CHECK(cudaStreamWaitEvent(nullptr, done[s]));
    }
  });
  for (auto event : done) CHECK(cudaEventDestroy(event));
  CHECK(cudaEventDestroy(start));
  return rate;
}

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  const size_t device_bytes = 8 * GIB, host_bytes = 1 * GIB;
  char *on_device = nullptr, *copy = nullptr, *pinned = nullptr;
  unsigned* sum = nullptr;
  CHECK(cudaMalloc(&on_device, device_bytes));
  CHECK(cudaMalloc(&copy, device_bytes));
  CHECK(cudaMalloc(&sum, sizeof *sum));
  CHECK(cudaMemset(on_device, 0x5a, device_bytes));
  CHECK(cudaMallocHost(&pinned, host_bytes));
  for (size_t i = 0; i < host_bytes; i += 8) *reinterpret_cast<size_t*>(pinned + i) = i * 0x9E3779B97F4A7C15ull;
  std::vector<cudaStream_t> streams(8);
  for (auto& stream : streams) CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));

  std::printf("{\n \"device\": \"%s\", \"multiprocessors\": %d, \"l2_mb\": %.0f,\n", device.name,
              device.multiProcessorCount, device.l2CacheSize / 1e6);
  std::printf(" \"device_read_gb_per_s\": {");
  const int sms = device.multiProcessorCount;
  const char* comma = "";
  for (int blocks : {1, 2, 4, 8}) {
    const double rate = gb_per_s(device_bytes, [&] {
      read_all<<<blocks * sms, 512>>>(reinterpret_cast<uint4*>(on_device), device_bytes / 16, sum);
    });
    std::printf("%s\"%d blocks of 512 per SM\": %.0f", comma, blocks, rate);
    comma = ", ";
  }
  std::printf("},\n \"device_copy_gb_per_s_read_plus_written\": %.0f,\n", gb_per_s(2 * device_bytes, [&] {
                CHECK(cudaMemcpyAsync(copy, on_device, device_bytes, cudaMemcpyDeviceToDevice));
              }));

  for (auto [name, kind] : {std::pair{"pinned_host_to_device", cudaMemcpyHostToDevice},
                            std::pair{"device_to_pinned_host", cudaMemcpyDeviceToHost}}) {
    std::printf(" \"%s_gb_per_s\": [\n", name);
    comma = "  ";
    for (size_t chunk : {64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB}) {
      for (size_t count : {1, 2, 4, 8}) {
        const std::vector<cudaStream_t> used(streams.begin(), streams.begin() + count);
        const size_t total = chunk < MIB ? host_bytes / 4 : host_bytes;
        const bool up = kind == cudaMemcpyHostToDevice;
        const double rate = chunked_copy(up ? on_device : pinned, up ? pinned : on_device, total, chunk, used, kind);
        std::printf("%s{\"chunk_kib\": %zu, \"streams\": %zu, \"gb_per_s\": %.2f}", comma, chunk / KIB, count, rate);
        comma = ",\n  ";
      }
    }
    std::printf("],\n");
  }

  std::printf(" \"kernel_reads_pinned_host_gb_per_s\": [\n");
  comma = "  ";
  for (int blocks : {1, 4, 16, 32, 64, sms, 2 * sms, 8 * sms}) {
    const double rate = gb_per_s(host_bytes, [&] {
      read_all<<<blocks, 512>>>(reinterpret_cast<uint4*>(pinned), host_bytes / 16, sum);
    });
    std::printf("%s{\"blocks_of_512\": %d, \"gb_per_s\": %.2f}", comma, blocks, rate);
    comma = ",\n  ";
  }
  std::printf("],\n");

  // A kernel that reads the host and a copy engine that reads it at the same time: do they share one link's rate?
  std::printf(" \"kernel_and_copy_together_gb_per_s\": %.2f,\n", gb_per_s(2 * (host_bytes / 2), [&] {
                cudaEvent_t start, done;
                CHECK(cudaEventCreateWithFlags(&start, cudaEventDisableTiming));
                CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
                CHECK(cudaEventRecord(start));
                CHECK(cudaStreamWaitEvent(streams[0], start));
                CHECK(cudaMemcpyAsync(on_device, pinned, host_bytes / 2, cudaMemcpyHostToDevice, streams[0]));
                CHECK(cudaEventRecord(done, streams[0]));
                read_all<<<64, 512>>>(reinterpret_cast<uint4*>(pinned + host_bytes / 2), host_bytes / 32, sum);
                CHECK(cudaStreamWaitEvent(nullptr, done));
                CHECK(cudaEventDestroy(start));
                CHECK(cudaEventDestroy(done));
              }));

  std::printf(" \"latency_us\": {\n");
  comma = "  ";
  for (size_t bytes : {size_t(64), 4 * KIB, 64 * KIB, 1 * MIB}) {
    const double us = host_us([&] {
      CHECK(cudaMemcpyAsync(on_device, pinned, bytes, cudaMemcpyHostToDevice, streams[0]));
      CHECK(cudaStreamSynchronize(streams[0]));
    }, 500);
    std::printf("%s\"copy of %zu bytes to the device and wait\": %.2f", comma, bytes, us);
    comma = ",\n  ";
  }
  std::printf(",\n  \"empty kernel and wait\": %.2f", host_us([&] {
                nothing<<<1, 1, 0, streams[0]>>>();
                CHECK(cudaStreamSynchronize(streams[0]));
              }, 500));
  std::printf(",\n  \"enqueue one copy of 64 KiB\": %.2f", host_us([&] {
                CHECK(cudaMemcpyAsync(on_device, pinned, 64 * KIB, cudaMemcpyHostToDevice, streams[0]));
              }, 500));
  CHECK(cudaDeviceSynchronize());
  std::printf("}\n}\n");
  return 0;
}
