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
#include "given.h"
#if AIMMERGE_CUDA
#include "cuda/bindings.h"
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;
using namespace aimmerge;

namespace {

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
  void importance(const std::array<uint64_t, 4>& given, const std::array<float, 4>& betas) const {
    aimmerge::importance(table_, gradients_at(given, betas));
  }
  int64_t weighted(const std::array<uint64_t, 6>& given,
                   const std::array<std::array<float, 2>, 4>& weights) const {
    return aimmerge::weighted(table_, weighing_at(given, weights));
  }
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

// name -> (offset, size), for every field: the Python side describes the same bytes once more.
#define FIELD(type, name) fields[#name] = py::make_tuple(offsetof(type, name), sizeof(type::name))

py::dict config_fields() {
  py::dict fields;
  FIELD(Config, gamma_forget);
  FIELD(Config, gamma_plus_small);
  FIELD(Config, gamma_minus_small);
  FIELD(Config, gamma_plus_large);
  FIELD(Config, gamma_minus_large);
  FIELD(Config, p_new_cold);
  FIELD(Config, alpha_floor);
  FIELD(Config, alpha_new);
  FIELD(Config, seed);
  FIELD(Config, policy);
  FIELD(Config, schedule);
  FIELD(Config, s_init);
  FIELD(Config, s_min);
  FIELD(Config, s_max);
  FIELD(Config, s_hi);
  FIELD(Config, window);
  FIELD(Config, f_max);
  FIELD(Config, s_switch);
  FIELD(Config, use_learning_signal);
  FIELD(Config, use_forgetting_signal);
  FIELD(Config, outer_init);
  FIELD(Config, cold_start);
  FIELD(Config, s_weight);
  FIELD(Config, adaptive);
  FIELD(Config, merge_at_count);
  FIELD(Config, merge_at);
  return fields;
}

py::dict state_fields() {
  py::dict fields;
  FIELD(State, sum);
  FIELD(State, threshold);
  FIELD(State, loss);
  FIELD(State, l1);
  FIELD(State, lambda);
  FIELD(State, change_factor);
  FIELD(State, alpha1);
  FIELD(State, alpha2);
  FIELD(State, partial_l1);
  FIELD(State, partial_bad);
  FIELD(State, history);
  FIELD(State, sequence);
  FIELD(State, ring);
  FIELD(State, ring_size);
  FIELD(State, task);
  FIELD(State, S);
  FIELD(State, t);
  FIELD(State, F);
  FIELD(State, g);
  FIELD(State, samples);
  FIELD(State, has_threshold);
  FIELD(State, history_count);
  FIELD(State, merges);
  FIELD(State, memory_steps);
  FIELD(State, code);
  FIELD(State, phase);
  FIELD(State, reject);
  FIELD(State, elapsed);
  FIELD(State, cold);
  FIELD(State, L_up);
  FIELD(State, L_down);
  FIELD(State, case_);
  FIELD(State, defer);
  return fields;
}

py::dict record_fields() {
  py::dict fields;
  FIELD(Record, sequence);
  FIELD(Record, loss);
  FIELD(Record, threshold);
  FIELD(Record, l1);
  FIELD(Record, t);
  FIELD(Record, S);
  FIELD(Record, F);
  FIELD(Record, code);
  FIELD(Record, merge);
  FIELD(Record, memory_steps);
  FIELD(Record, next_S);
  FIELD(Record, reject);
  return fields;
}

#undef FIELD

py::dict layout() {
  py::dict sizes, all;
  sizes["Config"] = sizeof(Config);
  sizes["State"] = sizeof(State);
  sizes["StateBlock"] = sizeof(StateBlock);
  sizes["Record"] = sizeof(Record);
  all["Config"] = config_fields();
  all["State"] = state_fields();
  all["Record"] = record_fields();
  all["sizes"] = sizes;
  return all;
}

template <class T>
py::dict numbered(std::initializer_list<std::pair<const char*, T>> names) {
  py::dict numbers;
  for (const auto& [name, value] : names) numbers[name] = static_cast<int>(value);
  return numbers;
}

// What the numbers in Config, State and Record stand for.
py::dict numbers() {
  py::dict all;
  all["policies"] = numbered<Policy>({{"paper", kPaper}, {"released", kReleased}});
  all["schedules"] = numbered<Schedule>({{"adaptive", kAdaptive},
                                         {"monitor", kMonitor},
                                         {"fixed", kFixed},
                                         {"rapid+", kRapidPlus},
                                         {"slow+", kSlowPlus},
                                         {"random", kRandom},
                                         {"at", kAt},
                                         {"single", kSingle}});
  all["codes"] = numbered<Code>({{"collect", kCollect},
                                 {"threshold", kThreshold},
                                 {"monitor", kQuiet},
                                 {"activate", kActivate},
                                 {"merge_early", kMergeEarly},
                                 {"merge_due", kMergeDue},
                                 {"merge_deferred", kMergeDeferred},
                                 {"merge_forced", kMergeForced},
                                 {"merge_final", kMergeFinal},
                                 {"measure", kMeasure}});
  all["halves"] = numbered<Code>({{"open", kOpen}, {"close", kClose}});
  all["phases"] = numbered<Phase>({{"idle", kIdle}, {"merge_open", kMergeOpen}});
  all["dtypes"] =
      numbered<Dtype>({{"float32", kFloat32}, {"bfloat16", kBFloat16}, {"float16", kFloat16}});
  all["limits"] = numbered<int>(
      {{"window", kMaxWindow}, {"merge_at", kMaxMergeAt}, {"tile", kTile}, {"wide", kWide}});
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
  m.doc() = "kernels of aimmerge_fast; use aimmerge_fast.kernels, which checks its arguments";
  py::class_<Engine>(m, "Engine", py::module_local())
      .def(py::init<uint64_t, uint64_t, uint64_t>())
      .def("bind", &Engine::bind)
      .def("observe", &Engine::observe)
      .def("open", &Engine::open, py::call_guard<py::gil_scoped_release>())
      .def("close", &Engine::close, py::call_guard<py::gil_scoped_release>())
      .def("advance", &Engine::advance)
      .def("repair", &Engine::repair, py::call_guard<py::gil_scoped_release>())
      .def("importance", &Engine::importance, py::call_guard<py::gil_scoped_release>())
      .def("weighted", &Engine::weighted, py::call_guard<py::gil_scoped_release>())
      .def("tiles", &Engine::tiles);
  m.def("plan", &plan);
  m.def("tile", &tile);
  m.def("layout", &layout);
  m.def("numbers", &numbers);
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
#if AIMMERGE_CUDA
  cuda::bind_cuda(m);
#endif
}
