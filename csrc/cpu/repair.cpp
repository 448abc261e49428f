// repair: undo the half that just met a non-finite entry; nothing when it did not.
#include <cstring>

#include "cpu/engine.h"

namespace aimmerge {

void repair(Table& table) {
  const StateBlock& block = *table.block;
  if (!block.state.reject || !changes_live(block.config)) return;
  if (block.state.phase == kMergeOpen) {  // theta_j was bad: back to the anchor
    live_from_arena(table, table.anchor);
    arena_from_live(table, table.mid);
  } else {  // the fused values were bad: back to theta_j
    live_from_arena(table, table.mid);
    arena_from_live(table, table.anchor);
  }
}

}  // namespace aimmerge
