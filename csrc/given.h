// What the bindings of the CPU and of CUDA read in the same way: addresses as numbers, and the
// arguments of the per-entry ops as Python gives them.
#pragma once

#include <array>
#include <cstdint>

#include "core/entries.h"

namespace aimmerge {

template <class T>
T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// addresses of the gradients', the places and the two buffers; beta and 1 - beta of each average
inline Gradients gradients_at(const std::array<uint64_t, 4>& given,
                              const std::array<float, 4>& betas) {
  return {at<const uint64_t>(given[0]),
          at<const int64_t>(given[1]),
          at<float>(given[2]),
          at<float>(given[3]),
          {betas[0], betas[1], betas[2], betas[3]}};
}

// addresses of the places, the buffers for what was learned and for the past, the thresholds;
// for both, learned, past, neither
inline Weighing weighing_at(const std::array<uint64_t, 6>& given,
                            const std::array<std::array<float, 2>, 4>& weights) {
  Weighing by{at<const int64_t>(given[0]),
              {at<const float>(given[1]), at<const float>(given[2])},
              {at<const float>(given[3]), at<const float>(given[4])},
              at<const float>(given[5]),
              {}};
  for (int k = 0; k < 4; ++k) {
    by.weights.learned[k] = weights[k][0];
    by.weights.past[k] = weights[k][1];
  }
  return by;
}

}  // namespace aimmerge
