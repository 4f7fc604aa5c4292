// Switches and states of libtorch that hold for the whole process.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <mutex>

#include "protect.h"

using qf::protect;

namespace {

void seed(const at::Generator& shared, uint64_t number) {
  at::Generator generator = shared;
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(number);
}

}  // namespace

extern "C" {

// Whether scaled_dot_product_attention may take cuDNN's kernels.
char* qf_use_cudnn_attention(int on) {
  return protect([&] { at::globalContext().setSDPUseCuDNN(on != 0); });
}

// Whether products and convolutions of 32-bit numbers may round their inputs to TF32 on a GPU.
char* qf_allow_tf32(int on) {
  return protect([&] {
    at::globalContext().setAllowTF32CuBLAS(on != 0);
    at::globalContext().setAllowTF32CuDNN(on != 0);
  });
}

// Whether operators have to give the same bits for the same inputs; those that cannot then fail. New
// memory is not filled: nothing reads it before it is written.
char* qf_use_deterministic(int on) {
  return protect([&] {
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

// What libtorch will do: cuDNN's attention, TF32 in products, TF32 in convolutions, deterministic.
char* qf_context(int* out) {
  return protect([&] {
    const auto& context = at::globalContext();
    out[0] = context.userEnabledCuDNNSDP();
    out[1] = context.allowTF32CuBLAS();
    out[2] = context.allowTF32CuDNN(at::Float32Op::CONV);
    out[3] = context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly() &&
             !context.deterministicFillUninitializedMemory();
  });
}

// Versions of the CUDA runtime and of cuDNN as libtorch's CUDA part has them, like 13000 and 91900.
// An error where libtorch has no CUDA part, or looked for it before it was opened: the answer to
// the first look stays.
char* qf_cuda_versions(int64_t out[2]) {
  return protect([&] {
    const auto& hooks = at::detail::getCUDAHooks();
    out[0] = hooks.versionCUDART();
    out[1] = hooks.hasCuDNN() ? hooks.versionRuntimeCuDNN() : 0;
  });
}

// Seeds the generator of the CPU and, from index 0 on, that of a GPU. torch::manual_seed looks for an
// accelerator, finds none as long as the CUDA libraries are not opened, and that stays so.
char* qf_seed(uint64_t number, int index) {
  return protect([&] {
    seed(at::detail::getDefaultCPUGenerator(), number);
    if (index >= 0) {
      const c10::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
      seed(at::globalContext().defaultGenerator(device), number);
    }
  });
}

}  // extern "C"
