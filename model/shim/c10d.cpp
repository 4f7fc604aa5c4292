// Data parallelism on libtorch's own c10d, as C functions: a key-value store that the ranks meet at,
// collectives, and the averaging of gradients while they are computed.
//
// Every function returns null, or an error message that the caller frees with qf_free_message.

#define USE_C10D_GLOO

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "c10d.h"
#include "protect.h"

namespace {

using at::Tensor;
using c10::intrusive_ptr;
using qf::protect;
using std::chrono::milliseconds;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Store {
  intrusive_ptr<c10d::Store> store;
};

struct Group {
  intrusive_ptr<c10d::ProcessGroup> group;
};

struct Reducer {
  std::unique_ptr<c10d::Reducer> reducer;
};

// Waits and reports what went wrong: without a timeout of its own, that of the group counts.
void finish(const intrusive_ptr<c10d::Work>& work) { work->wait(); }

// Out of line, so that the virtual function in libtorch is called and not a copy of it made here.
__attribute__((noinline)) void set_timeout(c10d::Backend& backend, milliseconds timeout) {
  backend.setTimeout(timeout);
}

Tensor gather(c10d::ProcessGroup& group, const Tensor& own) {
  at::NoGradGuard no_grad;
  TORCH_CHECK(own.dim() > 0, "a scalar cannot be gathered");
  // Gloo moves no truth values.
  Tensor input = own.contiguous();
  const bool is_bool = input.scalar_type() == at::kBool;
  if (is_bool) input = input.view(at::kByte);
  auto shape = input.sizes().vec();
  shape[0] *= group.getSize();
  Tensor output = at::empty(shape, input.options());
  finish(group._allgather_base(output, input));
  return is_bool ? output.view(at::kBool) : output;
}

void sum(c10d::ProcessGroup& group, const Tensor& tensor) {
  std::vector<Tensor> tensors{tensor};
  finish(group.allreduce(tensors));
}

// The group travels in the node's saved data.
constexpr const char* GROUP = "group";

struct Gather : public torch::autograd::Function<Gather> {
  // own [B, ...] → [W * B, ...]
  static Tensor forward(AutogradContext* ctx, const Tensor& own,
                        const intrusive_ptr<c10d::ProcessGroup>& group) {
    ctx->saved_data[GROUP] = group;
    return gather(*group, own);
  }

  // The sum over all ranks of the gradient of this rank's part.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto group = ctx->saved_data[GROUP].toCustomClass<c10d::ProcessGroup>();
    Tensor grad = grads[0].contiguous();
    // An expanded or shared gradient must not be written to.
    if (grad.is_same(grads[0])) grad = grad.clone();
    sum(*group, grad);
    const int64_t batch = grad.size(0) / group->getSize();
    return {grad.narrow(0, group->getRank() * batch, batch), Tensor()};
  }
};

// The reducer warns where it finds no parameter without a gradient, though it was told that there may
// be some.
struct Quiet : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// Collectives write to tensors behind autograd's back. Copies that were made of a tensor before, in 16 bits say,
// are found to be old by its version.
void was_written(const std::vector<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

std::vector<Tensor> list(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
  return all;
}

// Tensors of one owner on their way to all ranks. Several are copied into a flat one and out of it
// again; a single one travels as it is.
struct Parcel {
  explicit Parcel(int owner) : owner(owner) {}

  int owner;
  std::vector<Tensor> tensors;
  size_t bytes = 0;
  Tensor flat;
  intrusive_ptr<c10d::Work> work;

  void send(c10d::ProcessGroup& group) {
    if (tensors.size() == 1 && tensors[0].is_contiguous()) {
      flat = tensors[0];
    } else if (owner == group.getRank()) {
      std::vector<Tensor> parts;
      for (const Tensor& tensor : tensors) parts.push_back(tensor.reshape({-1}));
      flat = at::cat(parts);
    } else {
      int64_t numel = 0;
      for (const Tensor& tensor : tensors) numel += tensor.numel();
      flat = at::empty({numel}, tensors[0].options());
    }
    c10d::BroadcastOptions options;
    options.rootRank = owner;
    std::vector<Tensor> sent{flat};
    work = group.broadcast(sent, options);
  }

  void arrive(const c10d::ProcessGroup& group) {
    finish(work);
    was_written(tensors);
    if (owner == group.getRank() || flat.is_same(tensors[0])) return;
    std::vector<Tensor> parts;
    int64_t at = 0;
    for (const Tensor& tensor : tensors) {
      parts.push_back(flat.narrow(0, at, tensor.numel()).view(tensor.sizes()));
      at += tensor.numel();
    }
    at::_foreach_copy_(tensors, parts);
  }
};

// The parcels of each owner, of `bucket_bytes` at most unless a tensor is larger, and then those of
// all owners in turns: the first of each, the second of each.
std::vector<Parcel> pack(const std::vector<Tensor>& tensors, const int* owners, int world,
                         size_t bucket_bytes) {
  std::vector<std::vector<Parcel>> by_owner(world);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int owner = owners[i];
    TORCH_CHECK(owner >= 0 && owner < world, "no rank ", owner, " among ", world);
    auto& own = by_owner[owner];
    const bool fits = !own.empty() && own.back().bytes + tensors[i].nbytes() <= bucket_bytes &&
                      own.back().tensors[0].scalar_type() == tensors[i].scalar_type();
    if (!fits) own.emplace_back(owner);
    own.back().tensors.push_back(tensors[i].detach());
    own.back().bytes += tensors[i].nbytes();
  }
  size_t turns = 0;
  for (const auto& own : by_owner) turns = std::max(turns, own.size());
  std::vector<Parcel> all;
  for (size_t turn = 0; turn < turns; ++turn) {
    for (auto& own : by_owner) {
      if (turn < own.size()) all.push_back(std::move(own[turn]));
    }
  }
  return all;
}

