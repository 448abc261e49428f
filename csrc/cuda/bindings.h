// What csrc/bindings.cpp needs to know of the CUDA kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace aimmerge::cuda {

void bind_cuda(pybind11::module_& m);

}  // namespace aimmerge::cuda
