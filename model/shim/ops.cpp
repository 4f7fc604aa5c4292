// Differentiable operations and optimiser steps that the `tch` crate does not wrap, as C functions.
//
// On the CPU in 32 bits they run the loops of kernels.cpp and oneDNN's matrix products; anywhere
// else, and in any other element type, the same mathematics is composed of torch's own operations.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "protect.h"

namespace {

using at::Tensor;
using qf::protect;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of one task: enough work to be worth a thread.
constexpr int64_t GRAIN_NUMBERS = 32768;

int64_t grain(int64_t width) { return std::max<int64_t>(1, GRAIN_NUMBERS / std::max<int64_t>(1, width)); }

bool has_kernel(const Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat;
}

bool is_low_on_cpu(const Tensor& tensor) {
  return tensor.device().is_cpu() &&
         (tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf);
}

// A key for one operation's dropout, from torch's own generator, so that its seed decides.
qf::Dropout draw_dropout(double probability) {
  if (probability <= 0.0) return {0, 0.0f};
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return {at::check_generator<at::CPUGeneratorImpl>(generator)->random64(),
          static_cast<float>(probability)};
}

// --- Linear layers ------------------------------------------------------------------------------

// Products of fewer multiplications than this stay with torch: oneDNN prepares its kernels anew for
// every number of rows that it has not seen, some milliseconds each.
constexpr double SMALL_PRODUCT = 1.0e8;

// oneDNN's linear layer, if this libtorch has it.
using OneDnnLinear = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&,
                            std::string_view, c10::List<std::optional<at::Scalar>>,
                            std::optional<std::string_view>);
std::optional<c10::TypedOperatorHandle<OneDnnLinear>> find_onednn() {
  const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!found || !at::hasMKLDNN()) return std::nullopt;
  return found->typed<OneDnnLinear>();
}

// a [M, K] times b [N, K] transposed, plus bias [N] → [M, N].
Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  static const auto onednn = find_onednn();
  const double multiplications = static_cast<double>(a.size(0)) * static_cast<double>(a.size(1)) *
                                 static_cast<double>(b.size(0));
  if (!onednn || multiplications < SMALL_PRODUCT) {
    return bias ? at::addmm(*bias, a, b.t()) : at::mm(a, b.t());
  }
  return onednn->call(a, b, bias, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
}

struct Linear : public Function<Linear> {
  // x [M, K] contiguous, weight [N, K], bias [N] or none → [M, N].
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bias"] = bias.has_value();
    return product(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const Tensor& weight = saved[1];
    const Tensor grad = grads[0].contiguous();
    Tensor grad_x, grad_weight, grad_bias;
    if (ctx->needs_input_grad(0)) grad_x = product(grad, weight.t(), std::nullopt);
    if (ctx->needs_input_grad(1)) {
      // The widest layer, the language-model head, is the one that oneDNN is slower at.
      constexpr int64_t WIDE = 8192;
      grad_weight = weight.size(0) > WIDE ? at::mm(grad.t(), x)
                                          : product(grad.t(), x.t(), std::nullopt);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) grad_bias = grad.sum(0);
    return {grad_x, grad_weight, grad_bias};
  }
};

Tensor apply_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const bool fits = has_kernel(x) && has_kernel(weight) && x.dim() >= 1 && weight.dim() == 2 &&
                    x.size(-1) == weight.size(1) && x.numel() > 0 &&
                    (!bias || (has_kernel(*bias) && bias->dim() == 1 &&
                               bias->size(0) == weight.size(0))) &&
                    !at::autocast::is_autocast_enabled(at::kCPU);
  if (!fits) return at::linear(x, weight, bias);
  auto shape = x.sizes().vec();
  const Tensor rows = x.reshape({-1, x.size(-1)}).contiguous();
  shape.back() = weight.size(0);
  return Linear::apply(rows, weight, bias).view(shape);
}

// --- Dropout, residual, norm --------------------------------------------------------------------

