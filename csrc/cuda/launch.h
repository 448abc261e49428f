// The one way in which a kernel is launched: on its device and stream, and checked.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/engine.h"

namespace aimmerge::cuda {

inline void check(const char* op, int device, cudaError_t status) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, so the next call must not find it again
  throw std::runtime_error(std::string(op) + " on cuda:" + std::to_string(device) + ": " +
                           cudaGetErrorString(status));
}

// Makes a device the current one, and puts the old one back.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    check(op, device, cudaGetDevice(&before_));
    if (before_ == device) return;
    check(op, device, cudaSetDevice(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads,
            const Place& place, Arguments... arguments) {
  const DeviceGuard guard(op, place.device);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = reinterpret_cast<cudaStream_t>(place.stream);
  check(op, place.device, cudaLaunchKernelEx(&config, kernel, arguments...));
}

// A table without a tile has one block too: its tail is what advances the controller.
inline int64_t blocks_of(const Table& table) { return table.count > 0 ? table.count : 1; }

// Kernels of a file, for kernels.cu.
using Kernels = std::vector<std::pair<const char*, const void*>>;
Kernels observe_kernels();
Kernels open_kernels();
Kernels close_kernels();
Kernels advance_kernels();
Kernels repair_kernels();
Kernels importance_kernels();
Kernels weighted_kernels();

template <class... Parameters>
const void* address_of(void (*kernel)(Parameters...)) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace aimmerge::cuda
