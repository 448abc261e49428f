// weighted: live <- anchor + (w_new * (mid - anchor) + w_past * (live - mid)), the two weights of
// an entry chosen by what it is important to.
//
// Reads seven, writes one: 32 bytes an entry in fp32, one pass. One block per tile, row after row:
// the scores are fp32 whatever the tile holds, so the geometry is fp32's.
#include "cuda/entries.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

constexpr int kThreads = 256;

struct ScoreRow {
  Share<Float32, kThreads, 1> sensitivity, uncertainty;

  __device__ __forceinline__ void load(const Scores& scores, int64_t first, bool wide, int left) {
    const auto* s_at = reinterpret_cast<const uint8_t*>(scores.sensitivity + first);
    const auto* u_at = reinterpret_cast<const uint8_t*>(scores.uncertainty + first);
    if (wide) {
      sensitivity.load_wide(s_at);
      uncertainty.load_wide(u_at);
    } else {
      sensitivity.load_guarded(s_at, left);
      uncertainty.load_guarded(u_at, left);
    }
  }
  __device__ __forceinline__ bool exceeds(float threshold, int i) const {
    return is_important(sensitivity.value(0, i), uncertainty.value(0, i), threshold);
  }
};

struct WeighTile {
  template <class Format>
  static __device__ __forceinline__ void run(const Tile& tile, const Table& table,
                                             const Weighing& by, unsigned long long* const& bad) {
    const float learned = by.thresholds[0], past = by.thresholds[1];
    for (int row = 0; row < kRows && row * kRow < tile.count; ++row)
      weigh_row<Format>(tile, table, by, row, learned, past).count_bad(bad);
  }

  template <class Format>
  static __device__ __forceinline__ Share<Format, kThreads, 1> weigh_row(
      const Tile& tile, const Table& table, const Weighing& by, int row, float limit_learned,
      float limit_past) {
    using Entries = Share<Format, kThreads, 1>;
    constexpr int kBytes = kRow * sizeof(typename Format::Storage);
    auto* live_at = reinterpret_cast<uint8_t*>(tile.address) + row * kBytes;
    const uint8_t* anchor_at = table.anchor + tile.offset + row * kBytes;
    const uint8_t* mid_at = table.mid + tile.offset + row * kBytes;
    const int64_t first = by.places[blockIdx.x] + row * kRow;
    const int left = tile.count - row * kRow;
    const bool wide = tile.flags & kWide;
    Entries live, anchor, mid, stored{};
    ScoreRow learned, past;
    if (wide) {
      mid.load_wide(mid_at);
      live.load_wide(live_at);
      anchor.load_wide(anchor_at);
    } else {
      mid.load_guarded(mid_at, left);
      live.load_guarded(live_at, left);
      anchor.load_guarded(anchor_at, left);
    }
    learned.load(by.learned, first, wide, left);
    past.load(by.past, first, wide, left);
    AIM_UNROLL
    for (int i = 0; i < Entries::kWidth; ++i) {
      const bool a = learned.exceeds(limit_learned, i), b = past.exceeds(limit_past, i);
      const float w_new = weight_of(by.weights.learned, a, b);
      const float w_past = weight_of(by.weights.past, a, b);
      const auto fused =
          Format::store(fuse(anchor.value(0, i), mid.value(0, i), live.value(0, i), w_new, w_past));
      // a + (m - a) is not m in floating point, and 0 * inf is not 0
      stored.put(0, i, w_new == 1.0f && w_past == 0.0f ? mid.get(0, i) : fused);
    }
    if (wide)
      stored.store_wide(live_at);
    else
      stored.store_guarded(live_at, left);
    return stored;
  }
};

__global__ void __launch_bounds__(kThreads, 4)
    weighted_kernel(Table table, Weighing by, unsigned long long* bad) {
  if (blockIdx.x >= table.count) return;
  const Tile tile = table.tiles[blockIdx.x];
  for_tile<WeighTile, kThreads>(tile, table, by, bad);
}

}  // namespace

void weighted(const Table& table, const Weighing& by, unsigned long long* bad, Place place) {
  launch("weighted", weighted_kernel, blocks_of(table), kThreads, place, table, by, bad);
}

Kernels weighted_kernels() { return {{"weighted", address_of(weighted_kernel)}}; }

}  // namespace aimmerge::cuda
