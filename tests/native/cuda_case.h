// The same tensors twice: one set for the CPU kernels, one for the CUDA kernels on the emulation.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core_case.h"
#include "cuda/engine.h"

inline std::string case_name;

[[noreturn]] inline void differ(const std::string& after, const std::string& what) {
  std::fprintf(stderr, "cuda_check: %s: %s differs after %s\n", case_name.c_str(), what.c_str(),
               after.c_str());
  std::exit(3);
}

struct Twin {
  Case host, device;
  Bytes tiles{nullptr, &std::free}, scratch{nullptr, &std::free};
  cuda::Table table{};
  cuda::Place place{0, 0};

  void add(int32_t dtype, int64_t count, int64_t shift) {
    host.add(dtype, count, shift);
    device.add(dtype, count, shift);
  }

  // Memory of exactly the size that the kernels may touch.
  void bind() {
    host.bind();
    device.bind();
    const std::vector<Tile>& planned = device.table.tiles;
    const size_t n = planned.size();
    tiles = bytes(n * sizeof(Tile));
    if (n) std::memcpy(tiles.get(), planned.data(), n * sizeof(Tile));
    scratch = bytes(16 + 8 * (n ? n : 1));
    table = {reinterpret_cast<const Tile*>(tiles.get()),
             static_cast<int64_t>(n),
             device.table.anchor,
             device.table.mid,
             &device.block,
             reinterpret_cast<cuda::Scratch*>(scratch.get()),
             n > 0};
    for (const Tile& tile : planned) table.narrow &= (tile.flags & kDtypeMask) != kFloat32;
  }

  void start(const Config& config, bool defer = false) {
    host.start(config);
    device.start(config);
    host.block.state.defer = device.block.state.defer = defer;
  }

  void fill(uint32_t range) {
    host.fill(range);
    copy_live();
  }
  // The last entry of the tensor when `entry` is -1.
  void spoil(size_t tensor, int64_t entry) {
    const uint32_t infinities[] = {0x7f800000u, 0x7f80u, 0x7c00u};
    if (entry < 0) entry += host.counts[tensor];
    host.put(tensor, entry, infinities[host.dtypes[tensor]]);
    copy_live();
  }
  void copy_live() {
    for (size_t i = 0; i < host.counts.size(); ++i)
      std::memcpy(at(device.addresses[i]), at(host.addresses[i]), live_bytes(i));
  }
  void set_anchor() {
    arena_from_live(host.table, host.anchor.get());
    arena_from_live(device.table, device.anchor.get());
  }

  void clear_anchor() {
    for (Case* each : {&host, &device})
      std::memset(each->anchor.get(), 0, static_cast<size_t>(each->arena_size));
  }

  // Every op on both, and then every byte that it may touch.
  void observe(const void* loss, int32_t dtype) {
    const uint64_t address = reinterpret_cast<uint64_t>(loss);
    aimmerge::observe(host.block, address, dtype);
    cuda::observe(&device.block, address, dtype, place);
    compare("observe");
  }
  void open() {
    aimmerge::open(host.table);
    cuda::open(table, place);
    compare("open");
  }
  void close() {
    aimmerge::close(host.table);
    cuda::close(table, place);
    compare("close");
  }
  void advance(const double* rows, int64_t count) {
    aimmerge::advance(host.block, rows, count);
    cuda::advance(&device.block, rows, count, place);
    compare("advance");
  }
  void repair() {
    aimmerge::repair(host.table);
    cuda::repair(table, place);
    compare("repair");
  }

 private:
  static void* at(uint64_t address) { return reinterpret_cast<void*>(address); }
  size_t live_bytes(size_t i) const {
    return static_cast<size_t>(host.counts[i] * item_size(host.dtypes[i]));
  }

  void compare(const char* after) const {
    for (size_t i = 0; i < host.counts.size(); ++i)
      if (std::memcmp(at(host.addresses[i]), at(device.addresses[i]), live_bytes(i)))
        differ(after, "live tensor " + std::to_string(i));
    const size_t arena = static_cast<size_t>(host.arena_size);
    if (std::memcmp(host.anchor.get(), device.anchor.get(), arena)) differ(after, "anchor");
    if (std::memcmp(host.mid.get(), device.mid.get(), arena)) differ(after, "mid");
    StateBlock wanted = host.block;
    wanted.state.ring = device.block.state.ring;
    if (std::memcmp(&wanted.config, &device.block.config, sizeof(Config))) differ(after, "config");
    if (std::memcmp(&wanted.state, &device.block.state, sizeof(State))) differ(after, "state");
    if (std::memcmp(host.ring.data(), device.ring.data(), host.ring.size() * sizeof(Record)))
      differ(after, "a record");
    if (table.scratch->ticket || table.scratch->unused) differ(after, "the ticket");
    if (table.scratch->bad) differ(after, "the scratch's bad count");
  }
};
