// Switches of libtorch that hold for the whole process.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <ATen/Context.h>

#include "protect.h"

using qf::protect;

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

}  // extern "C"