struct DropoutAddNorm : public Function<DropoutAddNorm> {
  // x and residual [M, D] contiguous → [M, D].
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& residual,
                        const Tensor& weight, const Tensor& bias, double eps, double probability,
                        bool keeps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t rows = x.size(0), width = x.size(1);
    const auto dropout = draw_dropout(probability);
    Tensor out = at::empty_like(x);
    Tensor normalized = keeps ? at::empty_like(x) : Tensor();
    Tensor rstd = keeps ? at::empty({rows}, x.options()) : Tensor();
    const float *xs = x.const_data_ptr<float>(), *rs = residual.const_data_ptr<float>();
    const float *ws = weight.const_data_ptr<float>(), *bs = bias.const_data_ptr<float>();
    float* os = out.mutable_data_ptr<float>();
    float* ns = keeps ? normalized.mutable_data_ptr<float>() : nullptr;
    float* is = keeps ? rstd.mutable_data_ptr<float>() : nullptr;
    at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
      qf::dropout_add_norm(xs, rs, ws, bs, static_cast<float>(eps), dropout, width, begin, end, os,
                           ns, is);
    });
    if (keeps) ctx->save_for_backward({normalized, rstd, weight});
    ctx->saved_data["seed"] = static_cast<int64_t>(dropout.seed);
    ctx->saved_data["probability"] = static_cast<double>(dropout.probability);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &normalized = saved[0], &rstd = saved[1], &weight = saved[2];
    const qf::Dropout dropout{static_cast<uint64_t>(ctx->saved_data["seed"].toInt()),
                              static_cast<float>(ctx->saved_data["probability"].toDouble())};
    const Tensor grad = grads[0].contiguous();
    const int64_t rows = grad.size(0), width = grad.size(1);
    Tensor grad_residual = at::empty_like(grad);
    Tensor grad_x = dropout.probability > 0.0f ? at::empty_like(grad) : grad_residual;
    const float* gs = grad.const_data_ptr<float>();
    const float* ns = normalized.const_data_ptr<float>();
    const float* is = rstd.const_data_ptr<float>();
    const float* ws = weight.const_data_ptr<float>();
    float* xs = grad_x.mutable_data_ptr<float>();
    float* os = grad_residual.mutable_data_ptr<float>();
    // One partial sum per chunk, added up in order: equal numbers of threads give equal sums.
    const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows));
    const int64_t chunk = (rows + chunks - 1) / chunks;
    Tensor sums = at::zeros({2, chunks, width}, grad.options());
    float* ss = sums.mutable_data_ptr<float>();
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        qf::dropout_add_norm_backward(gs, ns, is, ws, dropout, width, std::min(rows, c * chunk),
                                      std::min(rows, (c + 1) * chunk), xs, os, ss + c * width,
                                      ss + (chunks + c) * width);
      }
    });
    const Tensor totals = sums.sum(1);
    return {grad_x, grad_residual, totals.select(0, 0).clone(), totals.select(0, 1).clone(),
            Tensor(), Tensor(), Tensor()};
  }
};

Tensor dropout_add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                        const Tensor& bias, double eps, double probability) {
  const bool fits = has_kernel(x) && has_kernel(residual) && has_kernel(weight) &&
                    has_kernel(bias) && x.dim() >= 1 && x.sizes() == residual.sizes() &&
                    weight.dim() == 1 && x.size(-1) == weight.size(0) &&
                    weight.sizes() == bias.sizes() && x.numel() > 0;
  if (!fits) {
    const Tensor sum = (probability > 0.0 ? at::dropout(x, probability, true) : x) + residual;
    return at::layer_norm(sum, weight.sizes(), weight, bias, eps);
  }
  const int64_t width = weight.size(0);
  const bool keeps =
      at::GradMode::is_enabled() && (x.requires_grad() || residual.requires_grad() ||
                                     weight.requires_grad() || bias.requires_grad());
  return DropoutAddNorm::apply(x.reshape({-1, width}).contiguous(),
                               residual.reshape({-1, width}).contiguous(), weight.contiguous(),
                               bias.contiguous(), eps, probability, keeps)
      .view(x.sizes());
}

