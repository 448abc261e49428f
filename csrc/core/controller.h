// The controller: configuration, state and the transitions of one step and one merge.
//
// Plain data and plain arithmetic, compiled for the host and for the device. What each formula is
// and where it comes from: arXiv 2509.17348, Eq. 1-8 (policy paper) and the statements of the
// authors' code (policy released). Every scalar is fp64 or int32; nothing here may be contracted
// or reordered, because int(S / 1.5) turns one ulp into another trajectory.
#pragma once

#include <cstdint>

#include "core/portable.h"

namespace aimmerge {

constexpr int kMaxWindow = 32;
constexpr int kMaxMergeAt = 64;

enum Policy : int32_t { kPaper, kReleased };
enum Schedule : int32_t {
  kAdaptive,
  kMonitor,
  kFixed,
  kRapidPlus,
  kSlowPlus,
  kRandom,
  kAt,
  kSingle,
};

// Order shared with CODES in events.py.
enum Code : int32_t {
  kCollect,
  kThreshold,
  kQuiet,
  kActivate,
  kMergeEarly,
  kMergeDue,
  kMergeDeferred,
  kMergeForced,
  kMergeFinal,
  kMeasure,
  kOpen = 16,
  kClose = 17,
};

enum Phase : int32_t { kIdle, kMergeOpen };

struct Config {
  double gamma_forget;
  double gamma_plus_small, gamma_minus_small, gamma_plus_large, gamma_minus_large;
  double p_new_cold, alpha_floor;
  double alpha_new;  // NaN: chosen by the policy or the schedule
  uint64_t seed;
  int32_t policy, schedule;
  int32_t s_init, s_min, s_max, s_hi;
  int32_t window, f_max, s_switch;
  int32_t use_learning_signal, use_forgetting_signal;
  int32_t outer_init, cold_start, s_weight, adaptive;
  int32_t merge_at_count;
  int32_t merge_at[kMaxMergeAt];
};

struct State {
  double sum, threshold, loss;       // threshold is meaningful only with has_threshold
  double l1, lambda, change_factor;  // of the last merge; change_factor NaN: none
  double alpha1, alpha2;
  double partial_l1, partial_bad;  // of this table, for a deferred half: a row of advance's input
  double history[kMaxWindow + 1];  // the last window + 1 learning signals, oldest first
  int64_t sequence;                // records posted so far
  uint64_t ring;                   // address of the record ring
  int32_t ring_size;
  int32_t task;        // number of the task, for the random schedule
  int32_t S, t, F, g;  // interval, steps since the merge, activations, steps of the task
  int32_t samples, has_threshold, history_count;
  int32_t merges;        // b: merges whose learning signal was recorded
  int32_t memory_steps;  // M of the coming merge (released)
  int32_t code;          // of the last step
  int32_t phase;
  int32_t reject;  // non-finite entries of the last half that was undone, 0: none
  int32_t elapsed, cold, L_up, L_down, case_;  // of the last merge
  int32_t defer;  // several tables: open and close leave the transition to advance
};

struct StateBlock {  // the bytes of the Python-side state tensor
  Config config;
  State state;
};

// 64 bytes in the ring. The sequence number is written last and counts from 1; 0 is "empty".
struct Record {
  int64_t sequence;
  double loss;       // open: alpha1
  double threshold;  // open: alpha2; NaN: none yet
  double l1;
  int32_t t, S, F;
  int32_t code;  // open: kOpen | kind << 8 | case << 12 | cold << 15 | L_up << 16 | L_down << 24
  int32_t merge;
  int32_t memory_steps;  // of the merge that a step decides; open: of the next merge (released)
  int32_t next_S;
  int32_t reject;
};
static_assert(sizeof(Record) == 64);
static_assert(sizeof(Config) % 8 == 0 && sizeof(State) % 8 == 0);

// ---- helpers -------------------------------------------------------------------------------

AIM_FN bool is_finite(double x) { return x - x == 0.0; }
AIM_FN int32_t max_i(int32_t a, int32_t b) { return a > b ? a : b; }
AIM_FN int32_t min_i(int32_t a, int32_t b) { return a < b ? a : b; }

// Truncation after clamping in fp64: (int)NaN and (int)1e300 differ between hosts and devices.
AIM_FN int32_t truncate_within(double x, int32_t low, int32_t high) {
  if (!(x > low)) return low;
  return x >= high ? high : static_cast<int32_t>(x);
}

AIM_FN int32_t saturate(int64_t x) { return x > 0x7fffffff ? 0x7fffffff : static_cast<int32_t>(x); }

AIM_FN uint64_t mix_bits(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

AIM_FN int32_t random_interval(const Config& c, int32_t task, int32_t merges) {
  const uint64_t key = c.seed + static_cast<uint64_t>(task) * 0xD1B54A32D192ED03ull +
                       (static_cast<uint64_t>(merges) + 1) * 0x9E3779B97F4A7C15ull;
  const uint64_t span = static_cast<uint64_t>(c.s_hi - c.s_min) + 1;
  return c.s_min + static_cast<int32_t>(mix_bits(key) % span);
}

AIM_FN bool is_merge(int32_t code) { return code >= kMergeEarly && code <= kMergeFinal; }
AIM_FN bool is_ablated(const Config& c) {
  return c.policy == kPaper && !(c.use_learning_signal && c.use_forgetting_signal);
}

// Last step of the interval whose loss is a sample of the threshold rather than judged.
AIM_FN int32_t last_sample(const Config& c, int32_t S) {
  const int32_t two_thirds = 2 * S / 3;
  return c.policy == kReleased ? two_thirds + 1 : max_i(1, two_thirds);
}

AIM_FN int32_t memory_steps_now(const Config& c, const State& s) {
  if (c.schedule == kMonitor) return 0;
  return c.policy == kReleased ? s.memory_steps : max_i(1, s.t / 2);
}

// The ring may lie in host memory that a device writes; the kernels bring the release that fits.
#if defined(__CUDACC__)
__device__ inline void publish_on_device(Record* slot, int64_t sequence);
#endif
AIM_FN void publish(Record* slot, int64_t sequence) {
#if defined(__CUDA_ARCH__)
  publish_on_device(slot, sequence);
#else
  __atomic_store_n(&slot->sequence, sequence, __ATOMIC_RELEASE);
#endif
}

AIM_FN void post(State& s, const Record& payload) {
  if (s.ring_size == 0) return;
  Record* slot = reinterpret_cast<Record*>(s.ring) + s.sequence % s.ring_size;
  slot->loss = payload.loss;
  slot->threshold = payload.threshold;
  slot->l1 = payload.l1;
  slot->t = payload.t;
  slot->S = payload.S;
  slot->F = payload.F;
  slot->code = payload.code;
  slot->merge = payload.merge;
  slot->memory_steps = payload.memory_steps;
  slot->next_S = payload.next_S;
  slot->reject = payload.reject;
  publish(slot, ++s.sequence);
}

AIM_FN double threshold_or_nan(const State& s) {
  return s.has_threshold ? s.threshold : __builtin_nan("");
}

// ---- one step ------------------------------------------------------------------------------

// Collect or judge one history loss. A non-finite loss advances t, is no sample, never activates.
AIM_FN int32_t judge(const Config& c, State& s, double loss) {
  if (c.policy == kPaper && !c.use_forgetting_signal) return kQuiet;
  const bool finite = is_finite(loss);
  const int32_t n = last_sample(c, s.S);
  if (s.t <= n) {
    if (finite) {
      s.sum += loss;
      s.samples += 1;
    }
    if (s.t < n || s.samples == 0) return kCollect;
    s.threshold = c.gamma_forget * (s.sum / s.samples);
    s.has_threshold = 1;
    return kThreshold;
  }
  if (!finite || !s.has_threshold) return kQuiet;
  // "exceeds" in the paper; the released code compares with >=
  const bool active = c.policy == kReleased ? loss >= s.threshold : loss > s.threshold;
  if (!active) return kQuiet;
  s.F += 1;
  return kActivate;
}

AIM_FN int32_t merge_kind(const State& s) {
  return s.t < s.S ? kMergeEarly : s.t == s.S ? kMergeDue : kMergeDeferred;
}

AIM_FN int32_t decide_adaptive(const Config& c, State& s, int32_t code) {
  if (c.policy == kReleased) {
    // "else if": a quiet judged step at 2S counts as a forced activation
    const bool forced = code != kActivate && s.t > last_sample(c, s.S) && s.t >= 2 * s.S;
    if (forced) s.F += 1;
    if (s.F >= c.f_max || (s.t >= s.S && s.F >= 1)) return forced ? kMergeForced : merge_kind(s);
    return code;
  }
  if (!c.use_forgetting_signal) return s.t >= s.S ? kMergeDue : code;
  if (!c.use_learning_signal) return s.F >= 1 ? merge_kind(s) : code;
  if (s.F >= c.f_max && s.t < s.S) return kMergeEarly;
  if (s.t >= s.S && s.F >= 1) return merge_kind(s);
  return s.t >= 2 * s.S ? kMergeForced : code;
}

AIM_FN int32_t decide(const Config& c, State& s, int32_t code) {
  switch (c.schedule) {
    case kAdaptive:
      return decide_adaptive(c, s, code);
    case kMonitor:
      return s.t >= s.S ? kMeasure : code;
    case kSingle:
      return code;
    case kAt:
      for (int32_t i = 0; i < c.merge_at_count; ++i)
        if (c.merge_at[i] == s.g) return kMergeDue;
      return code;
    default:
      return s.t >= s.S ? kMergeDue : code;
  }
}

// One optimiser update happened and its history loss is known.
AIM_FN void observe_step(const Config& c, State& s, double loss) {
  s.t += 1;
  s.g += 1;
  s.loss = loss;
  s.code = decide(c, s, judge(c, s, loss));
  const bool acts = is_merge(s.code) || s.code == kMeasure;
  post(s, Record{0, loss, threshold_or_nan(s), 0.0, s.t, s.S, s.F, s.code, s.merges,
                 acts ? memory_steps_now(c, s) : 0, s.S, 0});
}

// ---- one merge -----------------------------------------------------------------------------

AIM_FN void set_alpha(State& s, double alpha1, double alpha2) {
  s.alpha1 = alpha1;
  s.alpha2 = alpha2;
}

AIM_FN void remember(const Config& c, State& s, double lambda) {
  const int32_t room = c.policy == kReleased ? 1 : c.window + 1;
  if (s.history_count == room) {
    for (int32_t i = 1; i < room; ++i) s.history[i - 1] = s.history[i];
    s.history_count -= 1;
  }
  s.history[s.history_count++] = lambda;
}

AIM_FN void count_trend(State& s) {
  for (int32_t i = 1; i < s.history_count; ++i) {
    s.L_up += s.history[i] > s.history[i - 1];
    s.L_down += s.history[i] < s.history[i - 1];
  }
}

// Eq. 8, with the resolutions for 0/0 and for the cold start.
AIM_FN void weigh_paper(const Config& c, State& s) {
  const double p_new = s.cold ? c.p_new_cold : static_cast<double>(s.L_up) / c.window;
  const double p_past = static_cast<double>(s.F) / c.f_max;
  if (p_new == 0.0 && p_past == 0.0) return set_alpha(s, 0.5, 0.5);
  set_alpha(s, p_new / (p_new + p_past), p_past / (p_new + p_past));
  if (c.alpha_floor > 0.0) {
    const double high = 1.0 - c.alpha_floor;
    const double raised = s.alpha1 < c.alpha_floor ? c.alpha_floor : s.alpha1;
    const double clamped = raised > high ? high : raised;
    set_alpha(s, clamped, 1.0 - clamped);
  }
}

AIM_FN void weigh_released(const Config& c, State& s) {
  const bool leans_to_past = s.F > 1;
  if (s.S <= c.s_weight)
    leans_to_past ? set_alpha(s, 0.5, 0.5) : set_alpha(s, 0.6, 0.4);
  else
    leans_to_past ? set_alpha(s, 0.4, 0.6) : set_alpha(s, 0.5, 0.5);
}

AIM_FN void weigh(const Config& c, State& s) {
  if (c.schedule == kMonitor) return set_alpha(s, 1.0, 0.0);
  if (c.alpha_new == c.alpha_new) return set_alpha(s, c.alpha_new, 1.0 - c.alpha_new);
  if (c.schedule != kAdaptive || is_ablated(c)) return set_alpha(s, 0.5, 0.5);
  c.policy == kReleased ? weigh_released(c, s) : weigh_paper(c, s);
}

// Eq. 4.
AIM_FN int32_t next_interval_paper(const Config& c, const State& s) {
  if (s.cold || !c.use_learning_signal || s.case_ == 2) return s.S;
  const bool large = s.S > c.s_switch;
  if (s.case_ == 1) {
    const double gamma = large ? c.gamma_minus_large : c.gamma_minus_small;
    return truncate_within(s.S / gamma, c.s_min, s.S);
  }
  const double gamma = large ? c.gamma_plus_large : c.gamma_plus_small;
  return truncate_within(s.S * gamma, 0, c.s_max);
}

AIM_FN int32_t next_interval_released(const Config& c, State& s, double previous) {
  if (s.cold || !c.adaptive) return s.S;
  const double lambda = s.lambda;
  const bool both_zero = lambda == 0.0 && previous == 0.0;
  if (lambda >= previous) {
    const double c_up = both_zero ? 1.0 : lambda / previous;
    s.change_factor = c_up == c_up ? c_up : 1.0;
    const int32_t S = truncate_within(s.S / s.change_factor, c.s_min, max_i(s.S, c.s_min));
    return S >= c.s_switch ? S / 2 : S;
  }
  const double c_down = previous / lambda + (s.S < c.s_switch ? 1.0 : 0.5);
  s.change_factor = c_down == c_down ? c_down : 1.0;
  return truncate_within(s.S * s.change_factor, 0, c.s_max);
}

AIM_FN int32_t next_interval(const Config& c, State& s, double previous) {
  const bool first = s.merges == 1;
  switch (c.schedule) {
    case kAdaptive:
      return c.policy == kReleased ? next_interval_released(c, s, previous)
                                   : next_interval_paper(c, s);
    case kRapidPlus:
      return !first && s.lambda > previous ? max_i(c.s_min, c.s_init / 2) : c.s_init;
    case kSlowPlus:
      return !first && s.lambda < previous ? max_i(c.s_min, c.s_init / 2) : c.s_init;
    case kRandom:
      return random_interval(c, s.task, s.merges);
    default:
      return s.S;
  }
}

// The released code divides by the planned S; where nothing was planned, by the elapsed steps.
AIM_FN double learning_signal(const Config& c, const State& s, double l1, int32_t kind) {
  const bool planned = c.policy == kReleased && kind != kMergeFinal && kind != kMeasure &&
                       c.schedule != kAt && c.schedule != kRandom && c.schedule != kSingle;
  const int32_t steps = planned ? s.S : s.t;
  return steps > 0 ? l1 / steps : 0.0;
}

AIM_FN void restart_interval(State& s) {
  s.t = s.F = s.samples = s.has_threshold = 0;
  s.sum = 0.0;
  s.code = kCollect;
}

AIM_FN void record_merge(const Config& c, State& s, double l1, int32_t kind) {
  const double previous = s.history_count > 0 ? s.history[s.history_count - 1] : 0.0;
  s.merges += 1;
  s.lambda = learning_signal(c, s, l1, kind);
  remember(c, s, s.lambda);
  if (c.policy == kPaper) {
    s.cold = s.merges <= c.window;
    count_trend(s);
    if (!s.cold) s.case_ = s.L_up > s.L_down ? 1 : s.L_up == s.L_down ? 2 : 3;
  } else {
    s.cold = s.merges - 1 <= c.cold_start;
  }
  weigh(c, s);
  s.S = next_interval(c, s, previous);
  if (c.policy == kReleased) {
    const double ratio = static_cast<double>(c.outer_init) / c.s_init;
    s.memory_steps = truncate_within(s.S * ratio, 1, 0x7fffffff);
  }
}

// theta_j was snapshotted; l1 = sum |theta_j - anchor|, bad = non-finite entries of theta_j.
AIM_FN void open_merge(const Config& c, State& s, double l1, int64_t bad) {
  const int32_t S = s.S, F = s.F;
  const int32_t kind = is_merge(s.code) || s.code == kMeasure ? s.code : kMergeFinal;
  s.l1 = l1;
  s.elapsed = s.t;
  s.cold = s.L_up = s.L_down = s.case_ = 0;
  s.change_factor = __builtin_nan("");
  s.reject = saturate(bad);
  if (s.reject)
    set_alpha(s, 1.0, 0.0);
  else
    record_merge(c, s, l1, kind);
  post(s, Record{0, s.alpha1, s.alpha2, l1, s.t, S, F,
                 kOpen | kind << 8 | s.case_ << 12 | s.cold << 15 | s.L_up << 16 | s.L_down << 24,
                 s.merges, c.policy == kReleased ? s.memory_steps : 0, s.S, s.reject});
  restart_interval(s);
  s.phase = kMergeOpen;
}

// The fused values were stored; bad = non-finite ones among them.
AIM_FN void close_merge(State& s, int64_t bad) {
  s.reject = saturate(bad);
  s.phase = kIdle;
  post(s, Record{0, 0.0, __builtin_nan(""), 0.0, 0, s.S, 0, kClose, s.merges, 0, s.S, s.reject});
}

// monitor only looks: it never touches the live parameters.
AIM_FN bool changes_live(const Config& c) { return c.schedule != kMonitor; }

}  // namespace aimmerge
