// The per-element formulas, one rounding per operation, and the storage formats they run on.
//
// A format converts its storage to fp32, where all element arithmetic happens, and back with
// round-to-nearest-even. Contraction must be off in every build (-ffp-contract=off, --fmad=false):
// a fused multiply-add changes a quarter of the entries.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace aimmerge {

AIM_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
AIM_INLINE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// Each format's `overflow` has the top bit of its storage set exactly for Inf and NaN: adding one
// to an all-ones exponent carries into the sign bit.

struct Float32 {
  using Storage = uint32_t;
  static constexpr Storage kTop = 0x80000000u;
  static AIM_INLINE float load(Storage h) { return float_of(h); }
  static AIM_INLINE Storage store(float x) { return bits_of(x); }
  static AIM_INLINE Storage overflow(Storage h) { return (h & 0x7f800000u) + 0x00800000u; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static constexpr Storage kTop = 0x8000u;
  static AIM_INLINE float load(Storage h) { return float_of(static_cast<uint32_t>(h) << 16); }
  static AIM_INLINE Storage store(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    return static_cast<Storage>(is_nan ? 0x7fc0u : rounded);
  }
  static AIM_INLINE Storage overflow(Storage h) {
    return static_cast<Storage>((h & 0x7f80u) + 0x0080u);
  }
};

struct Float16 {
  using Storage = uint16_t;
  static constexpr Storage kTop = 0x8000u;
  static AIM_INLINE float load(Storage h) {
    const uint32_t u = h;
    // the shifted pattern is 2^-112 times the value, subnormals included; the product is exact
    const float scaled = float_of((u & 0x7fffu) << 13) * float_of(0x77800000u);
    const uint32_t special = (u & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    return float_of(bits_of(scaled) | special | (u & 0x8000u) << 16);
  }
  static AIM_INLINE Storage store(float x) {
    const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    // below 2^-14 fp32's own adder rounds at the right place: 0.5 has an ulp of 2^-24
    const uint32_t tiny = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t infinite = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
    // 65520 is the first value that rounds to infinity
    return static_cast<Storage>(sign | (magnitude >= 0x477ff000u ? infinite : finite));
  }
  static AIM_INLINE Storage overflow(Storage h) {
    return static_cast<Storage>((h & 0x7c00u) + 0x0400u);
  }
};

// |live - anchor|: one fp32 rounding; every addition after it is fp64.
AIM_INLINE double change(float live, float anchor) {
  return static_cast<double>(__builtin_fabsf(live - anchor));
}

// Eq. 7: anchor + (alpha1 * (mid - anchor) + alpha2 * (live - mid)), rounded at each operation.
AIM_INLINE float fuse(float anchor, float mid, float live, float alpha1, float alpha2) {
  float t = mid - anchor;
  t = alpha1 * t;
  float u = live - mid;
  u = alpha2 * u;
  return anchor + (t + u);
}

// ---- importance of an entry ----------------------------------------------------------------

// What one step says about it.
AIM_INLINE float importance_of(float theta, float gradient) {
  return __builtin_fabsf(theta * gradient);
}

// The two averages' factors, beta and 1 - beta, each rounded once.
struct Smoothing {
  float keep1, take1, keep2, take2;
};

AIM_INLINE float smooth(float average, float seen, float keep, float take) {
  const float kept = keep * average;
  const float taken = take * seen;
  return kept + taken;
}

AIM_INLINE float spread(float uncertainty, float seen, float sensitivity, Smoothing by) {
  return smooth(uncertainty, __builtin_fabsf(seen - sensitivity), by.keep2, by.take2);
}

// Strictly: what equals the threshold is not important, nor is NaN.
AIM_INLINE bool is_important(float sensitivity, float uncertainty, float threshold) {
  return sensitivity * uncertainty > threshold;
}

// Weights of the two task vectors, for entries important to both, only to what was learned, only
// to the past, and to neither.
struct WeightTable {
  float learned[4], past[4];
};

AIM_INLINE float weight_of(const float (&weights)[4], bool learned, bool past) {
  const float with = past ? weights[0] : weights[1];
  const float without = past ? weights[2] : weights[3];
  return learned ? with : without;
}

}  // namespace aimmerge
