// importance: one step's |theta * gradient| of every entry into its two running averages.
//
// Reads four, writes two: 24 bytes an entry in fp32, one pass.
#include "core/entries.h"
#include "cpu/engine.h"
#include "cpu/float_mode.h"
#include "cpu/isa.h"

namespace aimmerge {
namespace {

template <bool kKnown>
struct SmoothTile {
  template <class Format>
  static AIM_INLINE void run(const typename Format::Storage* theta,
                             const typename Format::Storage* gradient,
                             float* __restrict sensitivity, float* __restrict uncertainty,
                             int count, Smoothing by) {
    for (int i = 0; i < count; ++i) {
      float seen = 0.0f;  // of no gradient, whatever theta is
      if constexpr (kKnown) seen = importance_of(Format::load(theta[i]), Format::load(gradient[i]));
      const float s = smooth(sensitivity[i], seen, by.keep1, by.take1);
      sensitivity[i] = s;
      uncertainty[i] = spread(uncertainty[i], seen, s, by);
    }
  }
};

template <class Format>
void importance_tile(const Table& table, const Gradients& step, int64_t k, Isa isa) {
  using Storage = typename Format::Storage;
  const Tile& tile = table.tiles[k];
  const auto* theta = reinterpret_cast<const Storage*>(tile.address);
  const auto* gradient = reinterpret_cast<const Storage*>(step.addresses[k]);
  float* sensitivity = step.sensitivity + step.places[k];
  float* uncertainty = step.uncertainty + step.places[k];
  if (gradient)
    call<SmoothTile<true>, Format>(isa, theta, gradient, sensitivity, uncertainty, tile.count,
                                   step.smoothing);
  else
    call<SmoothTile<false>, Format>(isa, theta, gradient, sensitivity, uncertainty, tile.count,
                                    step.smoothing);
}

}  // namespace

void importance(const Table& table, const Gradients& step) {
  const int64_t n = static_cast<int64_t>(table.tiles.size());
  const Isa isa = current_isa();
#pragma omp parallel if (n > 16)
  {
    const FloatMode mode;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < n; ++k) {
      switch (table.tiles[k].flags & kDtypeMask) {
        case kBFloat16:
          importance_tile<BFloat16>(table, step, k, isa);
          break;
        case kFloat16:
          importance_tile<Float16>(table, step, k, isa);
          break;
        default:
          importance_tile<Float32>(table, step, k, isa);
      }
    }
  }
}

}  // namespace aimmerge
