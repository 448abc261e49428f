// One thread of the system per CUDA thread, several blocks at once: for the thread sanitizer.
//
// Compiled WITHOUT the sanitizer, so that nothing here orders memory in its eyes except what does
// on a device: __syncthreads (a pthread_barrier, which it knows), and the beginning and the end of
// a kernel. Shuffles and the hand-over from one block to the next are invisible to it.
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "emulation.h"

namespace emulation {
namespace {

constexpr unsigned kSecondsOfAKernel = 60;

[[noreturn]] void fail(const char* what, Site site = {nullptr, 0}) {
  std::fprintf(stderr, "emulation: block %u, thread %u %s", blockIdx.x, threadIdx.x, what);
  if (site.file) std::fprintf(stderr, " at %s:%d", site.file, site.line);
  std::fputc('\n', stderr);
  _exit(71);
}

void stuck(int) {
  static const char text[] = "emulation: the CUDA threads wait for one another\n";
  if (write(2, text, sizeof text - 1) < 0) _exit(72);
  _exit(71);
}

// The values of the lanes that exchange; two sets, since a lane may be one exchange ahead.
struct Warp {
  std::atomic<uint64_t> values[2][kWarp];
  std::atomic<uint32_t> arrived{0}, generation{0}, mask{0};
  std::atomic<uint32_t> ended{0}, met[kWarp] = {};  // lanes; barriers that each has come to
};

struct Array {
  const void* type;
  int64_t tag;
  size_t bytes, start;
};

struct Block {
  explicit Block(unsigned threads) : warps((threads + kWarp - 1) / kWarp), memory(new char[kRoom]) {
    for (pthread_barrier_t& each : all) pthread_barrier_init(&each, nullptr, threads);
    std::memset(memory.get(), kGarbage, kRoom);
    // The sanitizer sees the memmove of a vector that grows, but not the lock around it.
    arrays.reserve(64);
  }
  ~Block() {
    for (pthread_barrier_t& each : all) pthread_barrier_destroy(&each);
  }

  static constexpr size_t kRoom = kSharedBytes + 64;
  // Taken in turn. With one, a thread that wakes late from a barrier would, in the sanitizer's
  // eyes, acquire what others did before they came to the next, and a missing barrier would be
  // hidden.
  pthread_barrier_t all[2];
  std::vector<Warp> warps;
  std::unique_ptr<char[]> memory;
  std::atomic_flag busy{};
  std::vector<Array> arrays{};
  size_t used = 0;
  // high half: the most barriers that a thread has come to; low half: 1 + those that the threads
  // which have ended came to. One word, so that two threads cannot miss each other.
  std::atomic<uint64_t> barriers{0};
};

thread_local Block* block = nullptr;
thread_local uint32_t barriers_met = 0;

uint32_t most_met(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
uint32_t ended_after(uint64_t word) { return static_cast<uint32_t>(word); }

void enter(Block& entered, unsigned index, unsigned thread) {
  block = &entered;
  barriers_met = 0;
  blockIdx = {index, 0, 0};
  threadIdx = {thread, 0, 0};
}

void leave() {
  uint64_t word = block->barriers, wanted;
  do {
    if (most_met(word) > barriers_met) fail("ended while others wait at a barrier");
    if (ended_after(word) && ended_after(word) != barriers_met + 1) fail("ended too late");
    wanted = (word >> 32 << 32) | (barriers_met + 1);
  } while (!block->barriers.compare_exchange_weak(word, wanted));
}

Warp& own_warp() { return block->warps[threadIdx.x / kWarp]; }

// A lane that goes elsewhere looks whether its warp waits for it in a shuffle, and who shuffles,
// whether a lane that it waits for has gone elsewhere. Both have said so before they look.
void check_not_awaited(const char* what, Site site = {nullptr, 0}) {
  if (own_warp().mask >> threadIdx.x % kWarp & 1) fail(what, site);
}
void check_can_come(const Warp& warp, uint32_t wanted, Site site) {
  if (warp.ended & wanted) fail("shuffles with a lane that has ended", site);
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if (wanted >> lane & 1 && warp.met[lane] > barriers_met)
      fail("shuffles with a lane that waits at a barrier", site);
}

struct Kernel {
  unsigned blocks, threads, slots;
  const std::function<void()>& body;
  std::vector<std::unique_ptr<Block>> made;

  // What one thread of the system does: one thread of every slots-th block.
  void work(unsigned worker) {
    blockDim = {threads, 1, 1};
    gridDim = {blocks, 1, 1};
    for (unsigned k = worker / threads; k < blocks; k += slots) {
      const unsigned b = settings.seed == 1 ? blocks - 1 - k : k;
      enter(*made[b], b, worker % threads);
      body();
      own_warp().ended |= 1u << threadIdx.x % kWarp;
      check_not_awaited("ended while its warp shuffles");
      leave();
    }
  }
};

// Threads are kept between kernels. Starting and ending one goes through a mutex, which the
// sanitizer knows: kernels of one stream see all that the earlier ones wrote.
class Pool {
 public:
  ~Pool() {
    launch(nullptr, 0);
    for (std::thread& each : threads_) each.join();
  }
  void run(Kernel& kernel) {
    const unsigned wanted = kernel.slots * kernel.threads;
    launch(&kernel, wanted);
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return finished_ == wanted; });
  }

