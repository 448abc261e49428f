// advance: the transition alone, from the partial results of several tables or ranks.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

constexpr int kThreads = 128;

// partials: rows of (L1, non-finite entries), added in row order so that all who hold them agree.
__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    advance_kernel(StateBlock* block, const double* partials, int64_t rows) {
  SHARED(StateBlock, copy, 1);
  fetch(copy, block);
  __syncthreads();
  if (threadIdx.x == 0) {
    double l1 = 0.0;
    int64_t bad = 0;
    for (int64_t i = 0; i < rows; ++i) {
      l1 += partials[2 * i];
      bad += truncate_within(partials[2 * i + 1], 0, 0x7fffffff);
    }
    if (copy->state.phase == kIdle)
      open_merge(copy->config, copy->state, l1, bad);
    else
      close_merge(copy->state, bad);
  }
  __syncthreads();
  flush(block, copy);
}

}  // namespace

void advance(StateBlock* block, const double* partials, int64_t rows, Place place) {
  launch("advance", advance_kernel, 1, kThreads, place, block, partials, rows);
}

Kernels advance_kernels() { return {{"advance", address_of(advance_kernel)}}; }

}  // namespace aimmerge::cuda
