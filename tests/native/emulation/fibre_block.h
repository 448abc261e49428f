// A block of fibres between two switches: who waits for what, who may go on, and shared memory.
#pragma once

#include <setjmp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation.h"

namespace emulation {

enum class Waits { kNot, kBarrier, kExchange, kEnded };

struct Fibre {
  void* stack = nullptr;  // until it begins
  jmp_buf place;          // where it goes on
  unsigned thread = 0;
  Waits waits = Waits::kNot;
  Site site{};
  unsigned mask = 0, flip = 0;  // of the exchange that it waits for
  uint64_t value = 0;           // what it gives, then what it gets
};

// An array of shared memory. It ends where its memory ends, so that the address sanitizer sees an
// index past it, and it is aligned no better than its type asks for.
class Array {
 public:
  Array(const void* type, int64_t tag, size_t bytes, size_t alignment)
      : bytes(bytes), type_(type), tag_(tag), memory_(nullptr, &std::free) {
    const size_t shift = alignment < 16 ? alignment : 0;
    void* memory = nullptr;
    if (posix_memalign(&memory, std::max<size_t>(16, alignment), shift + bytes)) std::abort();
    memory_.reset(memory);
    start = static_cast<char*>(memory) + shift;
    std::memset(start, kGarbage, bytes);
  }
  bool is(const void* type, int64_t tag, size_t size) const {
    return type_ == type && tag_ == tag && bytes == size;
  }

  size_t bytes;
  void* start;

 private:
  const void* type_;
  int64_t tag_;
  std::unique_ptr<void, decltype(&std::free)> memory_;
};

struct Block {
  unsigned index = 0;
  std::vector<Fibre> fibres{};
  std::vector<std::vector<unsigned>> warps{};  // threads, in the order in which they run
  std::vector<Array> arrays{};

  // Lets the lanes of one exchange go on when all of them have come to it.
  bool settle_exchange(const std::vector<unsigned>& warp) {
    const auto waiting = std::find_if(
        warp.begin(), warp.end(), [&](unsigned t) { return fibres[t].waits == Waits::kExchange; });
    if (waiting == warp.end()) return false;
    const Fibre& first = fibres[*waiting];
    const Site site = first.site;
    const unsigned mask = first.mask | 1u << first.thread % kWarp;
    std::vector<Fibre*> lanes(kWarp);
    std::vector<uint64_t> values(kWarp);
    for (const unsigned t : warp) {
      Fibre& fibre = fibres[t];
      if (!(mask >> t % kWarp & 1)) continue;
      const bool comes = fibre.waits == Waits::kExchange && fibre.site == site;
      if (!comes || fibre.mask != mask) return false;
      lanes[t % kWarp] = &fibre;
      values[t % kWarp] = fibre.value;
    }
    for (Fibre* lane : lanes) {
      if (!lane) continue;
      const unsigned source = (lane->thread % kWarp) ^ lane->flip;
      if (!lanes[source]) report(*lane, "shuffles with a lane outside of its mask");
      lane->value = values[source];
      lane->waits = Waits::kNot;
    }
    return true;
  }

  // Lets all go on from a barrier; true when all have ended. Throws when some never can go on.
  bool settle_barrier() {
    const Fibre& first = fibres[warps[0][0]];
    for (const Fibre& fibre : fibres) {
      const bool same = fibre.waits == first.waits && fibre.site == first.site;
      if (same && fibre.waits != Waits::kExchange) continue;
      const bool ended = fibre.waits == Waits::kEnded;
      const Fibre& waiting = ended ? first : fibre;
      const Fibre& other = waiting.waits == Waits::kExchange ? missing_at(waiting)
                           : ended                           ? fibre
                                                             : first;
      const std::string name = "thread " + std::to_string(other.thread);
      report(waiting, does(waiting) + ", but " + name + " " + does(other));
    }
    if (first.waits == Waits::kEnded) return true;
    for (Fibre& fibre : fibres) fibre.waits = Waits::kNot;
    return false;
  }

  // The array for one place; null when the block has no room for it.
  void* array(const void* type, int64_t tag, size_t bytes, size_t alignment) {
    size_t used = bytes;
    for (const Array& each : arrays) {
      if (each.is(type, tag, bytes)) return each.start;
      used += each.bytes;
    }
    if (used > kSharedBytes) return nullptr;
    return arrays.emplace_back(type, tag, bytes, alignment).start;
  }

 private:
  // The lane that the others of its warp wait for.
  const Fibre& missing_at(const Fibre& waiting) const {
    const unsigned first = waiting.thread / kWarp * kWarp;
    for (unsigned t = first; t < std::min<size_t>(first + kWarp, fibres.size()); ++t)
      if (fibres[t].waits != waiting.waits || !(fibres[t].site == waiting.site)) return fibres[t];
    return waiting;
  }
  static std::string does(const Fibre& fibre) {
    if (fibre.waits == Waits::kEnded) return "has ended";
    const std::string file = fibre.site.file;
    return (fibre.waits == Waits::kBarrier ? "waits at a barrier, " : "waits at a shuffle, ") +
           file.substr(file.rfind('/') + 1) + ":" + std::to_string(fibre.site.line);
  }
  [[noreturn]] void report(const Fibre& fibre, const std::string& what) const {
    throw std::runtime_error("emulation: block " + std::to_string(index) + ", thread " +
                             std::to_string(fibre.thread) + " " + what);
  }
};

}  // namespace emulation
