// What the emulated driver was asked for, and the errors that a test lets it report.
#pragma once

#include <cstdint>
#include <vector>

namespace emulation {

struct Launched {
  int device;
  uint64_t stream;
  unsigned blocks, threads;
};

struct Driver {
  int device = 0, devices = 1;       // the current one, and how many there are
  int launch_error = 0;              // a cudaError_t that the next launch returns instead
  std::vector<Launched> launched{};  // since it was last emptied
};
extern Driver driver;

}  // namespace emulation
