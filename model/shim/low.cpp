// Linear layers whose products run in 16 bits while parameters and gradients stay in 32: what
// torch's automatic mixed precision computes, with one cast of the weights per optimiser step
// instead of two per use, several layers of one input as one product, and weight gradients that
// leave the product in 32 bits instead of being rounded to 16.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "gradients.h"
#include "protect.h"

namespace {

using at::Tensor;
using qf::protect;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

// a [M, K] times b [K, N], both in 16 bits → [M, N] in 32, unrounded where the device can.
Tensor product_f32(const Tensor& a, const Tensor& b) {
  if (a.device().is_cuda()) return at::mm(a, b, at::kFloat);
  return at::mm(a, b).to(at::kFloat);
}

// Two 16-bit factors added to 32-bit numbers.
void add_product(const Tensor& sum, const Tensor& a, const Tensor& b) {
  Tensor out = sum;
  at::addmm_out(out, sum, a, b, at::kFloat);
}

// The gradients of layers whose parameters lie one under the other, as one matrix: they were made so.
// Undefined where they were not.
Tensor joined(const std::vector<Tensor>& parameters) {
  const Tensor& first = parameters[0].grad();
  if (!first.defined() || !first.is_contiguous()) return {};
  int64_t next = first.storage_offset(), rows = 0;
  for (const Tensor& parameter : parameters) {
    const Tensor& grad = parameter.grad();
    if (!grad.defined() || !grad.is_contiguous() || grad.scalar_type() != at::kFloat ||
        !grad.is_alias_of(first) || grad.storage_offset() != next) {
      return {};
    }
    next += grad.numel();
    rows += grad.size(0);
  }
  return first.as_strided({rows, first.size(1)}, {first.size(1), 1}, first.storage_offset());
}

// Up to this many layers share a product: query, key and value of an attention.
constexpr int64_t MAX_LAYERS = 3;

// Adds the product that is the gradient of `weights`, one under the other, to their gradients.
void add_weight_gradients(const std::vector<Tensor>& weights, const Tensor& grad, const Tensor& rows,
                          const std::vector<int64_t>& sizes) {
  int64_t outputs = 0;
  for (const int64_t size : sizes) outputs += size;
  // Behind the layers' own columns there may be padding.
  const Tensor own = grad.size(1) == outputs ? grad : grad.narrow(1, 0, outputs);
  if (const Tensor there = joined(weights); there.defined()) {
    add_product(there, own.t(), rows);
    return;
  }
  const Tensor made = product_f32(own.t(), rows);
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); first += sizes[i++]) {
    const Tensor part = made.narrow(0, first, sizes[i]);
    Tensor& gradient = weights[i].mutable_grad();
    if (gradient.defined()) {
      gradient.add_(part);
    } else {
      gradient = part;
    }
  }
}

