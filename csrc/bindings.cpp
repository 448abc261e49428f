// The Python module aimmerge_fast._native: raw addresses and sizes, no torch headers.
//
// Addresses are checked where they are taken, in aimmerge_fast/kernels/native.py; an Engine keeps
// them for life, so that its methods cost a function call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>

#include "cpu/engine.h"
#include "cpu/isa.h"
#include "cpu/triad.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;
using namespace aimmerge;

namespace {

template <class T>
T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

class Engine {
 public:
  Engine(uint64_t anchor, uint64_t mid, uint64_t state) {
    table_.anchor = at<uint8_t>(anchor);
    table_.mid = at<uint8_t>(mid);
    table_.block = at<StateBlock>(state);
  }
  void bind(const std::vector<uint64_t>& addresses, const std::vector<int64_t>& counts,
            const std::vector<int64_t>& offsets, const std::vector<int32_t>& dtypes) {
    table_.tiles = plan_tiles(addresses, counts, offsets, dtypes);
    table_.partials.assign(table_.tiles.size(), 0.0);
  }
  void observe(uint64_t loss, int32_t dtype) { aimmerge::observe(*table_.block, loss, dtype); }
  void open() { aimmerge::open(table_); }
  void close() { aimmerge::close(table_); }
  void advance(uint64_t partials, int64_t rows) {
    aimmerge::advance(*table_.block, at<const double>(partials), rows);
  }
  void repair() { aimmerge::repair(table_); }
  size_t tiles() const { return table_.tiles.size(); }

 private:
  Table table_;
};

std::vector<std::tuple<uint64_t, int64_t, int32_t, int32_t>> plan(
    const std::vector<uint64_t>& addresses, const std::vector<int64_t>& counts,
    const std::vector<int64_t>& offsets, const std::vector<int32_t>& dtypes) {
  std::vector<std::tuple<uint64_t, int64_t, int32_t, int32_t>> rows;
  for (const Tile& tile : plan_tiles(addresses, counts, offsets, dtypes))
    rows.emplace_back(tile.address, tile.offset, tile.count, tile.flags);
  return rows;
}

// One tile of a tensor of any (virtual) size: the planner's arithmetic without its memory.
std::tuple<uint64_t, int64_t, int32_t, int32_t> tile(uint64_t address, int64_t entries,
                                                     int64_t offset, int32_t dtype, int64_t k) {
  const Tile t = tile_at(address, entries, offset, dtype, k);
  return {t.address, t.offset, t.count, t.flags};
}

#define FIELD(owner, type, name) owner[#name] = offsetof(type, name)

py::dict layout() {
  py::dict config, state, record, sizes;
  FIELD(config, Config, gamma_forget);
  FIELD(config, Config, alpha_new);
  FIELD(config, Config, seed);
  FIELD(config, Config, policy);
  FIELD(config, Config, window);
  FIELD(config, Config, outer_init);
  FIELD(config, Config, merge_at_count);
  FIELD(config, Config, merge_at);
  FIELD(state, State, sum);
  FIELD(state, State, alpha1);
  FIELD(state, State, partial_bad);
  FIELD(state, State, history);
  FIELD(state, State, sequence);
  FIELD(state, State, ring_size);
  FIELD(state, State, S);
  FIELD(state, State, merges);
  FIELD(state, State, phase);
  FIELD(state, State, defer);
  FIELD(record, Record, sequence);
  FIELD(record, Record, l1);
  FIELD(record, Record, t);
  FIELD(record, Record, reject);
  sizes["config"] = sizeof(Config);
  sizes["state"] = sizeof(State);
  sizes["record"] = sizeof(Record);
  py::dict all;
  all["config"] = config;
  all["state"] = state;
  all["record"] = record;
  all["sizes"] = sizes;
  return all;
}

int threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU kernels of aimmerge_fast; use aimmerge_fast.kernels, which checks its arguments";
  py::class_<Engine>(m, "Engine", py::module_local())
      .def(py::init<uint64_t, uint64_t, uint64_t>())
      .def("bind", &Engine::bind)
      .def("observe", &Engine::observe)
      .def("open", &Engine::open, py::call_guard<py::gil_scoped_release>())
      .def("close", &Engine::close, py::call_guard<py::gil_scoped_release>())
      .def("advance", &Engine::advance)
      .def("repair", &Engine::repair, py::call_guard<py::gil_scoped_release>())
      .def("tiles", &Engine::tiles);
  m.def("plan", &plan);
  m.def("tile", &tile);
  m.def("layout", &layout);
  m.def("threads", &threads);
  m.def("isa", &isa_name);
  m.def("isa_available", &isa_available);
  m.def("set_isa", &set_isa);
  m.def(
      "triad",
      [](uint64_t a, uint64_t b, uint64_t c, int64_t n, bool nontemporal) {
        triad(at<float>(a), at<const float>(b), at<const float>(c), n, nontemporal);
      },
      py::call_guard<py::gil_scoped_release>());
}
