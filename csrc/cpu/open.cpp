// open: mid <- live and Lambda's numerator in one pass over the parameters, then the transition.
//
// Reads live and anchor, writes mid: 12 bytes an entry in fp32. mid is not read again before the
// memory steps are over, so it is written past the caches.
#include <cstring>

#include "core/formulas.h"
#include "cpu/engine.h"
#include "cpu/float_mode.h"
#include "cpu/isa.h"

#if AIM_X86
#include <emmintrin.h>
#endif

namespace aimmerge {
namespace {

// ---- one tile ------------------------------------------------------------------------------

constexpr size_t kLine = 64;  // bytes

AIM_INLINE void stream_line(void* to, const void* from) {
#if AIM_X86
  const auto* source = static_cast<const __m128i*>(from);
  auto* target = static_cast<__m128i*>(to);
  for (int i = 0; i < 4; ++i) _mm_stream_si128(target + i, _mm_loadu_si128(source + i));
#else
  std::memcpy(to, from, kLine);
#endif
}

struct TileChange {
  double l1;
  bool bad;
};

// Neighbours are added in order P; two buffers, so that the loop has no dependence on itself.
AIM_INLINE void halve(const double* __restrict from, double* __restrict to, int count) {
  for (int l = 0; l < count; ++l) to[l] = from[2 * l] + from[2 * l + 1];
}

// A full tile; mid starts at a multiple of 16 bytes. The stores go out a line of each row at a
// time between the sums: in one burst they fill the store buffers and the core waits.
template <bool kStreams>
struct SnapshotTile {
  template <class Format>
  static AIM_INLINE TileChange run(const typename Format::Storage* live,
                                   const typename Format::Storage* anchor,
                                   typename Format::Storage* mid) {
    constexpr int kStep = kLine / sizeof(typename Format::Storage);
    alignas(64) double s[kRow], r[kRow / 2];
    typename Format::Storage overflow = 0;
    for (int start = 0; start < kRow; start += kStep) {
      if constexpr (kStreams)
        for (int row = start; row < kTile; row += kRow) stream_line(mid + row, live + row);
      for (int l = start; l < start + kStep; ++l) {
        const auto a = live[l], b = live[l + kRow], c = live[l + 2 * kRow], d = live[l + 3 * kRow];
        const double d0 = change(Format::load(a), Format::load(anchor[l]));
        const double d1 = change(Format::load(b), Format::load(anchor[l + kRow]));
        const double d2 = change(Format::load(c), Format::load(anchor[l + 2 * kRow]));
        const double d3 = change(Format::load(d), Format::load(anchor[l + 3 * kRow]));
        s[l] = (d0 + d2) + (d1 + d3);
        overflow |=
            Format::overflow(a) | Format::overflow(b) | Format::overflow(c) | Format::overflow(d);
      }
    }
    for (int n = kRow / 2; n > 1; n /= 4) {
      halve(s, r, n);
      halve(r, s, n / 2);
    }
    return {s[0], (overflow & Format::kTop) != 0};
  }
};

template <class Format>
TileChange open_tile(const Tile& tile, const std::uint8_t* anchor_arena, std::uint8_t* mid_arena,
                     Isa isa) {
  using Storage = typename Format::Storage;
  const auto* live = reinterpret_cast<const Storage*>(tile.address);
  const auto* anchor = reinterpret_cast<const Storage*>(anchor_arena + tile.offset);
  auto* mid = reinterpret_cast<Storage*>(mid_arena + tile.offset);
  if (tile.count == kTile) return call<SnapshotTile<true>, Format>(isa, live, anchor, mid);
  const size_t bytes = tile.count * sizeof(Storage);
  Storage padded_live[kTile] = {}, padded_anchor[kTile] = {};
  std::memcpy(padded_live, live, bytes);
  std::memcpy(padded_anchor, anchor, bytes);
  const Storage *l = padded_live, *a = padded_anchor;
  std::memcpy(mid, live, bytes);
  return call<SnapshotTile<false>, Format>(isa, l, a, mid);
}

template <class Format>
int64_t count_bad(const Tile& tile) {
  const auto* live = reinterpret_cast<const typename Format::Storage*>(tile.address);
  int64_t bad = 0;
  for (int i = 0; i < tile.count; ++i) bad += (Format::overflow(live[i]) & Format::kTop) != 0;
  return bad;
}

// ---- all tiles -----------------------------------------------------------------------------

template <class Format>
int64_t open_one(Table& table, int64_t k, Isa isa) {
  const Tile& tile = table.tiles[k];
  const TileChange sum = open_tile<Format>(tile, table.anchor, table.mid, isa);
  table.partials[k] = sum.l1;
  return sum.bad ? count_bad<Format>(tile) : 0;
}

int64_t open_tiles(Table& table) {
  const int64_t n = static_cast<int64_t>(table.tiles.size());
  const Isa isa = current_isa();
  int64_t bad = 0;
#pragma omp parallel reduction(+ : bad) if (n > 16)
  {
    const FloatMode mode;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < n; ++k) {
      switch (table.tiles[k].flags & kDtypeMask) {
        case kBFloat16:
          bad += open_one<BFloat16>(table, k, isa);
          break;
        case kFloat16:
          bad += open_one<Float16>(table, k, isa);
          break;
        default:
          bad += open_one<Float32>(table, k, isa);
      }
    }
#if AIM_X86
    _mm_sfence();  // streamed stores are visible before the parallel region ends
#endif
  }
  return bad;
}

double final_sum(const Table& table) {
  double q[kLanes] = {};
  const size_t n = table.tiles.size();
  for (size_t j = 0; j < n; ++j) q[j % kLanes] += table.partials[j];
  for (int width = kLanes / 2; width >= 1; width /= 2)
    for (int l = 0; l < width; ++l) q[l] = q[2 * l] + q[2 * l + 1];
  return q[0];
}

}  // namespace

void open(Table& table) {
  const FloatMode mode;
  const int64_t bad = open_tiles(table);
  State& state = table.block->state;
  state.partial_l1 = final_sum(table);
  state.partial_bad = static_cast<double>(bad);
  if (state.defer) return;
  open_merge(table.block->config, state, state.partial_l1, bad);
  repair(table);
}

}  // namespace aimmerge
