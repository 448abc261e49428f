// repair: undo the half that just met a non-finite entry; nothing when it did not.
//
// It is launched after every deferred half and is rarely needed, so the grid stays small.
#include "cuda/entries.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 512;

__global__ void __launch_bounds__(kThreads, 512 / kThreads) repair_kernel(Table table) {
  const StateBlock& block = *table.block;
  if (!block.state.reject || !changes_live(block.config)) return;
  undo<kThreads>(table, block.state.phase, blockIdx.x, gridDim.x);
}

}  // namespace

void repair(const Table& table, Place place) {
  const int64_t blocks = blocks_of(table);
  launch("repair", repair_kernel, blocks < kMostBlocks ? blocks : kMostBlocks, kThreads, place,
         table);
}

Kernels repair_kernels() { return {{"repair", address_of(repair_kernel)}}; }

}  // namespace aimmerge::cuda
