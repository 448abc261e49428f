// The Python module _emulated: the bindings of csrc/cuda on the emulation, and its settings.
#include "cuda/bindings.cpp"  // the file itself: pybind11's headers take seconds, once is enough
#include "emulation.h"
#include "runtime.h"

using emulation::driver;
using emulation::settings;

PYBIND11_MODULE(_emulated, m) {
  aimmerge::cuda::bind_cuda(m);
  m.def("set_schedule", [](uint64_t seed, unsigned resident) { settings = {resident, seed}; });
  m.def("set_devices", [](int count) { driver.devices = count; });
  m.def("fail_next_launch", [](int error) { driver.launch_error = error; });
  m.def("current_device", [] { return driver.device; });
  m.def("take_launched", [] {  // (device, stream, blocks, threads) of each since the last call
    py::list all;
    for (const emulation::Launched& each : driver.launched)
      all.append(py::make_tuple(each.device, each.stream, each.blocks, each.threads));
    driver.launched.clear();
    return all;
  });
}
