// What the kernels share: memory order, the sum in order P, the state on its way to one thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/controller.h"
#include "core/tiles.h"
#include "cuda/engine.h"

// The emulation on a CPU compiles the same kernels with a C++ compiler; only this differs.
#if defined(__CUDACC__)
#define SHARED(type, name, n) __shared__ type name[n]
#define AIM_UNROLL _Pragma("unroll")
#else
#define SHARED(type, name, n)           \
  static const char name##_place = 'x'; \
  type* const name = emulation::shared<type>(n, &name##_place)
#define AIM_UNROLL
#endif

namespace aimmerge {

#if defined(__CUDACC__)
// The ring lies in pinned host memory: the payload's stores are visible there before the number.
__device__ inline void publish_on_device(Record* slot, int64_t sequence) {
  asm volatile("st.release.sys.s64 [%0], %1;" ::"l"(&slot->sequence), "l"(sequence) : "memory");
}
#endif

namespace cuda {

// ---- vectors -------------------------------------------------------------------------------

// Spelled out: an address that came as an integer may be anywhere for the compiler, which then
// takes a store of four words apart.
__device__ __forceinline__ void load_vector(const void* from, uint32_t (&word)[4]) {
#if defined(__CUDACC__)
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "l"(from)
               : "memory");
#else
  const uint4 v = *static_cast<const uint4*>(from);
  word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
#endif
}
__device__ __forceinline__ void load_vector(const void* from, uint32_t (&word)[2]) {
#if defined(__CUDACC__)
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(word[0]), "=r"(word[1])
               : "l"(from)
               : "memory");
#else
  const uint2 v = *static_cast<const uint2*>(from);
  word[0] = v.x, word[1] = v.y;
#endif
}
__device__ __forceinline__ void store_vector(void* to, const uint32_t (&word)[4]) {
#if defined(__CUDACC__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word[0]), "r"(word[1]),
               "r"(word[2]), "r"(word[3])
               : "memory");
#else
  *static_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
#endif
}
__device__ __forceinline__ void store_vector(void* to, const uint32_t (&word)[2]) {
#if defined(__CUDACC__)
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word[0]), "r"(word[1]) : "memory");
#else
  *static_cast<uint2*>(to) = make_uint2(word[0], word[1]);
#endif
}

// ---- who finishes last ---------------------------------------------------------------------

// One more block has finished; how many had before. Releases what this block wrote and acquires
// what the earlier ones did, so no fence is needed around it.
__device__ __forceinline__ uint32_t ticket_add(uint32_t* ticket) {
#if defined(__CUDACC__)
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(ticket) : "memory");
  return before;
#else
  return emulation::ticket_add(ticket);
#endif
}

// True in all threads of the block that finishes last. A barrier must stand between the block's
// writes and this call; thread 0 may write up to the call.
__device__ __forceinline__ bool finishes_last(Scratch* scratch) {
  SHARED(uint32_t, before, 1);
  if (threadIdx.x == 0) *before = ticket_add(&scratch->ticket);
  __syncthreads();
  return *before == gridDim.x - 1;
}

// By one thread of the last block: the grid's count, and the scratch ready for the next launch.
// Before a barrier that is needed anyway, so that this load is not waited for alone.
__device__ __forceinline__ int64_t take_bad(Scratch* scratch) {
  const unsigned long long bad = __ldcg(&scratch->bad);
  scratch->ticket = 0;
  scratch->bad = 0;
  return static_cast<int64_t>(bad);
}

// ---- order P -------------------------------------------------------------------------------

// The upper levels of the tree: lanes of a warp, then warps. The sum is thread 0's; one barrier.
template <int kThreads>
__device__ __forceinline__ double block_sum(double own) {
  constexpr int kWarps = kThreads / 32;
  SHARED(double, warps, kWarps);
  AIM_UNROLL
  for (int lane = 1; lane < 32; lane *= 2) own += __shfl_xor_sync(0xffffffffu, own, lane);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x != 0) return 0.0;
  double sum[kWarps];
  AIM_UNROLL
  for (int w = 0; w < kWarps; ++w) sum[w] = warps[w];
  AIM_UNROLL
  for (int width = kWarps / 2; width >= 1; width /= 2) {
    AIM_UNROLL
    for (int w = 0; w < width; ++w) sum[w] = sum[2 * w] + sum[2 * w + 1];
  }
  return sum[0];
}

// The tiles' sums dealt over kLanes lanes; by the last block. The sum is thread 0's; one barrier.
// Partial sums are never negative zero, so adding 0 for one that is missing changes no bit.
template <int kThreads>
__device__ __forceinline__ double final_sum(const Table& table) {
  constexpr int kOwn = kLanes / kThreads, kBatch = 8;  // lanes of a thread; loads in flight
  double lane[kOwn] = {};
  for (int64_t base = 0; base < table.count; base += kBatch * kLanes) {
    double next[kBatch][kOwn];
    AIM_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      AIM_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const int64_t j = base + b * kLanes + kOwn * static_cast<int>(threadIdx.x) + i;
        next[b][i] = j < table.count ? __ldcg(&table.scratch->partials[j]) : 0.0;
      }
    }
    AIM_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      AIM_UNROLL
      for (int i = 0; i < kOwn; ++i) lane[i] += next[b][i];
    }
  }
  return block_sum<kThreads>(kOwn == 2 ? lane[0] + lane[kOwn - 1] : lane[0]);
}

// ---- the state -----------------------------------------------------------------------------

// The transition runs on a copy in shared memory: in registers its history, which is indexed,
// would become local memory. The block fetches and flushes it together.
template <class T>
__device__ __forceinline__ void copy_together(T* to, const T* from) {
  static_assert(sizeof(T) % 8 == 0);
  auto* target = reinterpret_cast<uint64_t*>(to);
  const auto* source = reinterpret_cast<const uint64_t*>(from);
  for (unsigned i = threadIdx.x; i < sizeof(T) / 8; i += blockDim.x) target[i] = source[i];
}

// Asked for by the first block of a merge, for the last one: a training step has pushed the state
// out of the L2, and fetching it from memory would be waited for with nothing else to do.
__device__ __forceinline__ void prefetch([[maybe_unused]] const StateBlock* block) {
#if defined(__CUDACC__)
  constexpr unsigned kLine = 128;
  const unsigned at = kLine * threadIdx.x;
  if (blockIdx.x == 0 && at < sizeof(StateBlock))
    asm volatile("prefetch.global.L2 [%0];" ::"l"(reinterpret_cast<const char*>(block) + at));
#endif
}

// Loaded here: the compiler would move a plain load behind the branch that its value is used in,
// and a tile would wait for memory twice before it asks for its entries.
__device__ __forceinline__ double load_now(const double* from) {
#if defined(__CUDACC__)
  double value;
  asm volatile("ld.relaxed.gpu.global.f64 %0, [%1];" : "=d"(value) : "l"(from) : "memory");
  return value;
#else
  return *from;
#endif
}

__device__ __forceinline__ void fetch(StateBlock* copy, const StateBlock* block) {
  copy_together(copy, block);
}

__device__ __forceinline__ void flush(StateBlock* block, const StateBlock* copy) {
  copy_together(&block->state, &copy->state);
}

}  // namespace cuda
}  // namespace aimmerge
