// Runs the CUDA kernels on the CPU (tests/native/emulation) and compares every byte with the CPU
// kernels, without Python: linked with fibres.cpp it is quick, with threads.cpp the thread
// sanitizer sees each access of each CUDA thread.
//
//   cuda_check [SEED [CASE ...]]   seed of the schedule; all cases, or those named
//
// Exit 0: all equal. 3: a difference, named. 5: the emulation refused (a divergent barrier).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <set>
#include <string>

#include "core/formulas.h"
#include "cuda_case.h"
#include "emulation/emulation.h"

namespace {

Config weighing(double alpha_new, int32_t schedule = kFixed) {
  Config config = config_of(kPaper, schedule);
  config.alpha_new = alpha_new;
  config.s_init = 4;
  return config;
}

// Half of all finite exponents: with fewer, fp64 sums would be exact in any order.
constexpr uint32_t kRange = 2;

// Whole and broken tiles, aligned and not; tables of 16 bits have a geometry of their own.
void make(Twin& k, bool narrow) {
  k.add(narrow ? kBFloat16 : kFloat32, 8200, 1);
  k.add(kBFloat16, 0, 0);
  k.add(kFloat16, 4096, 8);
  k.add(kBFloat16, 4096, 0);
  k.add(narrow ? kFloat16 : kFloat32, 4096, 0);
  k.add(kFloat16, 33, 3);
}
constexpr size_t kWideTensor = 3, kLastTensor = 5;

void make_empty(Twin& k, bool) { k.add(kFloat32, 0, 0); }

// More tiles than lanes of the final sum.
void make_many(Twin& k, bool narrow) {
  for (int32_t i = 0; i < 300; ++i)
    k.add(narrow ? 1 + i % 2 : i % 3, i % 7 ? 5 * i % 90 : 4096 + i % 2, i % 16);
}

void begin(Twin& k, const Config& config, bool defer = false) {
  k.start(config, defer);
  k.fill(kRange);
  k.set_anchor();
  k.fill(kRange);
}

// Changes whose fp64 sum depends on the order: a 1 that absorbs the other entries when it meets
// them one by one, and not when they have been added up before. Sums of fp16 are always exact.
void fill_absorbing(Twin& k) {
  for (size_t i = 0; i < k.host.counts.size(); ++i) {
    const int32_t dtype = k.host.dtypes[i];
    for (int64_t entry = 0; entry < k.host.counts[i]; ++entry) {
      const uint32_t tiny = 0x26800000u - static_cast<uint32_t>(draw() % (1u << 25));  // 2^-50..-54
      k.host.put(i, entry, dtype == kFloat32 ? tiny : dtype == kBFloat16 ? tiny >> 16 : 0);
    }
  }
  if (k.host.counts[0])
    k.host.put(0, static_cast<int64_t>(draw()) & 4095,
               k.host.dtypes[0] == kBFloat16 ? 0x3f80u : 0x3f800000u);
  k.copy_live();
  k.clear_anchor();
}

// ---- the cases ---------------------------------------------------------------------------------

void observes(Twin& k) {
  begin(k, config_of(kPaper, kAdaptive));
  for (int32_t step = 0; step < 6; ++step) {
    const double wide[] = {1.0, kNan, 3.0, 2.5, 0.25, 9.0};
    const float narrow = static_cast<float>(wide[step]);
    const uint32_t stored[] = {Float32::store(narrow), BFloat16::store(narrow),
                               Float16::store(narrow)};
    const int32_t dtype = step % 4;
    k.observe(dtype == 3 ? static_cast<const void*>(&wide[step]) : &stored[dtype], dtype);
  }
}

void merges(Twin& k) {
  begin(k, weighing(0.3));
  for (int i = 0; i < 2; ++i) {
    k.open();
    k.fill(kRange);
    k.close();
    k.fill(kRange);
  }
}

void ordered(Twin& k) {
  k.start(weighing(0.5));
  for (int i = 0; i < 3; ++i) {
    fill_absorbing(k);
    k.open();
    k.close();
  }
}

void unit(Twin& k) {
  begin(k, weighing(1.0));
  k.open();
  k.fill(kRange);
  k.close();
}

void reject_open(Twin& k) {
  begin(k, weighing(0.5));
  for (const int64_t entry : {0, 700, 1100, 4096, 8199}) k.spoil(0, entry);
  k.spoil(kWideTensor, 2049);
  k.spoil(kLastTensor, -1);
  k.open();
  k.close();
}

void reject_close(Twin& k) {
  begin(k, weighing(0.5));
  k.open();
  k.fill(kRange);
  k.spoil(0, 8199);
  k.spoil(kWideTensor, 0);
  k.close();
  k.repair();
}

// A half that the state's owner settles: `bad` entries come from this table or from another.
void deferred(Twin& k) {
  for (const int bad : {0, 1, 2}) {
    begin(k, weighing(0.5), true);
    for (const int half : {1, 2}) {
      if (bad == half) k.spoil(kLastTensor, 0);
      half == 1 ? k.open() : k.close();
      const State& s = k.device.block.state;
      const double rows[] = {s.partial_l1, s.partial_bad, 1.5,
                             0.0,          0.25,          bad && half == 2 ? 3e9 : 0};
      k.advance(rows, 3);
      k.repair();
      k.fill(kRange);
    }
  }
}

void monitors(Twin& k) {
  for (const bool bad : {false, true}) {
    begin(k, weighing(kNan, kMonitor));
    if (bad) k.spoil(0, 8199);
    k.open();
    k.repair();
    k.close();
  }
}

// The ring of eight records wraps around, too.
void repeated(Twin& k) {
  k.start(weighing(0.5));
  for (int i = 0; i < 5; ++i) {
    i % 2 ? k.fill(kRange) : fill_absorbing(k);
    k.open();
    k.fill(kRange);
    k.close();
  }
  k.repair();
}

struct Played {
  const char* name;
  void (*make)(Twin&, bool);
  void (*play)(Twin&);
};
constexpr Played kCases[] = {
    {"observe", make, observes},        {"merges", make, merges},
    {"ordered", make, ordered},         {"unit", make, unit},
    {"reject_open", make, reject_open}, {"reject_close", make, reject_close},
    {"deferred", make, deferred},       {"monitor", make, monitors},
    {"empty", make_empty, repeated},    {"many", make_many, repeated},
};

int run(const std::set<std::string>& wanted) {
  int done = 0;
  for (const Played& each : kCases) {
    if (!wanted.empty() && !wanted.count(each.name)) continue;
    for (const bool narrow : {false, true}) {
      case_name = std::string(each.name) + (narrow ? " (16 bits)" : "");
      Twin k;
      each.make(k, narrow);
      k.bind();
      each.play(k);
      ++done;
    }
  }
  std::printf("%d cases are equal\n", done);
  return done ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) emulation::settings.seed = std::strtoull(argv[1], nullptr, 10);
  try {
    return run(std::set<std::string>(argv + std::min(argc, 2), argv + argc));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_check: %s: %s\n", case_name.c_str(), error.what());
    return 5;
  }
}
