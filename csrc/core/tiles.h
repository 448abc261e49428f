// How the parameters are cut into tiles, and the one order in which their change is summed.
//
// Order P: a tile is 4,096 consecutive entries of one tensor, zero-padded at the tensor's end, seen
// as 4 rows of 1,024. Rows are added as (0 + 2) + (1 + 3), then neighbours are added ten times. The
// tiles' partial sums are dealt over 256 lanes in ascending order, and neighbours added eight
// times. A CUDA block, a Triton program, a vectorised CPU loop and plain torch all follow it at
// full bandwidth, so the sum has the same bits everywhere.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace aimmerge {

constexpr int kTile = 4096;
constexpr int kRow = 1024;
constexpr int kLanes = 256;

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// `wide`: a full tile whose live address is 16-byte aligned (the arenas' always are).
constexpr int32_t kDtypeMask = 3;
constexpr int32_t kWide = 4;

struct Tile {
  uint64_t address;  // of the tile's first live entry
  int64_t offset;    // of the tile in the anchor and mid arenas, in bytes
  int32_t count;     // entries, 1 to kTile
  int32_t flags;     // dtype | wide
};
static_assert(sizeof(Tile) == 24);

AIM_FN constexpr int64_t item_size(int32_t dtype) { return dtype == kFloat32 ? 4 : 2; }

AIM_FN constexpr int64_t tile_count(int64_t entries) { return (entries + kTile - 1) / kTile; }

AIM_FN Tile tile_at(uint64_t address, int64_t entries, int64_t offset, int32_t dtype, int64_t k) {
  const int64_t first = k * kTile, left = entries - first;
  const int32_t count = static_cast<int32_t>(left < kTile ? left : kTile);
  const uint64_t place = address + static_cast<uint64_t>(first * item_size(dtype));
  const bool wide = count == kTile && place % 16 == 0;
  return Tile{place, offset + first * item_size(dtype), count, dtype | (wide ? kWide : 0)};
}

}  // namespace aimmerge
