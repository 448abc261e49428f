// close: live and anchor <- anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), Eq. 7.
//
// Reads three, writes two: 20 bytes an entry in fp32, one pass.
#include <cstring>

#include "core/formulas.h"
#include "cpu/engine.h"
#include "cpu/float_mode.h"
#include "cpu/isa.h"

namespace aimmerge {
namespace {

struct FuseTile {
  template <class Format>
  static AIM_INLINE bool run(typename Format::Storage* __restrict live,
                             typename Format::Storage* __restrict anchor,
                             const typename Format::Storage* __restrict mid, int count,
                             float alpha1, float alpha2) {
    typename Format::Storage overflow = 0;
    for (int i = 0; i < count; ++i) {
      const auto fused = Format::store(fuse(Format::load(anchor[i]), Format::load(mid[i]),
                                            Format::load(live[i]), alpha1, alpha2));
      live[i] = fused;
      anchor[i] = fused;
      overflow |= Format::overflow(fused);
    }
    return (overflow & Format::kTop) != 0;
  }
};

template <class Format>
int64_t count_bad(const typename Format::Storage* stored, int count) {
  int64_t bad = 0;
  for (int i = 0; i < count; ++i) bad += (Format::overflow(stored[i]) & Format::kTop) != 0;
  return bad;
}

template <class Format>
int64_t close_tile(const Table& table, const Tile& tile, Isa isa) {
  using Storage = typename Format::Storage;
  auto* live = reinterpret_cast<Storage*>(tile.address);
  auto* anchor = reinterpret_cast<Storage*>(table.anchor + tile.offset);
  const auto* mid = reinterpret_cast<const Storage*>(table.mid + tile.offset);
  const float alpha1 = static_cast<float>(table.block->state.alpha1);
  const float alpha2 = static_cast<float>(table.block->state.alpha2);
  if (alpha1 == 1.0f && alpha2 == 0.0f) {
    // a + (m - a) is not m in floating point, and 0 * inf is not 0
    std::memcpy(live, mid, tile.count * sizeof(Storage));
    std::memcpy(anchor, mid, tile.count * sizeof(Storage));
    return count_bad<Format>(mid, tile.count);
  }
  const bool bad = call<FuseTile, Format>(isa, live, anchor, mid, tile.count, alpha1, alpha2);
  return bad ? count_bad<Format>(live, tile.count) : 0;
}

int64_t close_tiles(const Table& table) {
  const int64_t n = static_cast<int64_t>(table.tiles.size());
  const Isa isa = current_isa();
  int64_t bad = 0;
#pragma omp parallel reduction(+ : bad) if (n > 16)
  {
    const FloatMode mode;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < n; ++k) {
      const Tile& tile = table.tiles[k];
      switch (tile.flags & kDtypeMask) {
        case kBFloat16:
          bad += close_tile<BFloat16>(table, tile, isa);
          break;
        case kFloat16:
          bad += close_tile<Float16>(table, tile, isa);
          break;
        default:
          bad += close_tile<Float32>(table, tile, isa);
      }
    }
  }
  return bad;
}

// monitor: live is only looked at, and a snapshot that was not finite is no anchor.
int64_t settle_measure(const Table& table) {
  if (!table.block->state.reject) arena_from_live(table, table.anchor);
  return 0;
}

}  // namespace

void close(Table& table) {
  const FloatMode mode;
  State& state = table.block->state;
  const bool fuses = changes_live(table.block->config);
  const int64_t bad = fuses ? close_tiles(table) : settle_measure(table);
  state.partial_bad = static_cast<double>(bad);
  if (state.defer) return;
  close_merge(state, bad);
  repair(table);
}

}  // namespace aimmerge
