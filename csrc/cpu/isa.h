// Instruction sets: each hot loop is compiled for several, and one is chosen when the module loads.
//
// Explicit variants rather than target_clones: a test can switch between them (set_isa), the chosen
// one is visible in `aimmerge doctor`, and sanitizers do not meet ifunc resolvers. All variants
// give the same bits: contraction is off and no reduction is reordered.
#pragma once

#include <string>
#include <vector>

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
#define AIM_X86 1
#define AIM_TARGET_AVX2 __attribute__((target("avx2")))
#define AIM_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define AIM_X86 0
#define AIM_TARGET_AVX2
#define AIM_TARGET_AVX512
#endif

namespace aimmerge {

enum class Isa { kBaseline, kAvx2, kAvx512 };

std::string isa_name();                    // the one in use
std::vector<std::string> isa_available();  // what this machine runs, slowest first
void set_isa(const std::string& name);     // throws std::invalid_argument listing the known
Isa current_isa();

// `Body::run<Format>(args...)` compiled for each instruction set; `call<Body, Format>` picks one.
template <class Body, class Format, class... Args>
inline auto run_baseline(Args... args) {
  return Body::template run<Format>(args...);
}
template <class Body, class Format, class... Args>
AIM_TARGET_AVX2 inline auto run_avx2(Args... args) {
  return Body::template run<Format>(args...);
}
template <class Body, class Format, class... Args>
AIM_TARGET_AVX512 inline auto run_avx512(Args... args) {
  return Body::template run<Format>(args...);
}

template <class Body, class Format, class... Args>
inline auto call(Isa isa, Args... args) {
  switch (isa) {
    case Isa::kAvx512:
      return run_avx512<Body, Format>(args...);
    case Isa::kAvx2:
      return run_avx2<Body, Format>(args...);
    default:
      return run_baseline<Body, Format>(args...);
  }
}

}  // namespace aimmerge
