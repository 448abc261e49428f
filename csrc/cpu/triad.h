// The bandwidth ceiling that the benches compare with.
#pragma once

#include <cstdint>

namespace aimmerge {

// a[i] = b[i] + 3 * c[i] on all threads; 12 counted bytes an entry.
void triad(float* a, const float* b, const float* c, int64_t n, bool nontemporal);

}  // namespace aimmerge
