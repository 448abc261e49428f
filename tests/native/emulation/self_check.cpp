// Small kernels, right and wrong, for the emulation itself: what must be reported is reported.
//
//   self_check NAME   prints the result of the kernel, or how it was refused
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace {

using emulation::shared;
constexpr unsigned kThreads = 96, kBlocks = 5;

struct Result {
  uint32_t ticket, sum, wrong;
};

__global__ void fine(Result* result, int) {
  auto* words = shared<uint32_t>(3, 1);
  auto* before = shared<uint32_t>(1, 2);
  if (words == before || blockDim.x != kThreads || gridDim.x != kBlocks) ++result->wrong;
  uint32_t own = threadIdx.x + blockDim.x * blockIdx.x;
  for (int flip = 1; flip < 32; flip *= 2) own += __shfl_xor_sync(0xffffffffu, own, flip);
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&result->sum, words[0] + words[1] + words[2]);
    *before = emulation::ticket_add(&result->ticket);
  }
  __syncthreads();
  if (*before == gridDim.x - 1 && threadIdx.x == 0) result->ticket = 100;
}

__global__ void garbage(Result* result, int) {
  if (*shared<uint32_t>(1, 1) != 0xABABABABu) ++result->wrong;  // left by another block
  __syncthreads();
  if (threadIdx.x == 0) *shared<uint32_t>(1, 1) = 7;
}

// What a lane writes before a shuffle is not visible to its neighbours after it.
__global__ void shuffle_for_barrier(Result* result, int) {
  auto* words = shared<uint32_t>(kThreads, 1);
  words[threadIdx.x] = threadIdx.x;
  __shfl_xor_sync(0xffffffffu, 1, 1);
  if (words[threadIdx.x ^ 1] != (threadIdx.x ^ 1)) atomicAdd(&result->wrong, 1);
}

// Thread 5 ends while the others wait.
__global__ void early_end(Result*, int) {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

// The halves of the block wait at two barriers.
__global__ void two_barriers(Result*, int) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

// A lane is missing from the shuffle of its warp.
__global__ void lone_shuffle(Result*, int) {
  if (threadIdx.x != 40) __shfl_xor_sync(0xffffffffu, 1, 1);
  __syncthreads();
}

// A lane asks for the value of one that the mask leaves out.
__global__ void outside_mask(Result*, int) {
  if (threadIdx.x < 8) __shfl_xor_sync(0xffu, 1, 8);
}

__global__ void greedy(Result*, int) {
  shared<double>(6000, 1);
  shared<double>(200, 2);
}

struct Named {
  const char* name;
  void (*kernel)(Result*, int);
};
constexpr Named kKernels[] = {
    {"fine", fine},
    {"garbage", garbage},
    {"shuffle_for_barrier", shuffle_for_barrier},
    {"early_end", early_end},
    {"two_barriers", two_barriers},
    {"lone_shuffle", lone_shuffle},
    {"outside_mask", outside_mask},
    {"greedy", greedy},
};

int run(void (*kernel)(Result*, int), unsigned blocks, unsigned threads, size_t dynamic) {
  Result result{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = dynamic;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, &result, 0);
  std::printf("%s %u %u %u\n", cudaGetErrorName(error), result.ticket, result.sum, result.wrong);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (argc > 2) emulation::settings.seed = std::stoull(argv[2]);
  try {
    if (name == "no_block") return run(fine, 0, kThreads, 0);
    if (name == "large_block") return run(fine, 1, 1025, 0);
    if (name == "dynamic") return run(fine, 1, kThreads, 16);
    for (const Named& each : kKernels)
      if (name == each.name) return run(each.kernel, kBlocks, kThreads, 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 5;
  }
  return 2;
}
