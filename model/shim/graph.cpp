// Recordings of kernels (CUDA graphs) as a library of its own, opened at run time on machines with a
// GPU: it needs libtorch_cuda.so, which the program itself does not link.

#include "graph.h"

#include <ATen/cuda/CUDAGraph.h>

#include "protect.h"

#define QF_EXPORT extern "C" __attribute__((visibility("default")))

using at::cuda::CUDAGraph;

QF_EXPORT char* qf_graph_pool(uint64_t pool[2]) {
  return qf::protect([&] {
    const auto id = at::cuda::graph_pool_handle();
    pool[0] = id.first;
    pool[1] = id.second;
  });
}

QF_EXPORT char* qf_graph_begin(const uint64_t pool[2], void** graph) {
  return qf::protect([&] {
    auto recording = std::make_unique<CUDAGraph>();
    // Other threads upload and allocate meanwhile, on streams of their own.
    recording->capture_begin({pool[0], pool[1]}, cudaStreamCaptureModeThreadLocal);
    *graph = recording.release();
  });
}

QF_EXPORT char* qf_graph_end(void* graph) {
  return qf::protect([&] { static_cast<CUDAGraph*>(graph)->capture_end(); });
}

QF_EXPORT char* qf_graph_replay(void* graph) {
  return qf::protect([&] { static_cast<CUDAGraph*>(graph)->replay(); });
}

QF_EXPORT char* qf_graph_free(void* graph) {
  return qf::protect([&] { delete static_cast<CUDAGraph*>(graph); });
}
