// How a block moves a tile between memory and its threads.
#pragma once

#include "core/formulas.h"
#include "cuda/device.cuh"

namespace aimmerge::cuda {

constexpr int kRows = kTile / kRow;

// A thread's entries: in each row, the kRow / kThreads neighbours that start at its column. fp32 in
// 256 threads and 16 bits in 128 make them one 16-byte vector, 16 bits in 256 threads one of 8.
// kCount: as many rows, of four.
template <class Format_, int kThreads, int kCount = kRows>
struct Share {
  using Format = Format_;
  using Storage = typename Format::Storage;
  static constexpr int kWidth = kRow / kThreads;
  static constexpr int kWords = kWidth * sizeof(Storage) / 4;

  uint32_t word[kCount][kWords];

  __device__ __forceinline__ Storage get(int row, int i) const {
    if constexpr (sizeof(Storage) == 4)
      return word[row][i];
    else
      return static_cast<Storage>(word[row][i / 2] >> (16 * (i % 2)));
  }
  // Into a share of zeros, each entry once.
  __device__ __forceinline__ void put(int row, int i, Storage entry) {
    if constexpr (sizeof(Storage) == 4)
      word[row][i] = entry;
    else
      word[row][i / 2] |= static_cast<uint32_t>(entry) << (16 * (i % 2));
  }
  static __device__ __forceinline__ int index(int row, int i) {
    return row * kRow + kWidth * static_cast<int>(threadIdx.x) + i;
  }

  // A full tile whose address suits vectors.
  __device__ __forceinline__ void load_wide(const uint8_t* tile) {
    const auto* entries = reinterpret_cast<const Storage*>(tile);
    AIM_UNROLL
    for (int row = 0; row < kCount; ++row) load_vector(entries + index(row, 0), word[row]);
  }
  // Any tile, entry by entry; those from `count` on are 0.
  __device__ __forceinline__ void load_guarded(const uint8_t* tile, int count) {
    const auto* entries = reinterpret_cast<const Storage*>(tile);
    *this = Share{};
    AIM_UNROLL
    for (int row = 0; row < kCount; ++row) {
      AIM_UNROLL
      for (int i = 0; i < kWidth; ++i)
        if (index(row, i) < count) put(row, i, entries[index(row, i)]);
    }
  }
  __device__ __forceinline__ void store_wide(uint8_t* tile) const {
    auto* entries = reinterpret_cast<Storage*>(tile);
    AIM_UNROLL
    for (int row = 0; row < kCount; ++row) store_vector(entries + index(row, 0), word[row]);
  }
  __device__ __forceinline__ void store_guarded(uint8_t* tile, int count) const {
    auto* entries = reinterpret_cast<Storage*>(tile);
    AIM_UNROLL
    for (int row = 0; row < kCount; ++row) {
      AIM_UNROLL
      for (int i = 0; i < kWidth; ++i)
        if (index(row, i) < count) entries[index(row, i)] = get(row, i);
    }
  }

  __device__ __forceinline__ float value(int row, int i) const { return Format::load(get(row, i)); }

  // Non-finite entries, added to `total` with an atomic only where there is one.
  __device__ __forceinline__ void count_bad(unsigned long long* total) const {
    Storage overflow = 0;
    AIM_UNROLL
    for (int row = 0; row < kCount; ++row) {
      AIM_UNROLL
      for (int i = 0; i < kWidth; ++i) overflow |= Format::overflow(get(row, i));
    }
    if (!(overflow & Format::kTop)) return;
    int bad = 0;
    AIM_UNROLL
    for (int row = 0; row < kCount; ++row) {
      AIM_UNROLL
      for (int i = 0; i < kWidth; ++i) bad += (Format::overflow(get(row, i)) & Format::kTop) != 0;
    }
    atomicAdd(total, static_cast<unsigned long long>(bad));
  }
};

// `Body::run<Format>(tile, arguments...)` for the tile's format. A narrow table's geometry, 128
// threads, is not made for fp32.
template <class Body, int kThreads, class... Arguments>
__device__ __forceinline__ auto for_tile(const Tile& tile, const Arguments&... arguments) {
  if constexpr (kThreads == 256) {
    if ((tile.flags & kDtypeMask) == kFloat32)
      return Body::template run<Float32>(tile, arguments...);
  }
  if ((tile.flags & kDtypeMask) == kBFloat16)
    return Body::template run<BFloat16>(tile, arguments...);
  return Body::template run<Float16>(tile, arguments...);
}

// ---- copies --------------------------------------------------------------------------------

// One tile as bytes, four vectors of a thread in flight. `second` may be null.
template <int kThreads>
__device__ __forceinline__ void copy_tile(const Tile& tile, const uint8_t* from, uint8_t* first,
                                          uint8_t* second) {
  const int size = static_cast<int>(item_size(tile.flags & kDtypeMask));
  if (!(tile.flags & kWide)) {
    for (int i = threadIdx.x; i < tile.count; i += kThreads) {
      if (size == 4) {
        const uint32_t entry = reinterpret_cast<const uint32_t*>(from)[i];
        reinterpret_cast<uint32_t*>(first)[i] = entry;
        if (second) reinterpret_cast<uint32_t*>(second)[i] = entry;
      } else {
        const uint16_t entry = reinterpret_cast<const uint16_t*>(from)[i];
        reinterpret_cast<uint16_t*>(first)[i] = entry;
        if (second) reinterpret_cast<uint16_t*>(second)[i] = entry;
      }
    }
    return;
  }
  const int vectors = kTile * size / 16;  // at most kRows of a thread
  uint32_t part[kRows][4];
  AIM_UNROLL
  for (int k = 0; k < kRows; ++k) {
    const int at = k * kThreads + static_cast<int>(threadIdx.x);
    if (at < vectors) load_vector(from + 16 * at, part[k]);
  }
  AIM_UNROLL
  for (int k = 0; k < kRows; ++k) {
    const int at = k * kThreads + static_cast<int>(threadIdx.x);
    if (at < vectors) store_vector(first + 16 * at, part[k]);
    if (at < vectors && second) store_vector(second + 16 * at, part[k]);
  }
}

// Undo the half that met a non-finite entry, tiles `first`, `first` + `step`, ...: a bad theta_j
// goes back to the anchor, bad fused values to theta_j.
template <int kThreads>
__device__ __forceinline__ void undo(const Table& table, int32_t phase, int64_t first,
                                     int64_t step) {
  for (int64_t k = first; k < table.count; k += step) {
    const Tile tile = table.tiles[k];
    auto* live = reinterpret_cast<uint8_t*>(tile.address);
    uint8_t *anchor = table.anchor + tile.offset, *mid = table.mid + tile.offset;
    const bool opened = phase == kMergeOpen;
    copy_tile<kThreads>(tile, opened ? anchor : mid, live, opened ? mid : anchor);
  }
}

}  // namespace aimmerge::cuda
