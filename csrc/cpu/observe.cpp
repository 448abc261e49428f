// observe: one history loss in; activations, threshold and decision out; one record to the ring.
#include <cstring>

#include "core/formulas.h"
#include "cpu/engine.h"
#include "cpu/float_mode.h"

namespace aimmerge {
namespace {

constexpr int32_t kFloat64 = 3;  // losses only; parameters are never fp64

template <class Format>
double read_as(uint64_t address) {
  typename Format::Storage stored;
  std::memcpy(&stored, reinterpret_cast<const void*>(address), sizeof stored);
  return static_cast<double>(Format::load(stored));
}

double read_loss(uint64_t address, int32_t dtype) {
  switch (dtype) {
    case kBFloat16:
      return read_as<BFloat16>(address);
    case kFloat16:
      return read_as<Float16>(address);
    case kFloat64: {
      double value;
      std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof value);
      return value;
    }
    default:
      return read_as<Float32>(address);
  }
}

}  // namespace

void observe(StateBlock& block, uint64_t loss_address, int32_t loss_dtype) {
  const FloatMode mode;
  observe_step(block.config, block.state, read_loss(loss_address, loss_dtype));
}

}  // namespace aimmerge