struct RowDropout : public Function<RowDropout> {
  static Tensor apply_mask(const Tensor& x, qf::Dropout dropout) {
    const int64_t rows = x.size(0), width = x.size(1);
    Tensor out = at::empty_like(x);
    const float* xs = x.const_data_ptr<float>();
    float* os = out.mutable_data_ptr<float>();
    at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
      qf::dropout_rows(xs, dropout, width, begin, end, os);
    });
    return out;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, double probability) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto dropout = draw_dropout(probability);
    ctx->saved_data["seed"] = static_cast<int64_t>(dropout.seed);
    ctx->saved_data["probability"] = static_cast<double>(dropout.probability);
    return apply_mask(x, dropout);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const qf::Dropout dropout{static_cast<uint64_t>(ctx->saved_data["seed"].toInt()),
                              static_cast<float>(ctx->saved_data["probability"].toDouble())};
    return {apply_mask(grads[0].contiguous(), dropout), Tensor()};
  }
};

Tensor apply_dropout(const Tensor& x, double probability) {
  if (probability <= 0.0) return x;
  if (!has_kernel(x) || x.dim() < 1 || x.numel() == 0) return at::dropout(x, probability, true);
  return RowDropout::apply(x.reshape({-1, x.size(-1)}).contiguous(), probability).view(x.sizes());
}

// --- Attention ----------------------------------------------------------------------------------

struct Attention : public Function<Attention> {
  // query [R, H, L, d], key and value [R, H, S, d], contiguous; additive mask [R, 1, L or 1, S]
  // contiguous or none → [R, H, L, d].
  static Tensor forward(AutogradContext* ctx, const Tensor& query, const Tensor& key,
                        const Tensor& value, const std::optional<Tensor>& mask,
                        double probability) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2);
    const int64_t depth = query.size(3), keys = key.size(2), all = batch * heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(depth));
    const auto dropout = draw_dropout(probability);
    const Tensor v = value.view({all, keys, depth});
    Tensor scores = at::bmm(query.view({all, length, depth}),
                            key.view({all, keys, depth}).transpose(1, 2));
    Tensor dropped = dropout.probability > 0.0f ? at::empty_like(scores) : Tensor();
    float* ss = scores.mutable_data_ptr<float>();
    float* ds = dropped.defined() ? dropped.mutable_data_ptr<float>() : nullptr;
    const float* ms = mask ? mask->const_data_ptr<float>() : nullptr;
    const int64_t mask_length = mask ? mask->size(2) : 1;
    at::parallel_for(0, all * length, grain(keys), [&](int64_t begin, int64_t end) {
      qf::softmax_dropout(ss, ms, heads, length, mask_length, scale, dropout, keys, begin, end, ds);
    });
    ctx->save_for_backward({query, key, value, scores});
    ctx->saved_data["seed"] = static_cast<int64_t>(dropout.seed);
    ctx->saved_data["probability"] = static_cast<double>(dropout.probability);
    return at::bmm(dropped.defined() ? dropped : scores, v).view(query.sizes());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2], &probabilities = saved[3];
    const qf::Dropout dropout{static_cast<uint64_t>(ctx->saved_data["seed"].toInt()),
                              static_cast<float>(ctx->saved_data["probability"].toDouble())};
    const int64_t all = query.size(0) * query.size(1), length = query.size(2);
    const int64_t depth = query.size(3), keys = key.size(2);
    const float scale = 1.0f / std::sqrt(static_cast<float>(depth));
    const Tensor grad = grads[0].contiguous().view({all, length, depth});
    Tensor grad_scores = at::bmm(grad, value.view({all, keys, depth}).transpose(1, 2));
    Tensor dropped =
        dropout.probability > 0.0f ? at::empty_like(probabilities) : Tensor();
    float* gs = grad_scores.mutable_data_ptr<float>();
    float* ds = dropped.defined() ? dropped.mutable_data_ptr<float>() : nullptr;
    const float* ps = probabilities.const_data_ptr<float>();
    at::parallel_for(0, all * length, grain(keys), [&](int64_t begin, int64_t end) {
      qf::softmax_dropout_backward(gs, ps, scale, dropout, keys, begin, end, ds);
    });
    const Tensor& used = dropped.defined() ? dropped : probabilities;
    Tensor grad_query = at::bmm(grad_scores, key.view({all, keys, depth}));
    Tensor grad_key = at::bmm(grad_scores.transpose(1, 2), query.view({all, length, depth}));
    Tensor grad_value = at::bmm(used.transpose(1, 2), grad);
    return {grad_query.view(query.sizes()), grad_key.view(key.sizes()),
            grad_value.view(value.sizes()), Tensor(), Tensor()};
  }
};

