// Streams, memory and profiling of an accelerator, through the interfaces that its part of libtorch
// registers with c10 when it is loaded: nothing here needs the headers or libraries of CUDA.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "protect.h"

namespace {

using at::Tensor;
using qf::protect;

c10::Device cuda(int index) {
  return c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

void pack(const c10::Stream& stream, int64_t out[3]) {
  const auto packed = stream.pack3();
  out[0] = static_cast<int64_t>(packed.stream_id);
  out[1] = static_cast<int64_t>(packed.device_index);
  out[2] = static_cast<int64_t>(packed.device_type);
}

}  // namespace

extern "C" {

// Makes a stream of the pool the present one of this thread.
char* qf_stream_enter(int index) {
  return protect([&] {
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.setDevice(cuda(index));
    guard.exchangeStream(guard.getStreamFromGlobalPool(cuda(index), /*isHighPriority=*/false));
  });
}

// A stream of the pool, as three numbers; an urgent one goes ahead of others where the GPU has a choice.
char* qf_stream_of_pool(int index, int is_urgent, int64_t out[3]) {
  return protect([&] {
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    pack(guard.getStreamFromGlobalPool(cuda(index), /*isHighPriority=*/is_urgent != 0), out);
  });
}

// Makes the stream `to` the present one of this thread, `before` until now; what it is given comes
// after what that one was.
char* qf_stream_switch(int index, const int64_t to[3], int64_t before[3]) {
  return protect([&] {
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    const auto stream = c10::Stream::unpack3(
        static_cast<c10::StreamId>(to[0]), static_cast<c10::DeviceIndex>(to[1]),
        static_cast<c10::DeviceType>(to[2]));
    const auto present = guard.getStream(cuda(index));
    c10::Event event(at::kCUDA);
    event.record(present);
    event.block(stream);
    guard.exchangeStream(stream);
    pack(present, before);
  });
}

// Waits until all work of this thread's present stream is done.
char* qf_stream_wait(int index) {
  return protect([&] {
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    c10::Event event(at::kCUDA);
    event.record(guard.getStream(cuda(index)));
    event.synchronize();
  });
}

// This thread's present stream reads this tensor of another stream: its memory is not used again
// before what the stream was given up to the tensor's end is done.
char* qf_stream_share(const Tensor* tensor) {
  return protect([&] {
    const c10::impl::VirtualGuardImpl guard(tensor->device().type());
    tensor->record_stream(guard.getStream(tensor->device()));
  });
}

// A copy on the device that is under way when this returns, if `source` is page-locked.
char* qf_copy_begin(const Tensor* source, int index, Tensor** out) {
  return protect([&] {
    *out = new Tensor(source->to(cuda(index), source->scalar_type(), /*non_blocking=*/true));
  });
}

// Begins to write `source`, on a device, to `target`, on the host; under way when this returns, if that
// is page-locked.
char* qf_copy_into(const Tensor* source, Tensor* target) {
  return protect([&] {
    const at::NoGradGuard no_grad;
    target->copy_(*source, /*non_blocking=*/true);
  });
}

// Bytes of a device: free, in all, held by this program's tensors, and the most of those since
// qf_memory_restart.
char* qf_memory(int index, uint64_t out[4]) {
  return protect([&] {
    auto* allocator = c10::getDeviceAllocator(at::kCUDA);
    const auto [free, total] = allocator->getMemoryInfo(cuda(index).index());
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const auto stats = allocator->getDeviceStats(cuda(index).index());
    out[0] = free;
    out[1] = total;
    out[2] = static_cast<uint64_t>(stats.allocated_bytes[all].current);
    out[3] = static_cast<uint64_t>(stats.allocated_bytes[all].peak);
  });
}

// Gives memory that no tensor holds back to the device.
char* qf_memory_empty_cache() {
  return protect([] { c10::getDeviceAllocator(at::kCUDA)->emptyCache(); });
}

// Gives memory that no tensor holds back to the device, and begins a new peak.
char* qf_memory_restart(int index) {
  return protect([&] {
    auto* allocator = c10::getDeviceAllocator(at::kCUDA);
    allocator->emptyCache();
    allocator->resetPeakStats(cuda(index).index());
  });
}

}  // extern "C"
