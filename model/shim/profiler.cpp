// libtorch's own profiler: which operators and kernels ran when.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <torch/csrc/autograd/profiler_kineto.h>

#include <cstdint>
#include <set>
#include <unordered_set>

#include "protect.h"

namespace {

using qf::protect;
using torch::profiler::impl::ActivityType;

}  // namespace

extern "C" {

// Begins to record: with cpu = 1 this thread's operators and those of its backward passes, with cuda = 1
// what runs on GPUs. Operators cost the host about as much again as they take; what runs on GPUs
// costs next to nothing.
char* qf_profiler_start(int cpu, int cuda) {
  return protect([&] {
    using namespace torch::profiler::impl;
    const ProfilerConfig config(ProfilerState::KINETO);
    std::set<ActivityType> activities;
    if (cpu) activities.insert(ActivityType::CPU);
    if (cuda) activities.insert(ActivityType::CUDA);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(
        config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
  });
}

// Ends it and shows every event to `visit`: its name, start (ns since 1970) and duration in ns, the
// GPU it ran on or -1, and the GPU's stream or the thread. The names last as long as the visit.
char* qf_profiler_stop(void (*visit)(void* context, const char* name, int64_t start, int64_t duration,
                                     int gpu, int64_t lane),
                       void* context) {
  return protect([&] {
    const auto result = torch::autograd::profiler::disableProfiler();
    for (const auto& event : result->events()) {
      const bool on_gpu = event.deviceType() == c10::DeviceType::CUDA;
      const auto name = event.name();
      visit(context, name.c_str(), static_cast<int64_t>(event.startNs()),
            static_cast<int64_t>(event.durationNs()), on_gpu ? event.deviceIndex() : -1,
            on_gpu ? event.deviceResourceId() : static_cast<int64_t>(event.startThreadId()));
    }
  });
}

}  // extern "C"