Tensor apply_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& mask, double probability) {
  const bool shapes = query.dim() == 4 && key.dim() == 4 && value.dim() == 4 &&
                      key.sizes() == value.sizes() && query.size(0) == key.size(0) &&
                      query.size(1) == key.size(1) && query.size(3) == key.size(3) &&
                      query.numel() > 0 && key.numel() > 0;
  const bool maskable =
      !mask || (has_kernel(*mask) && mask->dim() == 4 && mask->size(1) == 1 && shapes &&
                mask->size(0) == query.size(0) && mask->size(3) == key.size(2) &&
                (mask->size(2) == 1 || mask->size(2) == query.size(2)));
  if (is_low_on_cpu(query) && is_low_on_cpu(key) && is_low_on_cpu(value)) {
    // No fused kernel of torch takes dropout here.
    const auto f32 = [](const Tensor& t) {
      return t.to(at::kFloat, false, false, at::MemoryFormat::Contiguous);
    };
    std::optional<Tensor> additive;
    if (mask) additive = f32(*mask);
    return apply_attention(f32(query), f32(key), f32(value), additive, probability)
        .to(query.scalar_type());
  }
  if (!(shapes && maskable && has_kernel(query) && has_kernel(key) && has_kernel(value))) {
    std::optional<Tensor> additive;
    if (mask) additive = mask->to(query.scalar_type());
    return at::scaled_dot_product_attention(query, key, value, additive, probability);
  }
  std::optional<Tensor> additive;
  if (mask) additive = mask->contiguous();
  return Attention::apply(query.contiguous(), key.contiguous(), value.contiguous(), additive,
                          probability);
}

// --- Rows in and out of attention's layout ------------------------------------------------------

Tensor split_kernel(const Tensor& rows, const Tensor& slots, int64_t batch, int64_t length,
                    int64_t heads) {
  const int64_t depth = rows.size(1) / heads;
  Tensor out = at::empty({batch, heads, length, depth}, rows.options());
  const float* rs = rows.const_data_ptr<float>();
  const int64_t* ss = slots.const_data_ptr<int64_t>();
  float* os = out.mutable_data_ptr<float>();
  at::parallel_for(0, batch * length, grain(rows.size(1)), [&](int64_t begin, int64_t end) {
    qf::split_rows(rs, ss, length, heads, depth, begin, end, os);
  });
  return out;
}

Tensor merge_kernel(const Tensor& x, const Tensor& places) {
  const int64_t heads = x.size(1), length = x.size(2), depth = x.size(3), rows = places.size(0);
  Tensor out = at::empty({rows, heads * depth}, x.options());
  const float* xs = x.const_data_ptr<float>();
  const int64_t* ps = places.const_data_ptr<int64_t>();
  float* os = out.mutable_data_ptr<float>();
  at::parallel_for(0, rows, grain(heads * depth), [&](int64_t begin, int64_t end) {
    qf::merge_rows(xs, ps, length, heads, depth, begin, end, os);
  });
  return out;
}

