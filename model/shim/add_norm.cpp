// Residual sums with the layer norm behind them, whose result is wanted in 32 bits, for the next sum,
// and in 16, for the next product. On a GPU in bf16 one kernel (fused.cu.inc), anywhere else the same
// of torch's operations.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

#include "fused.h"
#include "gradients.h"
#include "protect.h"

namespace {

using at::Tensor;
using qf::protect;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// As in fused.cu.inc: row r begins at r / size * group + r % size * row.
struct Rows {
  int64_t size, group, row;
};

// How the rows of a tensor lie, if they lie so.
std::optional<Rows> rows_of(const Tensor& t) {
  if (t.stride(-1) != 1 || t.storage_offset() % 4 != 0) return std::nullopt;
  const auto aligned = [](int64_t stride) { return stride % 4 == 0; };
  if (t.dim() == 2 && aligned(t.stride(0))) return Rows{std::max<int64_t>(t.size(0), 1), 0, t.stride(0)};
  if (t.dim() == 3 && aligned(t.stride(0)) && aligned(t.stride(1))) {
    return Rows{std::max<int64_t>(t.size(1), 1), t.stride(0), t.stride(1)};
  }
  return std::nullopt;
}

// The tensor, or a copy of it, and how its rows lie.
std::pair<Tensor, Rows> with_rows(const Tensor& t) {
  if (const auto rows = rows_of(t)) return {t, *rows};
  const Tensor copy = t.contiguous().view({-1, t.size(-1)});
  return {copy, Rows{std::max<int64_t>(copy.size(0), 1), 0, copy.size(1)}};
}

const void* data(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
void* out_data(Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// The sum and its norm, and mean and 1 / deviation of each row. Parts that are not defined are not
// made; the branch may be missing.
void forward_kernel(const Tensor& branch, const Tensor& x, const Tensor& gain, const Tensor& shift,
                    double eps, Tensor& sum, Tensor& full, Tensor& low, Tensor& stats) {
  auto [source, x_rows] = with_rows(x);
  const void *b = data(branch), *s = data(source), *g = data(gain), *h = data(shift);
  auto e = static_cast<float>(eps);
  int rows = static_cast<int>(x.numel() / x.size(-1));
  void *to_sum = out_data(sum), *to_full = out_data(full), *to_low = out_data(low),
       *to_stats = out_data(stats);
  void* arguments[] = {&b, &s,      &x_rows,  &g,      &h,       &e,
                       &rows, &to_sum, &to_full, &to_low, &to_stats};
  if (rows == 0) return;
  qf::launch(qf::add_norm_kernels(x.device(), x.size(-1))->forward, x.device(), (rows + 3) / 4,
             arguments);
}

// Whether the kernels take these.
bool is_fused(const Tensor& branch, const Tensor& x, const Tensor& gain, at::ScalarType kind) {
  return x.device().is_cuda() && kind == at::kBFloat16 && x.scalar_type() == at::kFloat &&
         gain.scalar_type() == at::kFloat && gain.is_contiguous() && x.dim() >= 2 &&
         (!branch.defined() || (branch.scalar_type() == at::kBFloat16 && branch.sizes() == x.sizes())) &&
         qf::add_norm_kernels(x.device(), x.size(-1)) != nullptr;
}

// The sums of the blocks' shares, for gain, shift and bias: added to the gradients of `parameters`, or,
// without any, returned.
variable_list add_shares(const Tensor& partial, const std::vector<Tensor>& parameters) {
  const int64_t width = partial.size(2);
  Tensor targets[3];
  bool is_there = !parameters.empty();
  for (const Tensor& parameter : parameters) {
    const Tensor& grad = parameter.grad();
    is_there = is_there && grad.defined() && grad.is_contiguous() && grad.numel() == width &&
               grad.scalar_type() == at::kFloat;
  }
  const Tensor made = is_there ? Tensor() : at::empty({3, width}, partial.options());
  for (int i = 0; i < 3; ++i) targets[i] = is_there ? parameters[i].grad() : made.select(0, i);
  const void* shares = data(partial);
  int blocks = static_cast<int>(partial.size(0)), grows = is_there;
  void *t0 = out_data(targets[0]), *t1 = out_data(targets[1]), *t2 = out_data(targets[2]);
  void* arguments[] = {&shares, &blocks, &t0, &t1, &t2, &grows};
  qf::launch(qf::add_norm_kernels(partial.device(), width)->shares, partial.device(),
             3 * width / 32, arguments);
  if (parameters.empty()) return {targets[0], targets[1], targets[2]};
  for (int i = 0; i < 3 && !is_there; ++i) {
    Tensor& gradient = parameters[i].mutable_grad();
    if (gradient.defined()) {
      gradient.add_(targets[i]);
    } else {
      gradient = targets[i];
    }
  }
  return {Tensor(), Tensor(), Tensor()};
}

struct DropoutAddNorm : public Function<DropoutAddNorm> {
  // branch bf16 and residual f32 of one shape → the norm of dropout(branch) + residual in f32 and bf16.
  // bias was added to the branch by the product before: its gradient is made here, where it costs next
  // to nothing.
  static variable_list forward(AutogradContext* ctx, const Tensor& branch, const Tensor& residual,
                               const Tensor& bias, const Tensor& gain, const Tensor& shift,
                               double eps, double probability) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    Tensor dropped = branch.contiguous(), mask;
    if (probability > 0.0) std::tie(dropped, mask) = at::native_dropout(dropped, probability, true);
    const auto f32 = residual.options();
    const int64_t width = residual.size(-1), rows = residual.numel() / std::max<int64_t>(width, 1);
    Tensor sum = at::empty(residual.sizes(), f32), full = at::empty(residual.sizes(), f32);
    Tensor low = at::empty(residual.sizes(), f32.dtype(at::kBFloat16));
    Tensor stats = at::empty({rows, 2}, f32);
    forward_kernel(dropped, residual, gain, shift, eps, sum, full, low, stats);
    ctx->save_for_backward({sum, stats, gain, mask});
    ctx->saved_data["probability"] = probability;
    if (qf::adds_gradients_to(gain) && qf::adds_gradients_to(shift) && qf::adds_gradients_to(bias)) {
      ctx->saved_data["parameters"] = c10::List<Tensor>({gain, shift, bias});
    }
    return {full, low};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &stats = saved[1], &gain = saved[2], &mask = saved[3];
    const int64_t width = sum.size(-1), all = sum.numel() / width;
    Rows full_rows{1, 0, 0}, low_rows{1, 0, 0};
    Tensor full = grads[0], low = grads[1];  // Undefined where nothing was made of an output.
    if (full.defined()) std::tie(full, full_rows) = with_rows(full);
    if (low.defined()) std::tie(low, low_rows) = with_rows(low.to(at::kBFloat16));
    Tensor grad_residual = at::empty(sum.sizes(), sum.options());
    Tensor grad_branch = at::empty(sum.sizes(), sum.options().dtype(at::kBFloat16));
    // Two blocks for each of some 132 multiprocessors; each adds up the rows it meets.
    const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>((all + 3) / 4, 264));
    Tensor partial = at::empty({blocks, 3, width}, sum.options());
    const double probability = ctx->saved_data["probability"].toDouble();
    const void *f = data(full), *l = data(low), *s = data(sum), *t = data(stats), *g = data(gain),
               *m = data(mask);
    auto factor = static_cast<float>(1.0 / (1.0 - probability));
    int rows = static_cast<int>(all);
    void *to_residual = out_data(grad_residual), *to_branch = out_data(grad_branch),
         *to_partial = out_data(partial);
    void* arguments[] = {&f, &full_rows, &l,    &low_rows,    &s,         &t,         &g,
                         &m, &factor,    &rows, &to_residual, &to_branch, &to_partial};
    qf::launch(qf::add_norm_kernels(sum.device(), width)->backward, sum.device(), blocks, arguments);
    const bool adds = ctx->saved_data.count("parameters");
    const auto totals =
        adds ? add_shares(partial, ctx->saved_data["parameters"].toTensorVector()) : add_shares(partial, {});
    // What was added to the parameters' gradients is not handed on.
    return {grad_branch, grad_residual, totals[2], totals[0], totals[1], Tensor(), Tensor()};
  }
};

// An element type as Rust counts them.
at::ScalarType type_of(int kind) {
  return kind == 0 ? at::kFloat : kind == 1 ? at::kBFloat16 : at::kHalf;
}

}  // namespace

