// advance: the transition alone, from the partial results of several tables or ranks.
#include "cpu/engine.h"
#include "cpu/float_mode.h"

namespace aimmerge {

// partials: rows of (L1, non-finite entries), added in row order so that all who hold them agree.
// A count beyond int32 is clamped: converting it as it is would be undefined.
void advance(StateBlock& block, const double* partials, int64_t rows) {
  const FloatMode mode;
  double l1 = 0.0;
  int64_t bad = 0;
  for (int64_t i = 0; i < rows; ++i) {
    l1 += partials[2 * i];
    bad += truncate_within(partials[2 * i + 1], 0, 0x7fffffff);
  }
  if (block.state.phase == kIdle)
    open_merge(block.config, block.state, l1, bad);
  else
    close_merge(block.state, bad);
}

}  // namespace aimmerge
