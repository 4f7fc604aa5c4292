#include "gradients.h"

#include <ATen/Functions.h>

#include <atomic>

namespace {

// Reducers that are there.
std::atomic<int> reducers{0};

}  // namespace

namespace qf {

bool adds_gradients_to(const at::Tensor& parameter) {
  return reducers == 0 && parameter.device().is_cuda() && parameter.is_leaf() && parameter.requires_grad();
}

}  // namespace qf

extern "C" {

// Counts reducers, which are told of gradients by autograd alone: one more (1) or one less (-1).
void qf_count_reducers(int change) { reducers += change; }

}  // extern "C"
