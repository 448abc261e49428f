// importance: one step's |theta * gradient| of every entry into its two running averages.
//
// Reads four, writes two: 24 bytes an entry in fp32, one pass. One block per tile, row after row:
// the averages are fp32 whatever the tile holds, so the geometry is fp32's.
#include "cuda/entries.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

constexpr int kThreads = 256;

struct SmoothTile {
  template <class Format>
  static __device__ __forceinline__ void run(const Tile& tile, const Gradients& step,
                                             const uint64_t& gradients) {
    const int64_t first = step.places[blockIdx.x];
    for (int row = 0; row < kRows; ++row) {
      const int left = tile.count - row * kRow;
      if (left <= 0) return;
      smooth_row<Format>(tile, gradients, step.sensitivity + first + row * kRow,
                         step.uncertainty + first + row * kRow, row, step.smoothing);
    }
  }

  template <class Format>
  static __device__ __forceinline__ void smooth_row(const Tile& tile, uint64_t gradients,
                                                    float* sensitivity, float* uncertainty, int row,
                                                    const Smoothing& by) {
    using Entries = Share<Format, kThreads, 1>;
    constexpr int kBytes = kRow * sizeof(typename Format::Storage);
    const auto* theta_at = reinterpret_cast<const uint8_t*>(tile.address) + row * kBytes;
    const auto* gradient_at = reinterpret_cast<const uint8_t*>(gradients) + row * kBytes;
    auto* s_at = reinterpret_cast<uint8_t*>(sensitivity);
    auto* u_at = reinterpret_cast<uint8_t*>(uncertainty);
    const bool wide = tile.flags & kWide;
    const int left = tile.count - row * kRow;
    Entries theta, gradient{};
    Share<Float32, kThreads, 1> s, u, new_s{}, new_u{};
    if (wide) {
      theta.load_wide(theta_at);
      s.load_wide(s_at);
      u.load_wide(u_at);
    } else {
      theta.load_guarded(theta_at, left);
      s.load_guarded(s_at, left);
      u.load_guarded(u_at, left);
    }
    if (gradients && wide && gradients % 16 == 0)
      gradient.load_wide(gradient_at);
    else if (gradients)
      gradient.load_guarded(gradient_at, left);
    AIM_UNROLL
    for (int i = 0; i < Entries::kWidth; ++i) {
      // of no gradient 0, whatever theta is
      const float seen = gradients ? importance_of(theta.value(0, i), gradient.value(0, i)) : 0.0f;
      const float sensitivity_now = smooth(s.value(0, i), seen, by.keep1, by.take1);
      new_s.put(0, i, bits_of(sensitivity_now));
      new_u.put(0, i, bits_of(spread(u.value(0, i), seen, sensitivity_now, by)));
    }
    if (wide) {
      new_s.store_wide(s_at);
      new_u.store_wide(u_at);
    } else {
      new_s.store_guarded(s_at, left);
      new_u.store_guarded(u_at, left);
    }
  }
};

__global__ void __launch_bounds__(kThreads, 4) importance_kernel(Table table, Gradients step) {
  if (blockIdx.x >= table.count) return;
  const Tile tile = table.tiles[blockIdx.x];
  for_tile<SmoothTile, kThreads>(tile, step, step.addresses[blockIdx.x]);
}

}  // namespace

void importance(const Table& table, const Gradients& step, Place place) {
  launch("importance", importance_kernel, blocks_of(table), kThreads, place, table, step);
}

Kernels importance_kernels() { return {{"importance", address_of(importance_kernel)}}; }

}  // namespace aimmerge::cuda
