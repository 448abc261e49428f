// Compiles csrc/core as device code. Nothing here runs: the kernels only have to use every function
// of the core the way a CUDA backend does, so that none of it grows host-only code.
#include "core/controller.h"
#include "core/formulas.h"
#include "core/tiles.h"

namespace aimmerge {

// The ring lies in pinned host memory: payload stores, then the sequence number with a release.
__device__ inline void publish_on_device(Record* slot, int64_t sequence) {
  asm volatile("st.release.sys.s64 [%0], %1;" ::"l"(&slot->sequence), "l"(sequence) : "memory");
}

struct Block {
  Config config;
  State state;
};

__global__ void observe(Block* block, const double* loss) {
  observe_step(block->config, block->state, *loss);
}

__global__ void begin(Block* block, int32_t task) {
  block->state.S = block->config.schedule == kRandom ? random_interval(block->config, task, 0)
                                                     : block->config.s_init;
}

__global__ void advance(Block* block, const double* partials, int64_t rows) {
  double l1 = 0.0;
  int64_t bad = 0;
  for (int64_t i = 0; i < rows; ++i) {
    l1 += partials[2 * i];
    bad += truncate_within(partials[2 * i + 1], 0, 0x7fffffff);
  }
  if (block->state.phase == kIdle)
    open_merge(block->config, block->state, l1, bad);
  else
    close_merge(block->state, bad);
}

__global__ void plan(Tile* tiles, uint64_t address, int64_t entries, int64_t offset,
                     int32_t dtype) {
  const int64_t k = blockIdx.x;
  if (k < tile_count(entries)) tiles[k] = tile_at(address, entries, offset, dtype, k);
}

template <class Format>
__device__ void open_entry(const Tile& tile, const uint8_t* anchor, uint8_t* mid, double* changes,
                           int* bad) {
  using Storage = typename Format::Storage;
  const auto* live = reinterpret_cast<const Storage*>(tile.address);
  const auto* old = reinterpret_cast<const Storage*>(anchor + tile.offset);
  auto* snapshot = reinterpret_cast<Storage*>(mid + tile.offset);
  for (int i = threadIdx.x; i < tile.count; i += blockDim.x) {
    snapshot[i] = live[i];
    changes[i] = change(Format::load(live[i]), Format::load(old[i]));
    if (Format::overflow(live[i]) & Format::kTop) atomicAdd(bad, 1);
  }
}

template <class Format>
__device__ void close_entry(const Tile& tile, uint8_t* anchor, const uint8_t* mid,
                            const State& state, int* bad) {
  using Storage = typename Format::Storage;
  auto* live = reinterpret_cast<Storage*>(tile.address);
  auto* old = reinterpret_cast<Storage*>(anchor + tile.offset);
  const auto* snapshot = reinterpret_cast<const Storage*>(mid + tile.offset);
  const float alpha1 = static_cast<float>(state.alpha1), alpha2 = static_cast<float>(state.alpha2);
  for (int i = threadIdx.x; i < tile.count; i += blockDim.x) {
    const Storage fused = Format::store(fuse(Format::load(old[i]), Format::load(snapshot[i]),
                                             Format::load(live[i]), alpha1, alpha2));
    live[i] = old[i] = fused;
    if (Format::overflow(fused) & Format::kTop) atomicAdd(bad, 1);
  }
}

__global__ void open(const Tile* tiles, const uint8_t* anchor, uint8_t* mid, double* changes,
                     int* bad) {
  const Tile& tile = tiles[blockIdx.x];
  double* own = changes + static_cast<int64_t>(blockIdx.x) * kTile;
  switch (tile.flags & kDtypeMask) {
    case kBFloat16:
      return open_entry<BFloat16>(tile, anchor, mid, own, bad);
    case kFloat16:
      return open_entry<Float16>(tile, anchor, mid, own, bad);
    default:
      return open_entry<Float32>(tile, anchor, mid, own, bad);
  }
}

__global__ void close(const Tile* tiles, uint8_t* anchor, const uint8_t* mid, const Block* block,
                      int* bad) {
  if (!changes_live(block->config)) return;
  const Tile& tile = tiles[blockIdx.x];
  switch (tile.flags & kDtypeMask) {
    case kBFloat16:
      return close_entry<BFloat16>(tile, anchor, mid, block->state, bad);
    case kFloat16:
      return close_entry<Float16>(tile, anchor, mid, block->state, bad);
    default:
      return close_entry<Float32>(tile, anchor, mid, block->state, bad);
  }
}

}  // namespace aimmerge
