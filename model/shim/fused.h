// Kernels of fused.cu.inc on a GPU.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace qf {

// A kernel that the driver knows.
using Kernel = void*;

struct AddNormKernels {
  Kernel forward;
  Kernel backward;
  Kernel shares;
};

// The kernels for rows of this width on this device, or null: they were not prepared.
const AddNormKernels* add_norm_kernels(const at::Device& device, int64_t width);

// Starts a kernel on the present stream of this thread, in blocks of 128 threads.
void launch(Kernel kernel, const at::Device& device, int64_t blocks, void** arguments);

}  // namespace qf