void arrange_buckets(c10d::Reducer& reducer, const std::vector<Tensor>& params) {
  at::AutoGradMode with_grad(true);
  Tensor loss;
  for (const Tensor& param : params) {
    TORCH_CHECK(!param.grad().defined(), "a parameter has a gradient already");
    const Tensor sum = param.sum();
    loss = loss.defined() ? loss + sum : sum;
  }
  if (!loss.defined()) return;
  reducer.prepare_for_forward();
  reducer.prepare_for_backward({loss});
  loss.backward();
  reducer.check_finalized();
  reducer.rebuild_buckets();
  for (const Tensor& param : params) param.mutable_grad() = Tensor();
}

std::string text(const char* bytes, size_t length) { return std::string(bytes, length); }

}  // namespace

extern "C" {

// --- Store --------------------------------------------------------------------------------------

// Connects to the store at host:port, which this process hosts if `hosts`. Keys get `prefix`.
char* qf_store_open(const char* host, size_t host_length, uint16_t port, int hosts,
                    const char* prefix, size_t prefix_length, int64_t timeout_ms, Store** out) {
  return protect([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = hosts != 0;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(text(host, host_length), options);
    *out = new Store{c10::make_intrusive<c10d::PrefixStore>(text(prefix, prefix_length), tcp)};
  });
}

void qf_store_close(Store* store) { delete store; }

char* qf_store_set(const Store* store, const char* key, size_t key_length, const uint8_t* value,
                   size_t length) {
  return protect([&] {
    store->store->set(text(key, key_length), std::vector<uint8_t>(value, value + length));
  });
}

// Waits for the key, `timeout_ms` at most; `out` is to be freed with qf_free_bytes.
char* qf_store_get(const Store* store, const char* key, size_t key_length, int64_t timeout_ms,
                   uint8_t** out, size_t* length) {
  return protect([&] {
    const auto name = text(key, key_length);
    store->store->wait({name}, milliseconds(timeout_ms));
    const auto value = store->store->get(name);
    *out = static_cast<uint8_t*>(malloc(value.size() + 1));
    TORCH_CHECK(*out, "out of memory");
    memcpy(*out, value.data(), value.size());
    *length = value.size();
  });
}

void qf_free_bytes(uint8_t* bytes) { free(bytes); }

char* qf_store_add(const Store* store, const char* key, size_t key_length, int64_t amount,
                   int64_t* out) {
  return protect([&] { *out = store->store->add(text(key, key_length), amount); });
}

char* qf_store_has(const Store* store, const char* key, size_t key_length, int* out) {
  return protect([&] { *out = store->store->check({text(key, key_length)}) ? 1 : 0; });
}

// --- Group --------------------------------------------------------------------------------------

// Joins the ranks: Gloo for tensors on the CPU, over `interface`, the address of `hostname`, or (both
// empty) the address of this machine's name; and what `make_nccl` (null for none) makes for those on
// a GPU.
char* qf_group_join(const Store* store, const char* prefix, size_t prefix_length, int rank, int size,
                    int64_t join_timeout_ms, int64_t timeout_ms, const char* interface,
                    size_t interface_length, const char* hostname, size_t hostname_length,
                    qf::MakeNccl* make_nccl, Group** out) {
  return protect([&] {
    const auto own = [&](const char* backend) -> intrusive_ptr<c10d::Store> {
      return c10::make_intrusive<c10d::PrefixStore>(text(prefix, prefix_length) + backend,
                                                    store->store);
    };
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(join_timeout_ms));
    if (interface_length > 0) {
      options->devices.push_back(
          c10d::ProcessGroupGloo::createDeviceForInterface(text(interface, interface_length)));
    } else if (hostname_length > 0) {
      options->devices.push_back(
          c10d::ProcessGroupGloo::createDeviceForHostname(text(hostname, hostname_length)));
    } else {
      options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    }
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(own("/gloo"), rank, size, options);
    set_timeout(*gloo, milliseconds(timeout_ms));
    auto group = c10::make_intrusive<c10d::ProcessGroup>(store->store, rank, size);
    group->setBackend(at::kCPU, c10d::ProcessGroup::GLOO, gloo);
    group->setDefaultBackend(c10d::ProcessGroup::GLOO);
    if (make_nccl) {
      intrusive_ptr<c10d::Backend> nccl;
      char* message = make_nccl(own("/nccl"), rank, size, timeout_ms, &nccl);
      if (message) {
        const std::string copy(message);
        free(message);
        TORCH_CHECK(false, copy);
      }
      group->setBackend(at::kCUDA, c10d::ProcessGroup::NCCL, nccl);
      group->setDefaultBackend(c10d::ProcessGroup::NCCL);
    }
    *out = new Group{group};
  });
}

