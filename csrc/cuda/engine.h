// What one set of parameters on a GPU needs, and the ops; no CUDA header, so that C++ can use it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/controller.h"
#include "core/entries.h"
#include "core/tiles.h"

namespace aimmerge::cuda {

// Device memory, zeroed once: the block that finishes last puts `ticket` and `bad` back to 0.
struct Scratch {
  uint32_t ticket;  // blocks that have finished
  uint32_t unused;
  unsigned long long bad;  // non-finite entries
  double partials[1];      // one per tile
};

struct Table {
  const Tile* tiles;
  int64_t count;
  uint8_t* anchor;
  uint8_t* mid;
  StateBlock* block;
  Scratch* scratch;
  bool narrow;  // every tile holds 16-bit entries
};

constexpr int64_t kMostTiles = 0x7fffffff;  // what one grid holds: a block per tile

struct Place {
  int device;
  uint64_t stream;  // a cudaStream_t
};

// The ops. Each launches one kernel on the stream and returns; a failed launch is a
// std::runtime_error that names the op. Nothing is allocated, copied or waited for.
void observe(StateBlock* block, uint64_t loss_address, int32_t loss_dtype, Place place);
void open(const Table& table, Place place);
void close(const Table& table, Place place);
void advance(StateBlock* block, const double* partials, int64_t rows, Place place);
void repair(const Table& table, Place place);
void importance(const Table& table, const Gradients& step, Place place);
// `bad` grows by the number of stored entries that are not finite.
void weighted(const Table& table, const Weighing& by, unsigned long long* bad, Place place);

// What the compiler gave each kernel. Asking loads the kernels, which a capture must not have to.
struct KernelUse {
  std::string name;
  int registers;
  int64_t local_bytes, shared_bytes;
};
std::vector<KernelUse> kernel_use(int device);

std::vector<int> architectures();  // with machine code in this build, e.g. 90 for sm_90

}  // namespace aimmerge::cuda