extern "C" {

// Whether qf_low_dropout_add_norm makes the gradient of a bias.
int qf_low_has_bias_gradient(const Tensor* residual, const Tensor* gain, int kind) {
  return kind == 1 && is_fused(Tensor(), *residual, *gain, at::kBFloat16);
}

// The norm of dropout(branch) + residual, in 32 bits and in `kind` (1: bfloat16, 2: float16, 0: float32).
// `bias`, perhaps null, is part of the branch, which has no path to it: its gradient is made here. Only
// where qf_low_has_bias_gradient says so.
char* qf_low_dropout_add_norm(const Tensor* branch, const Tensor* residual, const Tensor* bias,
                              const Tensor* gain, const Tensor* shift, double eps,
                              double probability, int kind, Tensor** full, Tensor** low) {
  return protect([&] {
    const auto type = type_of(kind);
    const bool fuses = is_fused(*branch, *residual, *gain, type) && residual->numel() > 0;
    TORCH_CHECK(fuses || !bias, "the gradient of a bias is left to a kernel that is not there");
    if (fuses) {
      const Tensor none = at::empty({0}, residual->options());
      const auto made = DropoutAddNorm::apply(*branch, *residual, bias ? *bias : none, *gain, *shift,
                                              eps, probability);
      *full = new Tensor(made[0]);
      *low = new Tensor(made[1]);
      return;
    }
    const Tensor dropped = probability > 0.0 ? at::dropout(*branch, probability, true) : *branch;
    const Tensor norm = at::layer_norm(at::add(dropped, *residual), gain->sizes(), *gain, *shift, eps);
    *full = new Tensor(norm);
    *low = new Tensor(norm.to(type));
  });
}

// x + branch (null: x itself) in 32 bits, and its norm in `kind`. No gradient.
char* qf_low_add_norm(const Tensor* branch, const Tensor* x, const Tensor* gain, const Tensor* shift,
                      double eps, int kind, Tensor** sum, Tensor** low) {
  return protect([&] {
    const auto type = type_of(kind);
    const Tensor none, &added = branch ? *branch : none;
    const bool has_grad = at::GradMode::is_enabled() &&
                          (x->requires_grad() || gain->requires_grad() || shift->requires_grad());
    if (!has_grad && is_fused(added, *x, *gain, type) && x->numel() > 0) {
      Tensor to_sum = branch ? at::empty(x->sizes(), x->options()) : Tensor();
      Tensor to_low = at::empty(x->sizes(), x->options().dtype(type));
      Tensor full, stats;
      forward_kernel(branch ? added.contiguous() : added, *x, *gain, *shift, eps, to_sum, full, to_low,
                     stats);
      *sum = new Tensor(branch ? to_sum : *x);
      *low = new Tensor(to_low);
      return;
    }
    const Tensor total = branch ? at::add(*x, *branch) : *x;
    *sum = new Tensor(total);
    *low = new Tensor(at::layer_norm(total, gain->sizes(), *gain, *shift, eps).to(type));
  });
}

}  // extern "C"
