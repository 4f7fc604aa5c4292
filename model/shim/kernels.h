// Loops over rows of 32-bit floats, without torch: each call does the rows [begin, end), so that
// the caller shares them out between threads.
#pragma once

#include <cstdint>

namespace qf {

// Dropout whose mask is a function of (seed, row, column): the backward pass draws it again instead
// of keeping it. probability 0 switches it off.
struct Dropout {
  uint64_t seed;
  float probability;
};

// out = norm(dropout(x) + residual) * weight + bias over rows of `width`. `normalized` and `rstd`
// (one per row) are what the backward pass needs; both may be null.
void dropout_add_norm(const float* x, const float* residual, const float* weight, const float* bias,
                      float eps, Dropout dropout, int64_t width, int64_t begin, int64_t end,
                      float* out, float* normalized, float* rstd);

// Gradients of the above. grad_weight and grad_bias are added to.
void dropout_add_norm_backward(const float* grad, const float* normalized, const float* rstd,
                               const float* weight, Dropout dropout, int64_t width, int64_t begin,
                               int64_t end, float* grad_x, float* grad_residual, float* grad_weight,
                               float* grad_bias);

// out = dropout(x) over rows of `width`; its own backward.
void dropout_rows(const float* x, Dropout dropout, int64_t width, int64_t begin, int64_t end,
                  float* out);

// scores → softmax(scores * scale + mask) in place, and the same after dropout into `dropped`
// (null without dropout). Rows are [batch, heads, length] of `width` keys; the additive mask
// (null for none) is [batch, mask_length, width] with mask_length 1 or `length`.
void softmax_dropout(float* scores, const float* mask, int64_t heads, int64_t length,
                     int64_t mask_length, float scale, Dropout dropout, int64_t width,
                     int64_t begin, int64_t end, float* dropped);

// grad of the dropped probabilities → grad of the scores, in place; writes the dropped
// probabilities again into `dropped` (null without dropout).
void softmax_dropout_backward(float* grad, const float* probabilities, float scale, Dropout dropout,
                              int64_t width, int64_t begin, int64_t end, float* dropped);

// Row slots[r * length + l] of `rows` [M, heads * depth] → out [R, heads, length, depth], zeros for
// a slot of -1; begin and end count slots.
void split_rows(const float* rows, const int64_t* slots, int64_t length, int64_t heads,
                int64_t depth, int64_t begin, int64_t end, float* out);

// The inverse: slot places[m] of x [R, heads, length, depth] → out [M, heads * depth], zeros for a
// place of -1; begin and end count rows.
void merge_rows(const float* x, const int64_t* places, int64_t length, int64_t heads, int64_t depth,
                int64_t begin, int64_t end, float* out);

}  // namespace qf
