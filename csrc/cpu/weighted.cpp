// weighted: live <- anchor + (w_new * (mid - anchor) + w_past * (live - mid)), the two weights of
// an entry chosen by what it is important to.
//
// Reads seven, writes one: 32 bytes an entry in fp32, one pass.
#include "core/entries.h"
#include "cpu/engine.h"
#include "cpu/float_mode.h"
#include "cpu/isa.h"

namespace aimmerge {
namespace {

struct WeighTile {
  template <class Format>
  static AIM_INLINE int run(typename Format::Storage* __restrict live,
                            const typename Format::Storage* anchor,
                            const typename Format::Storage* mid, Scores learned, Scores past,
                            int count, float limit_learned, float limit_past, WeightTable weights) {
    using Storage = typename Format::Storage;
    int bad = 0;
    for (int i = 0; i < count; ++i) {
      const bool a = is_important(learned.sensitivity[i], learned.uncertainty[i], limit_learned);
      const bool b = is_important(past.sensitivity[i], past.uncertainty[i], limit_past);
      const float w_new = weight_of(weights.learned, a, b), w_past = weight_of(weights.past, a, b);
      const Storage fused = Format::store(fuse(Format::load(anchor[i]), Format::load(mid[i]),
                                               Format::load(live[i]), w_new, w_past));
      // a + (m - a) is not m in floating point, and 0 * inf is not 0
      const Storage stored = (w_new == 1.0f) & (w_past == 0.0f) ? mid[i] : fused;
      live[i] = stored;
      bad += (Format::overflow(stored) & Format::kTop) != 0;
    }
    return bad;
  }
};

template <class Format>
int64_t weigh_tile(const Table& table, const Weighing& by, int64_t k, Isa isa) {
  using Storage = typename Format::Storage;
  const Tile& tile = table.tiles[k];
  const int64_t first = by.places[k];
  auto* live = reinterpret_cast<Storage*>(tile.address);
  const auto* anchor = reinterpret_cast<const Storage*>(table.anchor + tile.offset);
  const auto* mid = reinterpret_cast<const Storage*>(table.mid + tile.offset);
  const Scores learned{by.learned.sensitivity + first, by.learned.uncertainty + first};
  const Scores past{by.past.sensitivity + first, by.past.uncertainty + first};
  return call<WeighTile, Format>(isa, live, anchor, mid, learned, past, tile.count,
                                 by.thresholds[0], by.thresholds[1], by.weights);
}

}  // namespace

int64_t weighted(const Table& table, const Weighing& by) {
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
          bad += weigh_tile<BFloat16>(table, by, k, isa);
          break;
        case kFloat16:
          bad += weigh_tile<Float16>(table, by, k, isa);
          break;
        default:
          bad += weigh_tile<Float32>(table, by, k, isa);
      }
    }
  }
  return bad;
}

}  // namespace aimmerge