void qf_group_leave(Group* group) { delete group; }

// [B, ...] of every rank → [W * B, ...]; differentiable if `with_grad`.
char* qf_group_gather(const Group* group, const Tensor* own, int with_grad, Tensor** out) {
  return protect([&] {
    *out = new Tensor(with_grad ? Gather::apply(*own, group->group)
                                : gather(*group->group, own->detach()));
  });
}

// Sum (0) or maximum (1) over all ranks, in place.
char* qf_group_reduce(const Group* group, Tensor* tensor, int operation) {
  return protect([&] {
    at::NoGradGuard no_grad;
    c10d::AllreduceOptions options;
    options.reduceOp = operation == 1 ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
    std::vector<Tensor> tensors{*tensor};
    finish(group->group->allreduce(tensors, options));
    was_written(tensors);
  });
}

// The tensors of rank `root` to all, in place, as few large messages.
char* qf_group_broadcast(const Group* group, Tensor* const* tensors, size_t count, int root) {
  return protect([&] {
    constexpr size_t MESSAGE_BYTES = 250 << 20;
    at::NoGradGuard no_grad;
    std::vector<Tensor> all;
    for (const Tensor& tensor : list(tensors, count)) all.push_back(tensor.detach());
    c10d::broadcast_coalesced(group->group, all, MESSAGE_BYTES, root);
    was_written(all);
  });
}

// Each tensor from the rank that owns it to all, in place: flat buckets of `bucket_bytes`, a few of
// them under way at once.
char* qf_group_share(const Group* group, Tensor* const* tensors, const int* owners, size_t count,
                     size_t bucket_bytes) {
  return protect([&] {
    // Bounds the memory of the flat copies.
    constexpr size_t UNDER_WAY = 8;
    at::NoGradGuard no_grad;
    c10d::ProcessGroup& ranks = *group->group;
    std::deque<Parcel> under_way;
    const auto arrive = [&] {
      under_way.front().arrive(ranks);
      under_way.pop_front();
    };
    for (Parcel& parcel : pack(list(tensors, count), owners, ranks.getSize(), bucket_bytes)) {
      if (under_way.size() == UNDER_WAY) arrive();
      parcel.send(ranks);
      under_way.push_back(std::move(parcel));
    }
    while (!under_way.empty()) arrive();
  });
}

// Sends tensors to the rank `to`, which receives them in this order. They travel by way of the host,
// where those of a GPU are copied a few at a time.
char* qf_group_send(const Group* group, Tensor* const* tensors, size_t count, int to) {
  return protect([&] {
    constexpr size_t UNDER_WAY = 8;
    at::NoGradGuard no_grad;
    std::deque<std::pair<Tensor, intrusive_ptr<c10d::Work>>> under_way;
    const auto arrive = [&] {
      finish(under_way.front().second);
      under_way.pop_front();
    };
    for (size_t i = 0; i < count; ++i) {
      if (under_way.size() == UNDER_WAY) arrive();
      std::vector<Tensor> sent{tensors[i]->detach().to(at::kCPU).contiguous()};
      under_way.emplace_back(sent[0], group->group->send(sent, to, static_cast<int>(i)));
    }
    while (!under_way.empty()) arrive();
  });
}

