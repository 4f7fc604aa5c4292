// Memory of tensors on the CPU.
//
// libtorch's own allocator calls posix_memalign and free. glibc's heap then fills with holes: an aligned
// block is cut out of a larger one, so that the hole it leaves does not fit the next block of the same
// size. The resident set of a long run creeps up, though nothing leaks. Here large blocks are mapped one
// by one and kept for the next tensor of their size class; they never mix with others.
//
// Functions with a result of char* return null, or an error message that the caller frees with
// qf_free_message.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>

#include "protect.h"

using qf::protect;

namespace {

// Of data, bytes: what libtorch's own allocator gives.
constexpr size_t kAlignment = 64;

// Tensors below so many bytes come from the heap.
constexpr int kLargeBits = 17;
constexpr size_t kLarge = size_t{1} << kLargeBits;

// Size classes between two powers of two: at most an eighth of a block is unused.
constexpr int kClassBits = 3;
constexpr size_t kClasses = size_t{64 - kLargeBits} << kClassBits;

// What precedes the data of a tensor.
struct alignas(kAlignment) Block {
  // What malloc returned; null for a mapped block.
  void* heap;
  // Of a mapped block: its length with this header, and its size class.
  size_t bytes;
  size_t size_class;
  // Of a kept block: its neighbours among all that are kept, and among those of its class, by the time
  // they were given back.
  Block* newer;
  Block* older;
  Block* newer_of_class;
  Block* older_of_class;
};
static_assert(sizeof(Block) == kAlignment);

struct SizeClass {
  size_t index;
  size_t bytes;
};

// The smallest class that holds `bytes`, at least kLarge.
SizeClass class_of(size_t bytes) {
  const int bits = 63 - __builtin_clzll(bytes);
  const size_t step = size_t{1} << (bits - kClassBits);
  const size_t steps = (bytes - (size_t{1} << bits) + step - 1) / step;
  const size_t index = (static_cast<size_t>(bits - kLargeBits) << kClassBits) + steps;
  return {index, (size_t{1} << bits) + steps * step};
}

// Mapped blocks. Those in use and those kept together are at most 5/4 of the most that were in use at a
// time since the last release(): the rest, oldest first, goes back to the system.
class Mapped {
 public:
  // Null where the system has no memory.
  Block* take(size_t wanted) {
    const SizeClass fitting = class_of(wanted);
    Block* surplus = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ += fitting.bytes;
      peak_ = std::max(peak_, used_);
      if (Block* kept = newest_of_class_[fitting.index]) {
        unlink(kept);
        return kept;
      }
      while (oldest_ && used_ + kept_ > peak_ + peak_ / 4) {
        surplus = chained(oldest_, surplus);
      }
    }
    unmap(surplus);
    Block* block = map(fitting);
    if (!block) {
      release();
      block = map(fitting);
    }
    if (!block) {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ -= fitting.bytes;
      // What could not be had was never in use.
      peak_ = used_;
    }
    return block;
  }

  void give_back(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ -= block->bytes;
    link(block);
  }

  void release() {
    Block* all = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (oldest_) {
        all = chained(oldest_, all);
      }
      peak_ = used_;
    }
    unmap(all);
  }

  // Bytes in use, kept, and the most in use since the last release().
  std::array<size_t, 3> figures() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {used_, kept_, peak_};
  }

 private:
  static Block* map(SizeClass fitting) {
    void* memory = mmap(nullptr, fitting.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return nullptr;
    }
    return new (memory) Block{nullptr, fitting.bytes, fitting.index, nullptr, nullptr, nullptr, nullptr};
  }

  static void unmap(Block* chain) {
    while (chain) {
      Block* next = chain->older;
      munmap(chain, chain->bytes);
      chain = next;
    }
  }

  // Takes a kept block out, to be unmapped with `chain`.
  Block* chained(Block* block, Block* chain) {
    unlink(block);
    block->older = chain;
    return block;
  }

  void link(Block* block) {
    kept_ += block->bytes;
    Block*& newest_of_class = newest_of_class_[block->size_class];
    block->newer = nullptr;
    block->older = newest_;
    block->newer_of_class = nullptr;
    block->older_of_class = newest_of_class;
    (newest_ ? newest_->newer : oldest_) = block;
    newest_ = block;
    if (newest_of_class) {
      newest_of_class->newer_of_class = block;
    }
    newest_of_class = block;
  }

  void unlink(Block* block) {
    kept_ -= block->bytes;
    (block->newer ? block->newer->older : newest_) = block->older;
    (block->older ? block->older->newer : oldest_) = block->newer;
    Block*& newest_of_class = newest_of_class_[block->size_class];
    (block->newer_of_class ? block->newer_of_class->older_of_class : newest_of_class) =
        block->older_of_class;
    if (block->older_of_class) {
      block->older_of_class->newer_of_class = block->newer_of_class;
    }
  }

  std::mutex mutex_;
  size_t used_ = 0;
  size_t kept_ = 0;
  size_t peak_ = 0;
  Block* newest_ = nullptr;
  Block* oldest_ = nullptr;
  std::array<Block*, kClasses> newest_of_class_{};
};

// Never destroyed: tensors of static variables are given back after any destructor here would have run.
Mapped& mapped() {
  static Mapped* const instance = new Mapped;
  return *instance;
}

// A block of the heap. malloc, not posix_memalign: the hole that it leaves fits the next of its size.
Block* from_heap(size_t bytes) {
  void* memory = std::malloc(bytes + kAlignment - 1);
  if (!memory) {
    return nullptr;
  }
  const auto at = (reinterpret_cast<uintptr_t>(memory) + kAlignment - 1) & ~uintptr_t{kAlignment - 1};
  return new (reinterpret_cast<void*>(at)) Block{memory, 0, 0, nullptr, nullptr, nullptr, nullptr};
}

void give_back(void* data) {
  if (!data) {
    return;
  }
  Block* block = static_cast<Block*>(data) - 1;
  if (block->heap) {
    std::free(block->heap);
  } else {
    mapped().give_back(block);
  }
}

class HostAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, c10::Device(c10::DeviceType::CPU)};
    }
    // Beyond that a size was computed from a negative number. No machine has half of it.
    constexpr size_t kMost = std::numeric_limits<ptrdiff_t>::max() / 2;
    Block* block = nullptr;
    if (bytes <= kMost) {
      const size_t wanted = bytes + sizeof(Block);
      block = wanted < kLarge ? from_heap(wanted) : mapped().take(wanted);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, block, "can't allocate memory: a tensor on the CPU needs ", bytes,
                     " bytes");
    void* data = block + 1;
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, std::size_t count) const override {
    std::memcpy(to, from, count);
  }
};

}  // namespace

extern "C" {

// Takes the memory of all further tensors on the CPU from here. Those that exist keep theirs.
char* qf_use_host_allocator() {
  return protect([] {
    static HostAllocator* const allocator = new HostAllocator;
    c10::SetCPUAllocator(allocator, /*priority=*/1);
  });
}

// Gives kept memory back to the system.
void qf_release_host_memory() { mapped().release(); }

// Bytes of large tensors in use, bytes kept, and the most in use since the last release.
void qf_host_memory(size_t out[3]) {
  const auto figures = mapped().figures();
  std::copy(figures.begin(), figures.end(), out);
}

}  // extern "C"
