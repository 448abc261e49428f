// observe: one history loss in; activations, threshold and decision out; one record to the ring.
//
// One block: what it moves is the state, a word or two of each thread.
#include "core/formulas.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int32_t kFloat64 = 3;  // losses only; parameters are never fp64

template <class Format>
__device__ __forceinline__ double read_as(uint64_t address) {
  return static_cast<double>(
      Format::load(*reinterpret_cast<const typename Format::Storage*>(address)));
}

__device__ __forceinline__ double read_loss(uint64_t address, int32_t dtype) {
  switch (dtype) {
    case kBFloat16:
      return read_as<BFloat16>(address);
    case kFloat16:
      return read_as<Float16>(address);
    case kFloat64:
      return *reinterpret_cast<const double*>(address);
    default:
      return read_as<Float32>(address);
  }
}

__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    observe_kernel(StateBlock* block, uint64_t loss_address, int32_t loss_dtype) {
  SHARED(StateBlock, copy, 1);
  fetch(copy, block);
  double loss = 0.0;
  if (threadIdx.x == 0) loss = read_loss(loss_address, loss_dtype);
  __syncthreads();
  if (threadIdx.x == 0) observe_step(copy->config, copy->state, loss);
  __syncthreads();
  flush(block, copy);
}

}  // namespace

void observe(StateBlock* block, uint64_t loss_address, int32_t loss_dtype, Place place) {
  launch("observe", observe_kernel, 1, kThreads, place, block, loss_address, loss_dtype);
}

Kernels observe_kernels() { return {{"observe", address_of(observe_kernel)}}; }

}  // namespace aimmerge::cuda
