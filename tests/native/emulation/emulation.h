// What a scheduler of CUDA threads on the CPU offers; linking fibres.cpp or threads.cpp picks one.
//
// A CUDA thread sees what the programming model promises and no more: threads of a block run in any
// order between two barriers, blocks in any order at all, and shared memory starts as garbage. A
// barrier or a shuffle that some thread never reaches is an error message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

// Of the CUDA thread that runs; the scheduler sets them.
extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kSharedBytes = 48 << 10;  // static shared memory that a block may have
constexpr int kGarbage = 0xAB;

struct Settings {
  unsigned resident = 3;  // blocks at once
  uint64_t seed = 0;  // order of blocks, warps and lanes: 0 ascending, 1 descending, else random
};
extern Settings settings;

// Where in the source a thread waits.
struct Site {
  const char* file = nullptr;
  int line = 0;
  bool operator==(const Site& other) const { return file == other.file && line == other.line; }
};

// ---- a scheduler -------------------------------------------------------------------------------

// Runs one kernel to its end; `body` is the kernel with its arguments.
void run(unsigned blocks, unsigned threads, const std::function<void()>& body);
void barrier(Site site);
// The value of lane `lane ^ flip` of this warp, once every lane of `mask` has come. Like the
// hardware's shuffle it orders no memory: a race detector must not see it as synchronisation.
uint64_t exchange(unsigned mask, uint64_t value, unsigned flip, Site site);
// This block's array for one place in the source.
void* shared_bytes(const void* type, int64_t tag, size_t bytes, size_t alignment);

// ---- what kernels call -------------------------------------------------------------------------

template <class T, class Tag>
struct Place {
  static inline char address = 0;  // one a type and place, also in instances of a template
};

template <class T, class Tag>
T* shared(size_t n, Tag tag) {
  int64_t number = 0;
  if constexpr (std::is_integral_v<Tag>) number = tag;
  if constexpr (std::is_pointer_v<Tag>) number = reinterpret_cast<int64_t>(tag);
  return static_cast<T*>(shared_bytes(&Place<T, Tag>::address, number, n * sizeof(T), alignof(T)));
}

// Order as atom.acq_rel.gpu; a plain atomicAdd has none.
inline uint32_t ticket_add(uint32_t* ticket) {
  return __atomic_fetch_add(ticket, 1u, __ATOMIC_ACQ_REL);
}

}  // namespace emulation
