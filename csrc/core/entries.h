// What the per-entry ops are given beside the tiles: buffers of one fp32 number per entry.
#pragma once

#include <cstdint>

#include "core/formulas.h"

namespace aimmerge {

// One step's gradients, to be taken into the importance of every entry.
struct Gradients {
  const uint64_t* addresses;  // of each tile's first gradient; 0: the tile's gradients are zeros
  const int64_t* places;      // number of each tile's first entry in the buffers
  float* sensitivity;
  float* uncertainty;
  Smoothing smoothing;
};

struct Scores {
  const float* sensitivity;
  const float* uncertainty;
};

// What decides about the weights of an entry.
struct Weighing {
  const int64_t* places;  // number of each tile's first entry in the buffers
  Scores learned, past;
  const float* thresholds;  // for learned and for past; on the device
  WeightTable weights;
};

}  // namespace aimmerge
