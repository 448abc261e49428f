// A table of exactly sized tensors, and configurations at the ends of their ranges.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/engine.h"

using namespace aimmerge;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int32_t kLongest = 1 << 24;  // the largest interval that a configuration may name

inline uint64_t random_state = 1;
inline uint64_t draw() { return mix_bits(random_state += 0x9E3779B97F4A7C15ull); }
template <class T, size_t n>
T pick(const T (&values)[n]) {
  return values[draw() % n];
}

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("core_check: not so: %s\n", what);
  std::exit(3);
}

// ---- memory of exactly the size asked for, so that the byte after it is poisoned
// -----------------

using Bytes = std::unique_ptr<uint8_t, decltype(&std::free)>;

inline Bytes bytes(size_t size) {
  void* memory = nullptr;
  require(posix_memalign(&memory, 64, size ? size : 1) == 0, "memory");
  std::memset(memory, 0, size);
  return Bytes(static_cast<uint8_t*>(memory), &std::free);
}

struct Case {
  std::vector<Bytes> live;
  std::vector<uint64_t> addresses;
  std::vector<int64_t> counts, offsets;
  std::vector<int32_t> dtypes;
  Bytes anchor{nullptr, &std::free}, mid{nullptr, &std::free};
  std::vector<Record> ring{8};
  StateBlock block{};
  Table table;
  int64_t arena_size = 0;

  void add(int32_t dtype, int64_t count, int64_t shift) {
    const int64_t item = item_size(dtype);
    live.push_back(bytes((shift + count) * item));
    addresses.push_back(reinterpret_cast<uint64_t>(live.back().get()) + shift * item);
    counts.push_back(count);
    dtypes.push_back(dtype);
    offsets.push_back((arena_size + 255) / 256 * 256);
    arena_size = offsets.back() + count * item;
  }
  void bind() {
    anchor = bytes(arena_size);
    mid = bytes(arena_size);
    table.anchor = anchor.get();
    table.mid = mid.get();
    table.block = &block;
    table.tiles = plan_tiles(addresses, counts, offsets, dtypes);
    table.partials.assign(table.tiles.size(), 0.0);
  }
  void start(const Config& config) {
    const int64_t posted = block.state.sequence;
    block.config = config;
    block.state = State{};
    block.state.sequence = posted;
    block.state.ring = reinterpret_cast<uint64_t>(ring.data());
    block.state.ring_size = static_cast<int32_t>(ring.size());
    block.state.S = config.schedule == kRandom ? random_interval(config, 0, 0) : config.s_init;
    block.state.memory_steps = config.outer_init;
  }
  void put(size_t tensor, int64_t entry, uint32_t bits) {
    const int64_t item = item_size(dtypes[tensor]);
    std::memcpy(reinterpret_cast<void*>(addresses[tensor] + entry * item), &bits, item);
  }
  void fill(uint32_t range) {  // patterns below `range` of the largest finite exponent
    for (size_t i = 0; i < counts.size(); ++i)
      for (int64_t k = 0; k < counts[i]; ++k) {
        const uint32_t infinity = dtypes[i] == kFloat32    ? 0x7f800000u
                                  : dtypes[i] == kBFloat16 ? 0x7f80u
                                                           : 0x7c00u;
        put(i, k, static_cast<uint32_t>(draw() % (infinity / range)));
      }
  }
  bool live_is(const uint8_t* arena) const {
    for (size_t i = 0; i < counts.size(); ++i)
      if (std::memcmp(reinterpret_cast<void*>(addresses[i]), arena + offsets[i],
                      counts[i] * item_size(dtypes[i])))
        return false;
    return true;
  }
};

// ---- configurations
// ------------------------------------------------------------------------------

inline Config config_of(int32_t policy, int32_t schedule) {
  Config c{};
  c.gamma_forget = pick({1e-300, 0.5, 2.0, 1e308});
  c.gamma_plus_small = c.gamma_plus_large = pick({1.0, 1.5, 2.0, 1e308});
  c.gamma_minus_small = c.gamma_minus_large = pick({1.0, 1.5, 2.0, 1e308});
  c.p_new_cold = pick({0.0, 0.5, 1.0});
  c.alpha_floor = pick({0.0, 0.0, 0.25, 0.5});
  c.alpha_new = pick({kNan, kNan, 0.0, 0.3, 1.0});
  c.seed = draw() >> 1;
  c.policy = policy;
  c.schedule = schedule;
  c.s_min = pick({1, 2, 5});
  c.s_init = c.s_min + pick({0, 1, 8});
  c.s_max = pick({c.s_init, 64, kLongest});
  if (c.s_max < c.s_init) c.s_max = c.s_init;
  c.s_hi = pick({c.s_min, c.s_min + 7, kLongest});
  c.window = pick({1, 3, kMaxWindow});
  c.f_max = pick({1, 3, kLongest});
  c.s_switch = pick({2, 64, kLongest});
  c.use_learning_signal = c.use_forgetting_signal = 1;
  if (policy == kPaper && schedule == kAdaptive && draw() % 3 == 0)
    (draw() % 2 ? c.use_learning_signal : c.use_forgetting_signal) = 0;
  c.outer_init = pick({1, 8, kLongest});
  c.cold_start = pick({0, 3, 1 << 30});
  c.s_weight = pick({1, 70, kLongest});
  c.adaptive = draw() % 4 != 0;
  if (schedule == kAt)
    for (c.merge_at_count = 0; c.merge_at_count < kMaxMergeAt; ++c.merge_at_count)
      c.merge_at[c.merge_at_count] = 3 * c.merge_at_count + 2;
  return c;
}

inline void check_state(const State& s, const Config& c) {
  require(s.S >= 1 && s.S <= kLongest, "S is in range");
  require(s.t >= 0 && s.F >= 0 && s.memory_steps >= (c.policy == kReleased), "counters are sane");
  require(s.alpha1 >= 0.0 && s.alpha1 <= 1.0 && s.alpha2 >= 0.0 && s.alpha2 <= 1.0, "alpha");
  require(s.history_count >= 0 && s.history_count <= kMaxWindow + 1, "history fits");
}
