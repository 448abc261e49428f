// STREAM's triad, with plain and with non-temporal stores.
#include "cpu/triad.h"

#include "core/formulas.h"
#include "cpu/isa.h"

#if AIM_X86
#include <emmintrin.h>
#endif

namespace aimmerge {
namespace {

constexpr int64_t kBlock = 4096;

struct TriadBlock {
  template <class Format>
  static AIM_INLINE int run(float* __restrict a, const float* b, const float* c, int64_t n) {
    for (int64_t i = 0; i < n; ++i) a[i] = b[i] + 3.0f * c[i];
    return 0;
  }
};

#if AIM_X86
void stream_block(float* a, const float* b, const float* c) {
  const __m128 three = _mm_set1_ps(3.0f);
  for (int64_t i = 0; i < kBlock; i += 4)
    _mm_stream_ps(a + i, _mm_add_ps(_mm_loadu_ps(b + i), _mm_mul_ps(three, _mm_loadu_ps(c + i))));
}
#endif

}  // namespace

void triad(float* a, const float* b, const float* c, int64_t n, bool nontemporal) {
  const Isa isa = current_isa();
  const bool streams = AIM_X86 && nontemporal && reinterpret_cast<uint64_t>(a) % 16 == 0;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static)
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t first = k * kBlock, count = n - first < kBlock ? n - first : kBlock;
#if AIM_X86
    if (streams && count == kBlock) {
      stream_block(a + first, b + first, c + first);
      continue;
    }
#endif
    (void)streams;
    call<TriadBlock, Float32>(isa, a + first, b + first, c + first, count);
  }
}

}  // namespace aimmerge
