#include "kernels.h"

#include <cmath>
#include <cstring>

// One build for all x86-64 processors: the loader picks the copy that the processor can run.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QF_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define QF_CLONES
#endif
#define QF_INLINE static inline __attribute__((always_inline))

namespace qf {
namespace {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the
// generator of torch's CUDA dropout: LANES counters at a time, 4 numbers each.
constexpr int LANES = 16;
constexpr int DRAWS = 4 * LANES;

QF_INLINE void philox(uint64_t seed, uint64_t row, uint32_t block, uint32_t* draws) {
  uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
  for (int i = 0; i < LANES; ++i) {
    c0[i] = block * LANES + i;
    c1[i] = 0;
    c2[i] = static_cast<uint32_t>(row);
    c3[i] = static_cast<uint32_t>(row >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < LANES; ++i) {
      const uint64_t a = 0xD2511F53ull * c0[i], b = 0xCD9E8D57ull * c2[i];
      const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
      const uint32_t n2 = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<uint32_t>(b);
      c3[i] = static_cast<uint32_t>(a);
      c0[i] = n0;
      c2[i] = n2;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < LANES; ++i) {
    draws[i] = c0[i];
    draws[LANES + i] = c1[i];
    draws[2 * LANES + i] = c2[i];
    draws[3 * LANES + i] = c3[i];
  }
}

// Draws below this are dropped. At probability 1 all but 2^-32 of them.
QF_INLINE uint32_t threshold(float probability) {
  const double scaled = static_cast<double>(probability) * 4294967296.0;
  return scaled >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(scaled);
}

QF_INLINE float keep_scale(float probability) {
  return probability < 1.0f ? 1.0f / (1.0f - probability) : 0.0f;
}

// Calls f(first, count, factors): factors are 0 or 1 / (1 - p) for `count` columns from `first`.
template <class F>
QF_INLINE void for_factors(Dropout dropout, int64_t row, int64_t width, F f) {
  const uint32_t below = threshold(dropout.probability);
  const float scale = keep_scale(dropout.probability);
  uint32_t draws[DRAWS];
  float factors[DRAWS];
  for (int64_t first = 0; first < width; first += DRAWS) {
    philox(dropout.seed, static_cast<uint64_t>(row), static_cast<uint32_t>(first / DRAWS), draws);
    for (int i = 0; i < DRAWS; ++i) factors[i] = draws[i] < below ? 0.0f : scale;
    const int64_t count = width - first < DRAWS ? width - first : DRAWS;
    f(first, count, factors);
  }
}

// e^x to 2 units in the last place (the polynomial of Cephes' expf); 0 below -87.
QF_INLINE float exp_approx(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float n = std::nearbyintf(clamped * 1.44269504088896341f);
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

}  // namespace

QF_CLONES
void dropout_add_norm(const float* x, const float* residual, const float* weight, const float* bias,
                      float eps, Dropout dropout, int64_t width, int64_t begin, int64_t end,
                      float* out, float* normalized, float* rstd) {
  for (int64_t row = begin; row < end; ++row) {
    const float* xs = x + row * width;
    const float* rs = residual + row * width;
    float* sums = normalized ? normalized + row * width : out + row * width;
    if (dropout.probability > 0.0f) {
      for_factors(dropout, row, width, [&](int64_t first, int64_t count, const float* factors) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          sums[first + i] = xs[first + i] * factors[i] + rs[first + i];
        }
      });
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) sums[i] = xs[i] + rs[i];
    }
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < width; ++i) total += sums[i];
    const float mean = total / static_cast<float>(width);
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) {
      const float d = sums[i] - mean;
      squares += d * d;
    }
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    float* os = out + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float value = (sums[i] - mean) * inverse;
      if (normalized) sums[i] = value;
      os[i] = value * weight[i] + bias[i];
    }
    if (rstd) rstd[row] = inverse;
  }
}