// Overwrites contiguous tensors on the host by what the ranks `from` send: from each in its order.
char* qf_group_receive(const Group* group, Tensor* const* tensors, const int* from, size_t count) {
  return protect([&] {
    at::NoGradGuard no_grad;
    std::vector<int> received(group->group->getSize());
    std::vector<intrusive_ptr<c10d::Work>> works;
    for (size_t i = 0; i < count; ++i) {
      TORCH_CHECK(tensors[i]->is_cpu() && tensors[i]->is_contiguous(), "no plain host memory");
      std::vector<Tensor> into{tensors[i]->detach()};
      works.push_back(group->group->recv(into, from[i], received.at(from[i])++));
    }
    for (const auto& work : works) finish(work);
    was_written(list(tensors, count));
  });
}

// The mean over all ranks of gradients, in place, after the backward pass: flat buckets of
// `bucket_bytes`, all under way at once.
char* qf_group_average(const Group* group, Tensor* const* gradients, size_t count,
                       size_t bucket_bytes) {
  return protect([&] {
    at::NoGradGuard no_grad;
    auto all = list(gradients, count);
    if (all.empty()) return;
    const auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(all, {bucket_bytes});
    std::vector<Tensor> flat;
    std::vector<intrusive_ptr<c10d::Work>> works;
    for (const auto& bucket : buckets) {
      std::vector<Tensor> parts;
      for (size_t index : bucket) parts.push_back(all[index].reshape({-1}));
      flat.push_back(at::cat(parts).div_(group->group->getSize()));
      std::vector<Tensor> tensors{flat.back()};
      works.push_back(group->group->allreduce(tensors));
    }
    for (size_t b = 0; b < buckets.size(); ++b) {
      finish(works[b]);
      int64_t at = 0;
      for (size_t index : buckets[b]) {
        Tensor& gradient = all[index];
        gradient.copy_(flat[b].narrow(0, at, gradient.numel()).view(gradient.sizes()));
        at += gradient.numel();
      }
    }
  });
}

// --- Reducer ------------------------------------------------------------------------------------

// How many of `params` the backward pass from `loss` gives no gradient.
char* qf_unreached(Tensor* const* params, size_t count, const Tensor* loss, size_t* out) {
  return protect([&] {
    using torch::autograd::Node;
    std::unordered_set<const Node*> seen;
    std::vector<const Node*> waiting;
    const auto reach = [&](const Node* node) {
      if (node && seen.insert(node).second) waiting.push_back(node);
    };
    reach(loss->grad_fn().get());
    while (!waiting.empty()) {
      const Node* node = waiting.back();
      waiting.pop_back();
      for (const auto& edge : node->next_edges()) reach(edge.function.get());
    }
    *out = 0;
    for (size_t i = 0; i < count; ++i) {
      const auto node = torch::autograd::impl::grad_accumulator(*params[i]);
      if (seen.count(node.get()) == 0) ++*out;
    }
  });
}

// Averages the gradients of `params`, which have none yet, over all ranks while the backward pass runs,
// in buckets of about `bucket_bytes`, the last parameters first: their gradients come first.
//
// With `may_miss` a pass may leave some without a gradient: each is then searched for them, and the
// ranks tell each other of theirs. Without, the reducer would arrange its buckets anew by the order in
// which the first pass gave gradients, and sums of many ranks could round otherwise from the second
// step on; a resumed run's first step would be none of those. So this happens here, by a pass
// of no consequence, which all ranks make.
char* qf_reducer_new(const Group* group, Tensor* const* params, size_t count, size_t bucket_bytes,
                     int may_miss, Reducer** out) {
  return protect([&] {
    const auto all = list(params, count);
    const std::vector<bool> sparse(count, false);
    const auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
        all, {static_cast<size_t>(c10d::kDefaultFirstBucketBytes), bucket_bytes}, sparse);
    std::vector<std::vector<size_t>> reversed(buckets.rbegin(), buckets.rend());
    auto reducer = std::make_unique<c10d::Reducer>(
        all, reversed, group->group, sparse, static_cast<int64_t>(bucket_bytes),
        /*find_unused_parameters=*/may_miss != 0, /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>(), c10d::kDefaultFirstBucketBytes,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
        std::vector<int64_t>());
    if (!may_miss) arrange_buckets(*reducer, all);
    *out = new Reducer{std::move(reducer)};
  });
}

void qf_reducer_free(Reducer* reducer) {
  // Its destructor may throw; there is nobody left to tell.
  char* message = protect([&] { delete reducer; });
  free(message);
}

// The next backward pass, from `loss`, is to average.
char* qf_reducer_prepare(const Reducer* reducer, const Tensor* loss) {
  return protect([&] {
    Quiet quiet;
    c10::WarningUtils::WarningHandlerGuard guard(&quiet);
    reducer->reducer->prepare_for_forward();
    reducer->reducer->prepare_for_backward({*loss});
  });
}

// After a backward pass that was to average: whether it has done so.
char* qf_reducer_check(const Reducer* reducer) {
  return protect([&] { reducer->reducer->check_finalized(); });
}

}  // extern "C"
