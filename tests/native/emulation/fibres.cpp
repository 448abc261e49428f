// One fibre per CUDA thread, all on the calling thread: fast, and the same on every run.
//
// A fibre runs until it waits or ends. A block runs until all its threads wait at one barrier; then
// another of the resident blocks goes on, so that tickets are drawn in the middle of other blocks.
// The seed decides the order of blocks, of warps and of lanes.
//
// A context only begins a fibre; after that _setjmp and _longjmp switch, since swapcontext makes a
// system call each time. The checked longjmp of a fortified libc would refuse another stack.
#undef _FORTIFY_SOURCE
#include <sys/mman.h>
#include <ucontext.h>

#include <numeric>
#include <random>

#include "fibre_block.h"

namespace emulation {
namespace {

constexpr size_t kStack = 64 << 10, kGuard = 4 << 10;

// Stacks are kept: a launch would spend more time on mapping them than on running.
class Stacks {
 public:
  void* at(size_t k) {
    while (starts_.size() <= k) {
      void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE))
        throw std::runtime_error("emulation: no memory for the stacks of the CUDA threads");
      starts_.push_back(static_cast<char*>(memory) + kGuard);
    }
    return starts_[k];
  }

 private:
  std::vector<char*> starts_{};
};

std::vector<unsigned> numbers(unsigned first, unsigned count) {
  std::vector<unsigned> all(count);
  std::iota(all.begin(), all.end(), first);
  return all;
}

class Launch {
 public:
  Launch(unsigned blocks, unsigned threads, const std::function<void()>& body)
      : body_(body), blocks_(blocks), threads_(threads), random_(settings.seed) {}

  void run();
  void wait(Waits waits, Site site) {
    current_->waits = waits;
    current_->site = site;
    if (!_setjmp(current_->place)) _longjmp(scheduler_, 1);
  }
  Fibre& current() { return *current_; }
  void* array(const void* type, int64_t tag, size_t bytes, size_t alignment);

 private:
  static void enter();
  void start(Fibre& fibre);
  template <class T>
  void arrange(std::vector<T>& order) {
    if (settings.seed == 1) std::reverse(order.begin(), order.end());
    if (settings.seed > 1) std::shuffle(order.begin(), order.end(), random_);
  }
  void begin(Block& block, unsigned index, size_t slot);
  bool step(Block& block);
  void resume(Block& block, Fibre& fibre);

  const std::function<void()>& body_;
  unsigned blocks_, threads_;
  std::mt19937_64 random_;
  jmp_buf scheduler_;
  ucontext_t start_;
  Block* block_ = nullptr;
  Fibre* current_ = nullptr;
  std::string error_{};
};

thread_local Launch* launch = nullptr;

void Launch::enter() {
  launch->body_();
  launch->wait(Waits::kEnded, {});
}

// On a stack of its own; it comes back by _longjmp.
void Launch::start(Fibre& fibre) {
  getcontext(&start_);
  start_.uc_stack.ss_sp = fibre.stack;
  start_.uc_stack.ss_size = kStack;
  start_.uc_link = nullptr;
  makecontext(&start_, &Launch::enter, 0);
  fibre.stack = nullptr;
  setcontext(&start_);
}

void Launch::begin(Block& block, unsigned index, size_t slot) {
  thread_local Stacks stacks;
  block.index = index;
  block.arrays.clear();
  block.fibres.resize(threads_);
  for (unsigned t = 0; t < threads_; ++t) {
    Fibre& fibre = block.fibres[t];
    fibre.thread = t;
    fibre.waits = Waits::kNot;
    fibre.stack = stacks.at(slot * threads_ + t);
  }
  block.warps.clear();
  for (unsigned t = 0; t < threads_; t += kWarp) {
    block.warps.push_back(numbers(t, std::min(kWarp, threads_ - t)));
    arrange(block.warps.back());
  }
  arrange(block.warps);
}

void Launch::resume(Block& block, Fibre& fibre) {
  block_ = &block;
  current_ = &fibre;
  threadIdx = {fibre.thread, 0, 0};
  blockIdx = {block.index, 0, 0};
  blockDim = {threads_, 1, 1};
  gridDim = {blocks_, 1, 1};
  if (!_setjmp(scheduler_)) fibre.stack ? start(fibre) : _longjmp(fibre.place, 1);
  if (!error_.empty()) throw std::runtime_error("emulation: " + error_);
}

// From one barrier to the next; true when the block has ended.
bool Launch::step(Block& block) {
  for (const std::vector<unsigned>& warp : block.warps) {
    do {
      for (const unsigned t : warp)
        if (block.fibres[t].waits == Waits::kNot) resume(block, block.fibres[t]);
    } while (block.settle_exchange(warp));
  }
  return block.settle_barrier();
}

void Launch::run() {
  std::vector<unsigned> order = numbers(0, blocks_);
  arrange(order);
  std::vector<Block> resident(std::min(blocks_, std::max(1u, settings.resident)));
  size_t next = 0, turn = 0;
  for (size_t slot = 0; slot < resident.size(); ++slot) begin(resident[slot], order[next++], slot);
  std::vector<unsigned> unfinished = numbers(0, static_cast<unsigned>(resident.size()));
  while (!unfinished.empty()) {
    turn = (settings.seed > 1 ? random_() : turn + 1) % unfinished.size();
    const unsigned slot = unfinished[turn];
    if (!step(resident[slot])) continue;
    if (next < order.size())
      begin(resident[slot], order[next++], slot);
    else
      unfinished.erase(unfinished.begin() + static_cast<std::ptrdiff_t>(turn));
  }
}

void* Launch::array(const void* type, int64_t tag, size_t bytes, size_t alignment) {
  void* start = block_->array(type, tag, bytes, alignment);
  if (!start) {  // an exception cannot leave a fibre
    error_ = "block " + std::to_string(block_->index) + " wants more shared memory than it has, " +
             std::to_string(kSharedBytes) + " bytes";
    wait(Waits::kEnded, {});
  }
  return start;
}

}  // namespace

void run(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  if (launch) throw std::runtime_error("emulation: a kernel launches a kernel");
  Launch made(blocks, threads, body);
  launch = &made;
  const struct Leave {
    ~Leave() { launch = nullptr; }
  } leave;
  made.run();
}

void barrier(Site site) { launch->wait(Waits::kBarrier, site); }

uint64_t exchange(unsigned mask, uint64_t value, unsigned flip, Site site) {
  Fibre& fibre = launch->current();
  fibre.mask = mask;
  fibre.flip = flip;
  fibre.value = value;
  launch->wait(Waits::kExchange, site);
  return fibre.value;
}

void* shared_bytes(const void* type, int64_t tag, size_t bytes, size_t alignment) {
  return launch->array(type, tag, bytes, alignment);
}

}  // namespace emulation