QF_CLONES
void dropout_add_norm_backward(const float* grad, const float* normalized, const float* rstd,
                               const float* weight, Dropout dropout, int64_t width, int64_t begin,
                               int64_t end, float* grad_x, float* grad_residual, float* grad_weight,
                               float* grad_bias) {
  for (int64_t row = begin; row < end; ++row) {
    const float* gs = grad + row * width;
    const float* ns = normalized + row * width;
    float* out = grad_residual + row * width;
    float mean_g = 0.0f, mean_gn = 0.0f;
#pragma omp simd reduction(+ : mean_g, mean_gn)
    for (int64_t i = 0; i < width; ++i) {
      const float g = gs[i] * weight[i];
      mean_g += g;
      mean_gn += g * ns[i];
    }
    mean_g /= static_cast<float>(width);
    mean_gn /= static_cast<float>(width);
    const float inverse = rstd[row];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      grad_weight[i] += gs[i] * ns[i];
      grad_bias[i] += gs[i];
      out[i] = (gs[i] * weight[i] - mean_g - ns[i] * mean_gn) * inverse;
    }
    if (dropout.probability > 0.0f) {
      float* xs = grad_x + row * width;
      for_factors(dropout, row, width, [&](int64_t first, int64_t count, const float* factors) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) xs[first + i] = out[first + i] * factors[i];
      });
    }
  }
}

QF_CLONES
void dropout_rows(const float* x, Dropout dropout, int64_t width, int64_t begin, int64_t end,
                  float* out) {
  for (int64_t row = begin; row < end; ++row) {
    const float* xs = x + row * width;
    float* os = out + row * width;
    for_factors(dropout, row, width, [&](int64_t first, int64_t count, const float* factors) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) os[first + i] = xs[first + i] * factors[i];
    });
  }
}

QF_CLONES
void softmax_dropout(float* scores, const float* mask, int64_t heads, int64_t length,
                     int64_t mask_length, float scale, Dropout dropout, int64_t width,
                     int64_t begin, int64_t end, float* dropped) {
  for (int64_t row = begin; row < end; ++row) {
    float* xs = scores + row * width;
    if (mask) {
      const int64_t batch = row / (heads * length);
      const int64_t line = mask_length == 1 ? 0 : row % length;
      const float* ms = mask + (batch * mask_length + line) * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) xs[i] = xs[i] * scale + ms[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) xs[i] *= scale;
    }
    float largest = xs[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < width; ++i) largest = xs[i] > largest ? xs[i] : largest;
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < width; ++i) {
      const float e = exp_approx(xs[i] - largest);
      xs[i] = e;
      total += e;
    }
    const float inverse = 1.0f / total;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) xs[i] *= inverse;
    if (dropped) {
      float* ds = dropped + row * width;
      for_factors(dropout, row, width, [&](int64_t first, int64_t count, const float* factors) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) ds[first + i] = xs[first + i] * factors[i];
      });
    }
  }
}

QF_CLONES
void softmax_dropout_backward(float* grad, const float* probabilities, float scale, Dropout dropout,
                              int64_t width, int64_t begin, int64_t end, float* dropped) {
  for (int64_t row = begin; row < end; ++row) {
    float* gs = grad + row * width;
    const float* ps = probabilities + row * width;
    if (dropped) {
      float* ds = dropped + row * width;
      for_factors(dropout, row, width, [&](int64_t first, int64_t count, const float* factors) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          ds[first + i] = ps[first + i] * factors[i];
          gs[first + i] *= factors[i];
        }
      });
    }
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += gs[i] * ps[i];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) gs[i] = ps[i] * (gs[i] - sum) * scale;
  }
}

void split_rows(const float* rows, const int64_t* slots, int64_t length, int64_t heads,
                int64_t depth, int64_t begin, int64_t end, float* out) {
  const size_t bytes = static_cast<size_t>(depth) * sizeof(float);
  for (int64_t slot = begin; slot < end; ++slot) {
    const int64_t batch = slot / length, place = slot % length;
    const int64_t row = slots[slot];
    for (int64_t head = 0; head < heads; ++head) {
      float* to = out + ((batch * heads + head) * length + place) * depth;
      if (row < 0) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, rows + (row * heads + head) * depth, bytes);
      }
    }
  }
}

void merge_rows(const float* x, const int64_t* places, int64_t length, int64_t heads, int64_t depth,
                int64_t begin, int64_t end, float* out) {
  const size_t bytes = static_cast<size_t>(depth) * sizeof(float);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t slot = places[row];
    float* to = out + row * heads * depth;
    if (slot < 0) {
      std::memset(to, 0, bytes * static_cast<size_t>(heads));
      continue;
    }
    const int64_t batch = slot / length, place = slot % length;
    for (int64_t head = 0; head < heads; ++head) {
      std::memcpy(to + head * depth, x + ((batch * heads + head) * length + place) * depth, bytes);
    }
  }
}

}  // namespace qf
