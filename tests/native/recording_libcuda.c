// A libcuda.so.1 without a GPU: it "loads" any machine code and writes down what is launched.
//
// Triton's launcher, C code that it compiles on first use, runs against it unchanged.
#include <cuda.h>
#include <stdint.h>
#include <string.h>

#define ANSWER(call) \
  CUresult call { return CUDA_SUCCESS; }

typedef struct {
  uint64_t grid, block, shared, stream, function, values[24];
} Launch;

// The test says how many arguments the next launch has, since the driver is not told.
int expected_arguments = 0;
int launches = 0;
Launch last;

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** values, void** extra) {
  (void)extra;
  last = (Launch){config->gridDimX, config->blockDimX, config->sharedMemBytes,
                  (uint64_t)config->hStream, (uint64_t)f, {0}};
  for (int i = 0; i < expected_arguments; ++i) memcpy(&last.values[i], values[i], 8);
  ++launches;
  return CUDA_SUCCESS;
}

static uint64_t loaded = 0;
int unloaded = 0;

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  (void)image;
  *module = (CUmodule)(++loaded);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  (void)module;
  ++unloaded;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* f, CUmodule module, const char* name) {
  (void)name;
  *f = (CUfunction)(1000 + (uint64_t)module);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9 : 1 << 17;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction f) {
  (void)f;
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

ANSWER(cuInit(unsigned flags))
ANSWER(cuDriverGetVersion(int* version))
ANSWER(cuDeviceGet(CUdevice* device, int ordinal))
ANSWER(cuDeviceGetCount(int* count))
ANSWER(cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device))
ANSWER(cuCtxSetCurrent(CUcontext context))
ANSWER(cuCtxGetDevice(CUdevice* device))
ANSWER(cuCtxGetLimit(size_t* value, CUlimit limit))
ANSWER(cuCtxSetLimit(CUlimit limit, size_t value))
ANSWER(cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value))
ANSWER(cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config))
ANSWER(cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr p))
ANSWER(cuPointerGetAttributes(unsigned n, CUpointer_attribute* a, void** data, CUdeviceptr p))
ANSWER(cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status))
CUresult cuGetErrorString(CUresult error, const char** text) {
  (void)error;
  *text = "an error";
  return CUDA_SUCCESS;
}
