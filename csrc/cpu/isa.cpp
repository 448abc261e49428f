// Which instruction set the hot loops run on.
#include "cpu/isa.h"

#include <stdexcept>

namespace aimmerge {
namespace {

Isa detect() {
#if AIM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};
Isa chosen = detect();

}  // namespace

Isa current_isa() { return chosen; }

std::string isa_name() { return kNames[static_cast<int>(chosen)]; }

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(detect()); ++i) names.emplace_back(kNames[i]);
  return names;
}

void set_isa(const std::string& name) {
  std::string known;
  for (int i = 0; i <= static_cast<int>(detect()); ++i) {
    if (name == kNames[i]) {
      chosen = static_cast<Isa>(i);
      return;
    }
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw std::invalid_argument("unknown instruction set '" + name + "'; this machine runs " + known);
}

}  // namespace aimmerge