 private:
  void launch(Kernel* kernel, unsigned wanted) {
    const std::lock_guard lock(mutex_);
    kernel_ = kernel;
    wanted_ = wanted;
    finished_ = 0;
    ++generation_;
    for (unsigned k = static_cast<unsigned>(threads_.size()); k < wanted; ++k)
      threads_.emplace_back([this, k, from = generation_ - 1] { serve(k, from); });
    begun_.notify_all();
  }
  void serve(unsigned worker, uint64_t served) {
    std::unique_lock lock(mutex_);
    while (true) {
      begun_.wait(lock, [&] { return generation_ != served; });
      served = generation_;
      if (!kernel_) return;
      if (worker >= wanted_) continue;
      Kernel& kernel = *kernel_;
      lock.unlock();
      kernel.work(worker);
      lock.lock();
      if (++finished_ == wanted_) ended_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable begun_, ended_;
  std::vector<std::thread> threads_;
  Kernel* kernel_ = nullptr;
  unsigned wanted_ = 0, finished_ = 0;
  uint64_t generation_ = 0;
};

}  // namespace

void run(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  static Pool pool;
  Kernel kernel{blocks, threads, std::min(blocks, std::max(1u, settings.resident)), body, {}};
  for (unsigned b = 0; b < blocks; ++b) kernel.made.push_back(std::make_unique<Block>(threads));
  std::signal(SIGALRM, stuck);
  alarm(kSecondsOfAKernel);
  pool.run(kernel);
  alarm(0);
}

void barrier(Site site) {
  ++barriers_met;
  own_warp().met[threadIdx.x % kWarp] = barriers_met;
  check_not_awaited("waits at a barrier while its warp shuffles", site);
  uint64_t word = block->barriers, wanted;
  do {
    if (ended_after(word) && barriers_met >= ended_after(word))
      fail("waits at a barrier while others have ended", site);
    wanted = (uint64_t{std::max(most_met(word), barriers_met)} << 32) | ended_after(word);
  } while (!block->barriers.compare_exchange_weak(word, wanted));
  pthread_barrier_wait(&block->all[barriers_met % 2]);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned flip, Site site) {
  Warp& warp = own_warp();
  const unsigned first = threadIdx.x / kWarp * kWarp, lane = threadIdx.x % kWarp;
  const unsigned lanes = std::min(kWarp, blockDim.x - first);
  const uint32_t exists = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  const uint32_t wanted = mask & exists;
  if (!(wanted >> lane & 1) || !(wanted >> (lane ^ flip) & 1))
    fail("shuffles with a lane outside of the mask", site);
  const uint32_t generation = warp.generation;
  warp.values[generation & 1][lane] = value;
  uint32_t none = 0;
  if (!warp.mask.compare_exchange_strong(none, wanted) && none != wanted)
    fail("shuffles with another mask than its warp", site);
  check_can_come(warp, wanted, site);
  if (warp.arrived.fetch_add(1) + 1 == static_cast<uint32_t>(std::popcount(wanted))) {
    warp.arrived = 0;
    warp.mask = 0;
    warp.generation = generation + 1;
    warp.generation.notify_all();
  } else {
    warp.generation.wait(generation);
  }
  return warp.values[generation & 1][lane ^ flip];
}

void* shared_bytes(const void* type, int64_t tag, size_t bytes, size_t alignment) {
  while (block->busy.test_and_set()) std::this_thread::yield();
  size_t start = 0;
  for (const Array& each : block->arrays)
    if (each.type == type && each.tag == tag && each.bytes == bytes) start = each.start + 1;
  if (!start) {
    start = (block->used + alignment - 1) / alignment * alignment;
    block->used = start + bytes;
    if (block->used > kSharedBytes) fail("wants more shared memory than a block has");
    block->arrays.push_back({type, tag, bytes, start});
    ++start;
  }
  block->busy.clear();
  return block->memory.get() + start - 1;
}

}  // namespace emulation