struct SplitRows : public Function<SplitRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Tensor& slots,
                        const Tensor& places, int64_t batch, int64_t length, int64_t heads) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({places});
    return split_kernel(rows, slots, batch, length, heads);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {merge_kernel(grads[0].contiguous(), saved[0]), Tensor(), Tensor(), Tensor(), Tensor(),
            Tensor()};
  }
};

struct MergeRows : public Function<MergeRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& slots,
                        const Tensor& places) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({slots});
    ctx->saved_data["shape"] = x.sizes().vec();
    return merge_kernel(x, places);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto shape = ctx->saved_data["shape"].toIntVector();
    return {split_kernel(grads[0].contiguous(), saved[0], shape[0], shape[2], shape[1]), Tensor(),
            Tensor()};
  }
};

// Entries of `index` lie in [-1, size): checked on the CPU, where it costs nothing and a wrong one
// would read beyond the buffer.
void check_index(const Tensor& index, int64_t size) {
  TORCH_CHECK(index.scalar_type() == at::kLong && index.dim() == 1, "an index is a list of int64");
  if (!index.device().is_cpu()) return;
  const int64_t* values = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.size(0); ++i) {
    TORCH_CHECK(values[i] >= -1 && values[i] < size, "index ", values[i], " is beyond ", size);
  }
}

Tensor split_rows(const Tensor& rows, const Tensor& slots, const Tensor& places, int64_t batch,
                  int64_t length, int64_t heads) {
  TORCH_CHECK(rows.dim() == 2 && heads > 0 && rows.size(1) % heads == 0, "rows are [M, heads * d]");
  TORCH_CHECK(slots.dim() == 1 && slots.size(0) == batch * length, "slots are [R * L]");
  TORCH_CHECK(places.dim() == 1 && places.size(0) == rows.size(0), "places are [M]");
  check_index(slots, rows.size(0));
  check_index(places, batch * length);
  TORCH_CHECK(has_kernel(rows), "rows with gaps are in 32 bits on the CPU");
  return SplitRows::apply(rows.contiguous(), slots.contiguous(), places.contiguous(), batch, length,
                          heads);
}

Tensor merge_rows(const Tensor& x, const Tensor& slots, const Tensor& places) {
  TORCH_CHECK(x.dim() == 4, "heads are [R, H, L, d]");
  TORCH_CHECK(slots.dim() == 1 && slots.size(0) == x.size(0) * x.size(2), "slots are [R * L]");
  TORCH_CHECK(places.dim() == 1, "places are [M]");
  check_index(slots, places.size(0));
  check_index(places, slots.size(0));
  TORCH_CHECK(has_kernel(x), "rows with gaps are in 32 bits on the CPU");
  return MergeRows::apply(x.contiguous(), slots.contiguous(), places.contiguous());
}

// --- For C --------------------------------------------------------------------------------------

std::optional<Tensor> optional(const Tensor* tensor) {
  return tensor ? std::optional<Tensor>(*tensor) : std::nullopt;
}

std::vector<Tensor> list(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
  return all;
}

}  // namespace

