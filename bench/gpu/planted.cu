// One fault for each tool of compute-sanitizer: does the tool see faults on this machine?
//
//     nvcc -o planted planted.cu
//     compute-sanitizer --tool memcheck --error-exitcode 9 ./planted memcheck
#include <cstdio>
#include <cstring>

__global__ void past_the_end(int* data) { data[threadIdx.x + (1 << 16)] = 1; }

__global__ void no_barrier(int* out) {
  __shared__ int slot[64];
  slot[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = slot[63 - threadIdx.x];
}

__global__ void half_a_barrier(int* out) {
  if (threadIdx.x < 48) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void never_written(const int* data, int* out) {
  out[threadIdx.x] = data[threadIdx.x] + 1;
}

int main(int count, char** arguments) {
  const char* fault = count == 2 ? arguments[1] : "";
  int *data = nullptr, *out = nullptr;
  if (cudaMalloc(&data, 64 * sizeof(int)) || cudaMalloc(&out, 64 * sizeof(int))) return 3;
  if (!std::strcmp(fault, "memcheck")) past_the_end<<<1, 64>>>(data);
  if (!std::strcmp(fault, "racecheck")) no_barrier<<<1, 64>>>(out);
  if (!std::strcmp(fault, "synccheck")) half_a_barrier<<<1, 64>>>(out);
  if (!std::strcmp(fault, "initcheck")) never_written<<<1, 64>>>(data, out);
  const cudaError_t status = cudaDeviceSynchronize();
  std::printf("%s: %s\n", fault, cudaGetErrorString(status));
  return 0;
}
