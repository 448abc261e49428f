// The runtime API: no device is needed, and errors come when a test asks for them.
#include "runtime.h"

#include <string>

#include "cuda_runtime.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace emulation {

Settings settings;
Driver driver;

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (driver.launch_error) {
    const int error = driver.launch_error;
    driver.launch_error = 0;
    return static_cast<cudaError_t>(error);
  }
  // one dimension is all that the kernels use
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y != 1 || grid.z != 1)
    return cudaErrorInvalidConfiguration;
  if (block.x < 1 || block.x > 1024 || block.y != 1 || block.z != 1)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes || config.numAttrs) return cudaErrorInvalidValue;
  driver.launched.push_back(
      {driver.device, reinterpret_cast<uint64_t>(config.stream), grid.x, block.x});
  run(grid.x, block.x, body);
  return cudaSuccess;
}

}  // namespace emulation

using emulation::driver;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? "an illegal memory access was encountered"
                                          : cudaGetErrorName(error);
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
  *device = driver.device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= driver.devices) return cudaErrorInvalidDevice;
  driver.device = device;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  return kernel ? cudaSuccess : cudaErrorInvalidValue;
}