struct LowLinear : public Function<LowLinear> {
  // x [..., K]; low_weight [N, K] and low_bias [N] hold copies of the layers' parameters one under the
  // other, and then perhaps padding → [M, N], in 16 bits or, with f32_out, in 32.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& low_weight,
                        const Tensor& low_bias, const Tensor& weight0, const Tensor& /*bias0*/,
                        const Optional& weight1, const Optional& /*bias1*/, const Optional& weight2,
                        const Optional& /*bias2*/, bool f32_out) {
    at::AutoDispatchBelowADInplaceOrView guard;
    // One pass over x, whether it is a view with gaps or not.
    const Tensor rows = x.to(low_weight.scalar_type(), /*non_blocking=*/false, /*copy=*/false,
                             at::MemoryFormat::Contiguous)
                            .contiguous()  // a view that has the kind already
                            .view({-1, x.size(-1)});
    ctx->saved_data["shape"] = x.sizes().vec();
    ctx->save_for_backward({rows, low_weight});
    std::vector<int64_t> sizes{weight0.size(0)};
    if (weight1) sizes.push_back(weight1->size(0));
    if (weight2) sizes.push_back(weight2->size(0));
    ctx->saved_data["sizes"] = sizes;
    if (qf::adds_gradients_to(weight0) && (!weight1 || qf::adds_gradients_to(*weight1)) &&
        (!weight2 || qf::adds_gradients_to(*weight2))) {
      c10::List<Tensor> weights;
      weights.push_back(weight0);
      if (weight1) weights.push_back(*weight1);
      if (weight2) weights.push_back(*weight2);
      ctx->saved_data["weights"] = weights;
    }
    ctx->saved_data["x_is_f32"] = x.scalar_type() == at::kFloat;
    if (f32_out) return product_f32(rows, low_weight.t()).add_(low_bias);
    return at::addmm(low_bias, rows, low_weight.t());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &rows = saved[0], &low_weight = saved[1];
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const Tensor grad = grads[0].to(low_weight.scalar_type()).contiguous();
    variable_list out(3 + 2 * MAX_LAYERS + 1);
    if (ctx->needs_input_grad(0)) {
      const Tensor grad_rows = ctx->saved_data["x_is_f32"].toBool() ? product_f32(grad, low_weight)
                                                                    : at::mm(grad, low_weight);
      out[0] = grad_rows.view(ctx->saved_data["shape"].toIntVector());
    }
    // Edges: x, low_weight, low_bias, then weight and bias of each layer.
    bool any_weight = false, any_bias = false;
    for (size_t i = 0; i < sizes.size(); ++i) {
      any_weight |= ctx->needs_input_grad(3 + 2 * i);
      any_bias |= ctx->needs_input_grad(4 + 2 * i);
    }
    if (any_weight && ctx->saved_data.count("weights")) {
      add_weight_gradients(ctx->saved_data["weights"].toTensorVector(), grad, rows, sizes);
      any_weight = false;
    }
    const Tensor weights = any_weight ? product_f32(grad.t(), rows) : Tensor();
    const Tensor biases = any_bias ? at::sum(grad, {0}, /*keepdim=*/false, at::kFloat) : Tensor();
    int64_t first = 0;
    for (size_t i = 0; i < sizes.size(); first += sizes[i++]) {
      if (weights.defined() && ctx->needs_input_grad(3 + 2 * i)) {
        out[3 + 2 * i] = weights.narrow(0, first, sizes[i]);
      }
      if (ctx->needs_input_grad(4 + 2 * i)) out[4 + 2 * i] = biases.narrow(0, first, sizes[i]);
    }
    return out;
  }
};

Tensor low_linear(const Tensor& x, const Tensor& low_weight, const Tensor& low_bias,
                  Tensor* const* weights, Tensor* const* biases, size_t layers, bool f32_out) {
  TORCH_CHECK(layers >= 1 && layers <= static_cast<size_t>(MAX_LAYERS), "one to three layers");
  TORCH_CHECK(x.dim() >= 1 && low_weight.dim() == 2 && x.size(-1) == low_weight.size(1), "rows of ",
              x.sizes(), " and weights of ", low_weight.sizes(), " cannot be multiplied");
  int64_t outputs = 0;
  for (size_t i = 0; i < layers; ++i) outputs += weights[i]->size(0);
  TORCH_CHECK(outputs <= low_weight.size(0) && low_bias.dim() == 1 &&
                  low_bias.size(0) == low_weight.size(0),
              "copies of other layers");
  const auto at_index = [layers](Tensor* const* list, size_t i) {
    return i < layers ? Optional(*list[i]) : std::nullopt;
  };
  auto shape = x.sizes().vec();
  shape.back() = low_weight.size(0);
  return LowLinear::apply(x, low_weight, low_bias, *weights[0], *biases[0],
                          at_index(weights, 1), at_index(biases, 1), at_index(weights, 2),
                          at_index(biases, 2), f32_out)
      .view(shape);
}

}  // namespace

extern "C" {

// x times the transposed copies in 16 bits, plus their bias; gradients go to the parameters in 32
// bits that the copies are of. Rows of padding behind the layers' own come out as columns, too.
char* qf_low_linear(const Tensor* x, const Tensor* low_weight, const Tensor* low_bias,
                    Tensor* const* weights, Tensor* const* biases, size_t layers, int f32_out,
                    Tensor** out) {
  return protect([&] {
    *out = new Tensor(
        low_linear(*x, *low_weight, *low_bias, weights, biases, layers, f32_out != 0));
  });
}

// Copies those sources to their targets that have changed since: whose version is not the noted one.
char* qf_refresh_copies(Tensor* const* sources, Tensor* const* targets, int64_t* versions,
                        size_t count) {
  return protect([&] {
    std::vector<Tensor> from, to;
    for (size_t i = 0; i < count; ++i) {
      const auto version = static_cast<int64_t>(sources[i]->_version());
      if (versions[i] == version) continue;
      from.push_back(*sources[i]);
      to.push_back(*targets[i]);
      versions[i] = version;
    }
    if (from.empty()) return;
    at::NoGradGuard no_grad;
    at::_foreach_copy_(to, from);
  });
}

}  // extern "C"
