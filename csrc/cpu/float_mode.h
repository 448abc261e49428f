// Default rounding and denormals for the extent of a kernel, whatever the calling thread had set.
//
// torch.set_flush_denormal(True) reaches OpenMP workers too, and would turn a change of 1e-35 into
// 0. Each worker sets the mode it computes in and puts the old one back.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace aimmerge {

class FloatMode {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // round to nearest, no FTZ, no DAZ
  ~FloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FloatMode() = default;
#endif
 public:
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;
};

}  // namespace aimmerge
