// The tile table and plain copies between live tensors and arenas.
#include <cstring>

#include "cpu/engine.h"

namespace aimmerge {

std::vector<Tile> plan_tiles(const std::vector<uint64_t>& addresses,
                             const std::vector<int64_t>& counts,
                             const std::vector<int64_t>& offsets,
                             const std::vector<int32_t>& dtypes) {
  std::vector<Tile> tiles;
  for (size_t i = 0; i < counts.size(); ++i)
    for (int64_t k = 0; k < tile_count(counts[i]); ++k)
      tiles.push_back(tile_at(addresses[i], counts[i], offsets[i], dtypes[i], k));
  return tiles;
}

namespace {

size_t tile_bytes(const Tile& tile) {
  return static_cast<size_t>(tile.count * item_size(tile.flags & kDtypeMask));
}

}  // namespace

void live_from_arena(const Table& table, const std::uint8_t* arena) {
  const int64_t n = static_cast<int64_t>(table.tiles.size());
#pragma omp parallel for schedule(static) if (n > 16)
  for (int64_t k = 0; k < n; ++k) {
    const Tile& tile = table.tiles[k];
    std::memcpy(reinterpret_cast<void*>(tile.address), arena + tile.offset, tile_bytes(tile));
  }
}

void arena_from_live(const Table& table, std::uint8_t* arena) {
  const int64_t n = static_cast<int64_t>(table.tiles.size());
#pragma omp parallel for schedule(static) if (n > 16)
  for (int64_t k = 0; k < n; ++k) {
    const Tile& tile = table.tiles[k];
    std::memcpy(arena + tile.offset, reinterpret_cast<const void*>(tile.address), tile_bytes(tile));
  }
}

}  // namespace aimmerge
