// What a function needs in front of it to be compiled for the host and for the device.
#pragma once

#if defined(__CUDACC__)
#define AIM_FN __host__ __device__ inline
#define AIM_INLINE __host__ __device__ __forceinline__
#else
#define AIM_FN inline
#define AIM_INLINE inline __attribute__((always_inline))
#endif
