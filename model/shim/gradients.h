// Gradients of parameters written by whoever makes them.

#pragma once

#include <ATen/core/Tensor.h>

namespace qf {

// Whether the gradient of this parameter is added to what is there by the one who makes it, instead of
// being handed to autograd, which first adds up those of all uses: on a GPU, where no reducer waits to be
// told of gradients.
bool adds_gradients_to(const at::Tensor& parameter);

}  // namespace qf