extern "C" {

void qf_free_message(char* message) { free(message); }

char* qf_linear(const Tensor* x, const Tensor* weight, const Tensor* bias, Tensor** out) {
  return protect([&] { *out = new Tensor(apply_linear(*x, *weight, optional(bias))); });
}

char* qf_dropout(const Tensor* x, double probability, Tensor** out) {
  return protect([&] { *out = new Tensor(apply_dropout(*x, probability)); });
}

char* qf_dropout_add_norm(const Tensor* x, const Tensor* residual, const Tensor* weight,
                          const Tensor* bias, double eps, double probability, Tensor** out) {
  return protect([&] {
    *out = new Tensor(dropout_add_norm(*x, *residual, *weight, *bias, eps, probability));
  });
}

char* qf_attention(const Tensor* query, const Tensor* key, const Tensor* value, const Tensor* mask,
                   double probability, Tensor** out) {
  return protect(
      [&] { *out = new Tensor(apply_attention(*query, *key, *value, optional(mask), probability)); });
}

char* qf_split_rows(const Tensor* rows, const Tensor* slots, const Tensor* places, int64_t batch,
                    int64_t length, int64_t heads, Tensor** out) {
  return protect(
      [&] { *out = new Tensor(split_rows(*rows, *slots, *places, batch, length, heads)); });
}

char* qf_merge_rows(const Tensor* x, const Tensor* slots, const Tensor* places, Tensor** out) {
  return protect([&] { *out = new Tensor(merge_rows(*x, *slots, *places)); });
}

// Removes the gradients, so that the next backward pass writes instead of adding.
char* qf_clear_gradients(Tensor* const* tensors, size_t count) {
  return protect([&] {
    for (size_t i = 0; i < count; ++i) tensors[i]->mutable_grad() = Tensor();
  });
}

// One AdamW step of all parameters, as torch.optim's _fused_adamw drives it. `steps` are f32 scalars
// and grow by one. The rate is `lr_on_device`, an f32 scalar, unless that is null. Gradients are divided by `divisor` (null for 1), in place; nothing else changes
// if `skip` (null for 0) is 1.
char* qf_fused_adamw(Tensor* const* params, Tensor* const* grads, Tensor* const* means,
                     Tensor* const* squares, Tensor* const* steps, size_t count, double lr,
                     const Tensor* lr_on_device, double beta1, double beta2, double weight_decay, double eps,
                     const Tensor* divisor, const Tensor* skip) {
  return protect([&] {
    if (count == 0) return;
    at::NoGradGuard no_grad;
    auto p = list(params, count), g = list(grads, count), m = list(means, count),
         v = list(squares, count), s = list(steps, count);
    const auto by = optional(divisor), found = optional(skip);
    at::_foreach_add_(s, 1);
    if (lr_on_device) {
      at::_fused_adamw_(p, g, m, v, {}, s, *lr_on_device, beta1, beta2, weight_decay, eps,
                        /*amsgrad=*/false, /*maximize=*/false, by, found);
    } else {
      at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                        /*maximize=*/false, by, found);
    }
    // The fused kernel does not: what is kept of a parameter elsewhere is to be seen as old.
    for (const Tensor& param : p) param.unsafeGetTensorImpl()->bump_version();
    if (found) at::_foreach_sub_(s, std::vector<Tensor>(count, *found));
  });
}

// The 2-norm over all tensors, a scalar, on their device.
char* qf_global_norm(Tensor* const* tensors, size_t count, Tensor** out) {
  return protect([&] {
    at::NoGradGuard no_grad;
    TORCH_CHECK(count > 0, "no tensors");
    const auto norms = at::_foreach_norm(list(tensors, count), 2);
    *out = new Tensor(at::linalg_vector_norm(at::stack(norms), 2));
  });
}

// target = target + weight * (source - target), all at once.
char* qf_lerp(Tensor* const* targets, Tensor* const* sources, size_t count, double weight) {
  return protect([&] {
    if (count == 0) return;
    at::NoGradGuard no_grad;
    at::_foreach_lerp_(list(targets, count), list(sources, count), weight);
  });
}

// Automatic mixed precision of this thread on CUDA (cuda = 1) or the CPU: kind 0 switches it off,
// 1 is bfloat16, 2 is float16. Switching off frees the cast weights.
char* qf_set_autocast(int cuda, int kind) {
  return protect([&] {
    const auto device = cuda ? at::kCUDA : at::kCPU;
    if (kind == 0) {
      at::autocast::set_autocast_enabled(device, false);
      at::autocast::clear_cache();
      return;
    }
    at::autocast::set_autocast_dtype(device, kind == 1 ? at::kBFloat16 : at::kHalf);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::set_autocast_cache_enabled(true);
  });
}

}  // extern "C"
