// The CUDA kernels for Python: addresses of device memory and a stream as plain integers.
//
// A launch waits when the device's queue is full, so every op runs without the GIL.
#include "cuda/bindings.h"

#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "cuda/engine.h"
#include "given.h"

namespace py = pybind11;

namespace aimmerge::cuda {
namespace {

class CudaEngine {
 public:
  CudaEngine(uint64_t anchor, uint64_t mid, uint64_t state, uint64_t scratch, int device)
      : device_(device) {
    table_.anchor = at<uint8_t>(anchor);
    table_.mid = at<uint8_t>(mid);
    table_.block = at<StateBlock>(state);
    table_.scratch = at<Scratch>(scratch);
  }
  void bind(uint64_t tiles, int64_t count, bool narrow) {
    if (count < 0 || count > kMostTiles)
      throw std::invalid_argument("a table holds 0 to " + std::to_string(kMostTiles) +
                                  " tiles, got " + std::to_string(count) +
                                  "; split the parameters over several tables");
    table_.tiles = at<const Tile>(tiles);
    table_.count = count;
    table_.narrow = narrow;
  }
  void observe(uint64_t loss, int32_t dtype, uint64_t stream) const {
    cuda::observe(table_.block, loss, dtype, place(stream));
  }
  void open(uint64_t stream) const { cuda::open(table_, place(stream)); }
  void close(uint64_t stream) const { cuda::close(table_, place(stream)); }
  void repair(uint64_t stream) const { cuda::repair(table_, place(stream)); }
  void advance(uint64_t partials, int64_t rows, uint64_t stream) const {
    cuda::advance(table_.block, at<const double>(partials), rows, place(stream));
  }
  void importance(const std::array<uint64_t, 4>& given, const std::array<float, 4>& betas,
                  uint64_t stream) const {
    cuda::importance(table_, gradients_at(given, betas), place(stream));
  }
  void weighted(const std::array<uint64_t, 6>& given,
                const std::array<std::array<float, 2>, 4>& weights, uint64_t bad,
                uint64_t stream) const {
    cuda::weighted(table_, weighing_at(given, weights), at<unsigned long long>(bad), place(stream));
  }

 private:
  Place place(uint64_t stream) const { return {device_, stream}; }

  Table table_{};
  int device_;
};

std::map<std::string, std::map<std::string, int64_t>> kernels(int device) {
  std::map<std::string, std::map<std::string, int64_t>> all;
  for (const KernelUse& use : kernel_use(device))
    all[use.name] = {{"registers", use.registers},
                     {"local_bytes", use.local_bytes},
                     {"shared_bytes", use.shared_bytes}};
  return all;
}

}  // namespace

void bind_cuda(py::module_& m) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<CudaEngine>(m, "CudaEngine", py::module_local())
      .def(py::init<uint64_t, uint64_t, uint64_t, uint64_t, int>())
      .def("bind", &CudaEngine::bind)
      .def("observe", &CudaEngine::observe, unlocked())
      .def("open", &CudaEngine::open, unlocked())
      .def("close", &CudaEngine::close, unlocked())
      .def("repair", &CudaEngine::repair, unlocked())
      .def("advance", &CudaEngine::advance, unlocked())
      .def("importance", &CudaEngine::importance, unlocked())
      .def("weighted", &CudaEngine::weighted, unlocked());
  m.def("cuda_kernels", &kernels);
  m.def("cuda_architectures", &architectures);
}

}  // namespace aimmerge::cuda
