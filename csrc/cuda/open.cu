// open: mid <- live and Lambda's numerator in one pass over the parameters, then the transition.
//
// Reads live and anchor, writes mid: 12 bytes an entry in fp32. One block per tile; the block that
// finishes last adds the tiles' sums in order P and advances the controller.
#include "cuda/entries.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

template <int kThreads>
struct SnapshotTile {
  // This thread's part of the tile's sum: its rows, then the lower levels of the tree.
  template <class Format>
  static __device__ __forceinline__ double run(const Tile& tile, const Table& table) {
    using Entries = Share<Format, kThreads>;
    const auto* live_at = reinterpret_cast<const uint8_t*>(tile.address);
    const uint8_t* anchor_at = table.anchor + tile.offset;
    uint8_t* mid_at = table.mid + tile.offset;
    Entries live, anchor;
    if (tile.flags & kWide) {
      live.load_wide(live_at);
      anchor.load_wide(anchor_at);
    } else {
      live.load_guarded(live_at, tile.count);
      anchor.load_guarded(anchor_at, tile.count);
    }
    // The paths meet between the loads and their first use: in one run of code the compiler would
    // begin with what comes first, before it has asked for the rest.
    if (tile.flags & kWide)
      live.store_wide(mid_at);
    else
      live.store_guarded(mid_at, tile.count);
    live.count_bad(&table.scratch->bad);
    double sum[Entries::kWidth];
    AIM_UNROLL
    for (int i = 0; i < Entries::kWidth; ++i) {
      double d[kRows];
      AIM_UNROLL
      for (int row = 0; row < kRows; ++row)
        d[row] = change(live.value(row, i), anchor.value(row, i));
      sum[i] = (d[0] + d[2]) + (d[1] + d[3]);
    }
    AIM_UNROLL
    for (int width = Entries::kWidth / 2; width >= 1; width /= 2) {
      AIM_UNROLL
      for (int i = 0; i < width; ++i) sum[i] = sum[2 * i] + sum[2 * i + 1];
    }
    return sum[0];
  }
};

// By the last block, once all tiles have their sums.
template <int kThreads>
__device__ __forceinline__ void finish(const Table& table) {
  SHARED(StateBlock, copy, 1);
  const int64_t bad = threadIdx.x == 0 ? take_bad(table.scratch) : 0;
  fetch(copy, table.block);
  const double l1 = final_sum<kThreads>(table);
  State& state = copy->state;
  if (threadIdx.x == 0) {
    state.partial_l1 = l1;
    state.partial_bad = static_cast<double>(bad);
    if (!state.defer) open_merge(copy->config, state, l1, bad);
  }
  __syncthreads();
  flush(table.block, copy);
  if (!state.defer && state.reject && changes_live(copy->config))
    undo<kThreads>(table, kMergeOpen, 0, 1);
}

// Blocks on a multiprocessor at once: loads in flight hide the wait for memory, and these many
// leave each thread the registers for its own.
template <int kThreads>
constexpr int kResident = kThreads == 256 ? 4 : 6;

template <int kThreads>
__global__ void __launch_bounds__(kThreads, kResident<kThreads>) open_kernel(Table table) {
  double sum = 0.0;
  if (blockIdx.x < table.count) {
    const Tile tile = table.tiles[blockIdx.x];
    sum = for_tile<SnapshotTile<kThreads>, kThreads>(tile, table);
  }
  prefetch(table.block);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0 && blockIdx.x < table.count) table.scratch->partials[blockIdx.x] = sum;
  if (finishes_last(table.scratch)) finish<kThreads>(table);
}

}  // namespace

void open(const Table& table, Place place) {
  if (table.narrow)
    launch("open", open_kernel<128>, blocks_of(table), 128, place, table);
  else
    launch("open", open_kernel<256>, blocks_of(table), 256, place, table);
}

Kernels open_kernels() {
  return {{"open", address_of(open_kernel<256>)}, {"open_narrow", address_of(open_kernel<128>)}};
}

}  // namespace aimmerge::cuda
