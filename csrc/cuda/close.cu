// close: live and anchor <- anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), Eq. 7.
//
// Reads three, writes two: 20 bytes an entry in fp32, one pass. One block per tile; the block that
// finishes last advances the controller.
#include "cuda/entries.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

// Read from the state before the block takes its ticket: after it, the last block rewrites it.
struct Weights {
  float alpha1, alpha2;
};

template <int kThreads>
struct FuseTile {
  template <class Format>
  static __device__ __forceinline__ void run(const Tile& tile, const Table& table,
                                             const Weights& weights) {
    using Entries = Share<Format, kThreads>;
    auto* live_at = reinterpret_cast<uint8_t*>(tile.address);
    uint8_t* anchor_at = table.anchor + tile.offset;
    const uint8_t* mid_at = table.mid + tile.offset;
    Entries live, anchor, mid;
    if (tile.flags & kWide) {
      mid.load_wide(mid_at);
      live.load_wide(live_at);
      anchor.load_wide(anchor_at);
    } else {
      mid.load_guarded(mid_at, tile.count);
      live.load_guarded(live_at, tile.count);
      anchor.load_guarded(anchor_at, tile.count);
    }
    Entries fused = mid;
    // a + (m - a) is not m in floating point, and 0 * inf is not 0
    if (!(weights.alpha1 == 1.0f && weights.alpha2 == 0.0f)) {
      fused = Entries{};
      AIM_UNROLL
      for (int row = 0; row < kRows; ++row) {
        AIM_UNROLL
        for (int i = 0; i < Entries::kWidth; ++i)
          fused.put(row, i,
                    Format::store(fuse(anchor.value(row, i), mid.value(row, i), live.value(row, i),
                                       weights.alpha1, weights.alpha2)));
      }
    }
    if (tile.flags & kWide) {
      fused.store_wide(live_at);
      fused.store_wide(anchor_at);
    } else {
      fused.store_guarded(live_at, tile.count);
      fused.store_guarded(anchor_at, tile.count);
    }
    fused.count_bad(&table.scratch->bad);
  }
};

// By the last block, once all tiles are stored.
template <int kThreads>
__device__ __forceinline__ void finish(const Table& table) {
  SHARED(StateBlock, copy, 1);
  const int64_t bad = threadIdx.x == 0 ? take_bad(table.scratch) : 0;
  fetch(copy, table.block);
  __syncthreads();
  State& state = copy->state;
  if (threadIdx.x == 0) {
    state.partial_bad = static_cast<double>(bad);
    if (!state.defer) close_merge(state, bad);
  }
  __syncthreads();
  flush(table.block, copy);
  if (!state.defer && state.reject && changes_live(copy->config))
    undo<kThreads>(table, kIdle, 0, 1);
}

// Blocks on a multiprocessor at once: loads in flight hide the wait for memory, and these many
// leave each thread the registers for its own.
template <int kThreads>
constexpr int kResident = kThreads == 256 ? 3 : 4;

template <int kThreads>
__global__ void __launch_bounds__(kThreads, kResident<kThreads>) close_kernel(Table table) {
  prefetch(table.block);
  if (blockIdx.x < table.count) {
    const Tile tile = table.tiles[blockIdx.x];
    const State& state = table.block->state;
    const double alpha1 = load_now(&state.alpha1), alpha2 = load_now(&state.alpha2);
    if (changes_live(table.block->config)) {
      const Weights weights{static_cast<float>(alpha1), static_cast<float>(alpha2)};
      for_tile<FuseTile<kThreads>, kThreads>(tile, table, weights);
    } else if (!state.reject) {  // monitor: a snapshot that was not finite is no anchor
      copy_tile<kThreads>(tile, reinterpret_cast<uint8_t*>(tile.address),
                          table.anchor + tile.offset, nullptr);
    }
  }
  __syncthreads();
  if (finishes_last(table.scratch)) finish<kThreads>(table);
}

}  // namespace

void close(const Table& table, Place place) {
  if (table.narrow)
    launch("close", close_kernel<128>, blocks_of(table), 128, place, table);
  else
    launch("close", close_kernel<256>, blocks_of(table), 256, place, table);
}

Kernels close_kernels() {
  return {{"close", address_of(close_kernel<256>)},
          {"close_narrow", address_of(close_kernel<128>)}};
}

}  // namespace aimmerge::cuda
