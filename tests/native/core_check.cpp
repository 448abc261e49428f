// Drives csrc/core and csrc/cpu under the sanitizers, without Python: every op, odd sizes, all
// formats, rejected halves, every policy and schedule, and values at the ends of their ranges.
//
//   core_check           prints what it did, exits 0
//   core_check FAULT     plants a fault that the sanitizers must end: oob-read, oob-write, stale,
//                        misaligned, int-overflow, float-cast, shift
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/formulas.h"
#include "core_case.h"
#include "cpu/isa.h"
#include "cpu/triad.h"

namespace {

// ---- the ops
// -------------------------------------------------------------------------------------

int merges_done = 0, rejects_done = 0, steps_done = 0;

void one_step(Case& k) {
  static const double losses[] = {kInf, -kInf, kNan,   1e308, -1e308, 0.0,  -0.0, 5e-324,
                                  0.5,  1.0,   2.0001, 3.0,   0.7,    1e-9, 70.0, 0.4};
  const double value = pick(losses);
  const int32_t dtype = static_cast<int32_t>(draw() % 4);
  const Bytes loss = bytes(dtype == 3 ? 8 : item_size(dtype));
  const float narrow = static_cast<float>(std::fabs(value) > 1e38 ? kInf : value);
  const uint32_t stored = dtype == kFloat32    ? Float32::store(narrow)
                          : dtype == kBFloat16 ? BFloat16::store(narrow)
                                               : Float16::store(narrow);
  std::memcpy(loss.get(), &stored, dtype == kFloat32 ? 4 : 2);
  if (dtype == 3) std::memcpy(loss.get(), &value, 8);
  observe(k.block, reinterpret_cast<uint64_t>(loss.get()), dtype);
  ++steps_done;
}

void one_merge(Case& k) {
  State& s = k.block.state;
  const bool changes = changes_live(k.block.config);
  k.fill(4);
  if (draw() % 4 == 0) k.put(0, k.counts[0] - 1, k.dtypes[0] == kFloat32 ? 0x7fc00001u : 0x7f81u);
  open(k.table);
  const bool undone = s.reject != 0;
  require(!undone || !changes || k.live_is(k.anchor.get()), "a rejected open restores the anchor");
  require(!changes || k.live_is(k.mid.get()), "mid is what live is");
  k.fill(draw() % 3 ? 4 : 1);
  close(k.table);
  require(!changes || s.reject == 0 || k.live_is(k.mid.get()), "a rejected close restores mid");
  require(undone || k.live_is(k.anchor.get()), "the anchor is what live is");
  repair(k.table);
  if (undone) live_from_arena(k.table, k.anchor.get());
  merges_done += 1;
  rejects_done += undone || s.reject;
}

void one_advance(Case& k) {
  static const double changes[] = {0.0, 5e-324, 1.0, 1.5, 1e308, kInf, kNan};
  static const double counts[] = {0, 0, 0, 0, 0, 1, 3e9, 1e300, kInf, kNan, -1};
  double rows[8];
  for (int i = 0; i < 4; ++i) rows[2 * i] = pick(changes), rows[2 * i + 1] = pick(counts);
  advance(k.block, rows, draw() % 5);
  advance(k.block, rows, 1);
}

void run_controller(Case& k, int32_t policy, int32_t schedule) {
  k.start(config_of(policy, schedule));
  if (draw() % 4 == 0) k.block.state.S = k.block.config.s_max;
  for (int step = 0; step < 120; ++step) {
    one_step(k);
    const int32_t code = k.block.state.code;
    if (is_merge(code) || code == kMeasure || draw() % 16 == 0)
      draw() % 8 ? one_advance(k) : one_merge(k);
    check_state(k.block.state, k.block.config);
  }
}

void run_sizes(int32_t dtype) {
  static const int64_t sizes[] = {1, 2, 3, 31, 33, 1025, 4095, 4096, 4097, 8191, 70001};
  for (const int64_t size : sizes) {
    Case k;
    k.add(dtype, size, size % 16);
    k.add(dtype, 0, 0);
    k.add((dtype + 1) % 3, 7, 5);
    k.bind();
    k.start(config_of(kPaper, kFixed));
    for (int i = 0; i < 3; ++i) one_merge(k);
  }
}

int run_all() {
  for (const std::string& name : isa_available()) {
    set_isa(name);
    for (int32_t dtype = 0; dtype < 3; ++dtype) run_sizes(dtype);
  }
  Case k;
  for (int32_t i = 0; i < 9; ++i) k.add(i % 3, 11 * i + 1, i);
  k.bind();
  for (int32_t i = 0; i < 40; ++i)
    for (int32_t schedule = kAdaptive; schedule <= kSingle; ++schedule)
      run_controller(k, i % 2, schedule);
  std::vector<float> a(5001), b(5001, 1.0f), c(5001, 2.0f);
  for (const bool nontemporal : {false, true})
    triad(a.data(), b.data(), c.data(), 5001, nontemporal);
  require(a[5000] == 7.0f, "triad");
  const int64_t huge = int64_t{1} << 40;
  const Tile last = tile_at(1 << 20, huge + 1, 256, kFloat32, tile_count(huge + 1) - 1);
  require(last.count == 1 && last.offset == 256 + 4 * huge, "the last tile of 2^40 + 1 entries");
  std::printf("steps %d merges %d rejects %d\n", steps_done, merges_done, rejects_done);
  return 0;
}

int plant(const std::string& fault) {
  Case k;
  k.add(kBFloat16, 100, 1);
  k.bind();
  k.start(config_of(kPaper, kFixed));
  k.block.config.alpha_new = 0.5;
  if (fault == "oob-read") k.table.tiles[0].count += 1;
  if (fault == "oob-write") k.table.tiles[0].offset += 16;
  if (fault == "stale") k.live[0].reset();
  if (fault == "misaligned") k.table.tiles[0].address -= 1;
  if (fault == "int-overflow") k.block.state.t = std::numeric_limits<int32_t>::max();
  if (fault == "int-overflow") one_step(k);
  if (fault == "float-cast") k.block.state.S = static_cast<int32_t>(pick({kNan, kInf, 1e300}));
  if (fault == "shift") k.block.state.S = 1 << (32 + static_cast<int32_t>(draw() % 8));
  open(k.table);
  close(k.table);
  std::printf("survived %d\n", k.block.state.S);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return argc > 1 ? plant(argv[1]) : run_all(); }
