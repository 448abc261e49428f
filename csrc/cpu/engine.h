// What one set of parameters on the CPU needs: its tiles, the two arenas and the controller state.
#pragma once

#include <cstdint>
#include <vector>

#include "core/controller.h"
#include "core/entries.h"
#include "core/tiles.h"

namespace aimmerge {

struct Table {
  std::vector<Tile> tiles;
  std::vector<double> partials;  // one per tile, then the 256 lanes of the final sum
  std::uint8_t* anchor = nullptr;
  std::uint8_t* mid = nullptr;
  StateBlock* block = nullptr;
};

std::vector<Tile> plan_tiles(const std::vector<uint64_t>& addresses,
                             const std::vector<int64_t>& counts,
                             const std::vector<int64_t>& offsets,
                             const std::vector<int32_t>& dtypes);

// The ops. Each file of this folder holds one; the name is the same in every backend.
void observe(StateBlock& block, uint64_t loss_address, int32_t loss_dtype);
void open(Table& table);
void close(Table& table);
void advance(StateBlock& block, const double* partials, int64_t rows);
void repair(Table& table);
void importance(const Table& table, const Gradients& step);
int64_t weighted(const Table& table, const Weighing& by);  // how many stored entries are not finite

// Copy tiles between live and an arena; entries are bytes here, so no bit can change.
void live_from_arena(const Table& table, const std::uint8_t* arena);
void arena_from_live(const Table& table, std::uint8_t* arena);

}  // namespace aimmerge
