// What c10d.cpp and nccl.cpp share.

#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <cstdint>

namespace qf {

// The one function of the NCCL library; see nccl.cpp. Returns null or a message.
using MakeNccl = char*(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                       int64_t timeout_ms, c10::intrusive_ptr<c10d::Backend>* out);

constexpr const char* MAKE_NCCL = "qf_make_nccl";

}  // namespace qf
