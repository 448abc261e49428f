// What can be asked about the kernels and this build.
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace aimmerge::cuda {

std::vector<KernelUse> kernel_use(int device) {
  const DeviceGuard guard("cuda_kernels", device);
  std::vector<KernelUse> uses;
  for (const Kernels& file : {observe_kernels(), open_kernels(), close_kernels(), advance_kernels(),
                              repair_kernels(), importance_kernels(), weighted_kernels()}) {
    for (const auto& [name, kernel] : file) {
      cudaFuncAttributes found{};
      check(name, device, cudaFuncGetAttributes(&found, kernel));
      uses.push_back({name, found.numRegs, static_cast<int64_t>(found.localSizeBytes),
                      static_cast<int64_t>(found.sharedSizeBytes)});
    }
  }
  return uses;
}

std::vector<int> architectures() {
#if defined(__CUDA_ARCH_LIST__)
  std::vector<int> all{__CUDA_ARCH_LIST__};  // 750, 800, ...
  for (int& each : all) each /= 10;
  return all;
#else
  return {};
#endif
}

}  // namespace aimmerge::cuda
