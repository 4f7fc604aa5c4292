// The NCCL backend of c10d as a library of its own, opened at run time on machines with a GPU: it
// needs libtorch_cuda.so, which the program itself does not link.

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "c10d.h"
#include "protect.h"

extern "C" __attribute__((visibility("default"))) char* qf_make_nccl(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, int64_t timeout_ms,
    c10::intrusive_ptr<c10d::Backend>* out) {
  return qf::protect([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    *out = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  });
}

static_assert(std::is_same_v<decltype(qf_make_nccl), qf::MakeNccl>);
