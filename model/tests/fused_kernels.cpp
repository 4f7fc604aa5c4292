// Runs the kernels of shim/fused.cu.inc on the CPU, a thread for each of a GPU's, and compares them with
// plain loops in f64. Compiled and started by fused_kernels.rs, which gives WIDTH and kernels.h.

#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

// --- What the kernels use of CUDA ----------------------------------------------------------------

struct float4 { float x, y, z, w; };
struct ushort4 { unsigned short x, y, z, w; };
struct uchar4 { unsigned char x, y, z, w; };
struct Index { unsigned x; };

static thread_local Index threadIdx, blockIdx;
static Index blockDim, gridDim;
constexpr int THREADS = 128, WARP = 32;
static std::unique_ptr<std::barrier<>> block_barrier, warp_barriers[THREADS / WARP];
static float exchanged[THREADS / WARP][WARP];

static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
  return {x, y, z, w};
}
static float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static void __syncthreads() { block_barrier->arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float x, int offset) {
  const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  exchanged[warp][lane] = x;
  warp_barriers[warp]->arrive_and_wait();
  const float other = exchanged[warp][lane ^ static_cast<unsigned>(offset)];
  warp_barriers[warp]->arrive_and_wait();
  return other;
}

#define __device__ static
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static
#include "kernels.h"

static void launch(unsigned blocks, const std::function<void()>& kernel) {
  blockDim.x = THREADS;
  gridDim.x = blocks;
  for (unsigned block = 0; block < blocks; ++block) {
    block_barrier = std::make_unique<std::barrier<>>(THREADS);
    for (auto& warp : warp_barriers) warp = std::make_unique<std::barrier<>>(WARP);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < THREADS; ++i) {
      threads.emplace_back([&, i, block] {
        threadIdx.x = i;
        blockIdx.x = block;
        kernel();
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

// --- The comparison ------------------------------------------------------------------------------

static std::mt19937 generator(1);

static std::vector<float> numbers(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> all(count);
  for (auto& x : all) x = normal(generator);
  return all;
}

static std::vector<bf16> narrowed(std::vector<float>& all) {
  std::vector<bf16> low(all.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = widen(low[i] = narrow(all[i]));
  return low;
}

static void expect(const char* what, double worst, double bound) {
  printf("%s: %g of %g\n", what, worst, bound);
  if (!(worst <= bound)) exit(1);
}

int main() {
  // 12 rows, four of each of three groups of six.
  constexpr int M = 12, W = WIDTH;
  const Rows grouped{4, 6 * W, W}, dense{M, 0, W};
  const auto at = [](int row, int column) { return (row / 4) * 6 * W + (row % 4) * W + column; };
  const double eps = 1e-6;

  auto x = numbers(18 * W), branch = numbers(M * W), gain = numbers(W), shift = numbers(W);
  const auto low_branch = narrowed(branch);
  std::vector<float> sum(M * W), full(M * W), stats(2 * M);
  std::vector<bf16> low(M * W);
  launch(3, [&] {
    qf_add_norm(low_branch.data(), x.data(), grouped, gain.data(), shift.data(), 1e-6f, M, sum.data(),
                full.data(), low.data(), stats.data());
  });
  std::vector<double> normed(M * W), scale(M);
  double sums = 0, norms = 0, lows = 0;
  for (int r = 0; r < M; ++r) {
    double mean = 0, squares = 0;
    const auto total = [&](int c) { return double(x[at(r, c)]) + branch[r * W + c]; };
    for (int c = 0; c < W; ++c) mean += total(c) / W;
    for (int c = 0; c < W; ++c) squares += (total(c) - mean) * (total(c) - mean) / W;
    scale[r] = 1 / std::sqrt(squares + eps);
    for (int c = 0; c < W; ++c) {
      const int i = r * W + c;
      normed[i] = (total(c) - mean) * scale[r];
      sums = std::max(sums, std::abs(total(c) - sum[i]));
      norms = std::max(norms, std::abs(normed[i] * gain[c] + shift[c] - full[i]));
      // One rounding away from the result in 32 bits.
      lows = std::max(lows, std::abs(double(full[i]) - widen(low[i])) / (std::abs(full[i]) + 1e-30));
    }
  }
  expect("sum", sums, 1e-6);
  expect("norm", norms, 1e-5);
  expect("norm in 16 bits", lows, 1.0 / 256);

  auto grad_full = numbers(18 * W), grad_low = numbers(M * W);
  const auto low_grad = narrowed(grad_low);
  std::vector<byte> mask(M * W);
  for (auto& kept : mask) kept = generator() % 10 != 0;
  constexpr float factor = 1 / 0.9f;
  constexpr unsigned blocks = 2;
  std::vector<float> grad_x(M * W), partial(blocks * 3 * W);
  std::vector<bf16> grad_branch(M * W);
  for (const bool has_full : {true, false}) {
    launch(blocks, [&] {
      qf_add_norm_backward(has_full ? grad_full.data() : nullptr, grouped, low_grad.data(), dense,
                           sum.data(), stats.data(), gain.data(), mask.data(), factor, M,
                           grad_x.data(), grad_branch.data(), partial.data());
    });
    std::vector<double> by_gain(W), by_shift(W), by_bias(W);
    double to_x = 0, to_branch = 0, to_parameters = 0;
    for (int r = 0; r < M; ++r) {
      double a = 0, b = 0;
      const auto grad = [&](int c) {
        return (has_full ? double(grad_full[at(r, c)]) : 0.0) + grad_low[r * W + c];
      };
      for (int c = 0; c < W; ++c) {
        by_gain[c] += grad(c) * normed[r * W + c];
        by_shift[c] += grad(c);
        a += grad(c) * gain[c] / W;
        b += grad(c) * gain[c] * normed[r * W + c] / W;
      }
      for (int c = 0; c < W; ++c) {
        const int i = r * W + c;
        const double expected = scale[r] * (grad(c) * gain[c] - a - normed[i] * b);
        to_x = std::max(to_x, std::abs(expected - grad_x[i]));
        const double kept = mask[i] ? expected * factor : 0;
        by_bias[c] += kept;
        to_branch = std::max(to_branch, std::abs(kept - widen(grad_branch[i])) / (std::abs(kept) + 0.01));
      }
    }
    // The shares of both blocks on top of what is there.
    std::vector<float> totals[] = {std::vector<float>(W, 1.0f), std::vector<float>(W, 1.0f),
                                   std::vector<float>(W, 1.0f)};
    launch(3 * W / WARP, [&] {
      qf_add_shares(partial.data(), blocks, totals[0].data(), totals[1].data(), totals[2].data(), 1);
    });
    for (int c = 0; c < W; ++c) {
      to_parameters = std::max(to_parameters, std::abs(by_gain[c] + 1 - totals[0][c]));
      to_parameters = std::max(to_parameters, std::abs(by_shift[c] + 1 - totals[1][c]));
      to_parameters = std::max(to_parameters, std::abs(by_bias[c] + 1 - totals[2][c]));
    }
    expect("gradient of the rows", to_x, 1e-5);
    expect("gradient of the branch", to_branch, 1.0 / 128);
    expect("gradients of gain, shift and bias", to_parameters, 1e-4);
  }
}
