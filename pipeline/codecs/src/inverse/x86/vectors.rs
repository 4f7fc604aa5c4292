//! Rows of two blocks as vectors, and their arithmetic.

use std::arch::x86_64::*;

use super::super::stretch::SIDE;
use crate::huffman::Block;

/// Bits behind the point of the constants, and of what the first pass gives.
pub(super) const CONSTANT_BITS: i32 = 13;

pub(super) const PASS_BITS: i32 = 2;

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn two_rows(block: &Block, row: usize) -> __m256i {
    let rows = &block[row * SIDE..][..2 * SIDE];
    // SAFETY: as long as a vector.
    unsafe { _mm256_loadu_si256(rows.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn clear_two_rows(block: &mut Block, row: usize) {
    let rows = &mut block[row * SIDE..][..2 * SIDE];
    // SAFETY: as long as a vector.
    unsafe { _mm256_storeu_si256(rows.as_mut_ptr().cast(), _mm256_setzero_si256()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn one_row(block: &Block, row: usize) -> __m128i {
    let row = &block[row * SIDE..][..SIDE];
    // SAFETY: as long as a vector.
    unsafe { _mm_loadu_si128(row.as_ptr().cast()) }
}

/// The first row where it holds values that no picture has: libjpeg shifts them out of 16 bits, in a
/// block without other rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn as_shifted(
    blocks: [&Block; 2],
    row: __m256i,
    has_no_other: impl Fn(&Block) -> bool,
) -> __m256i {
    let shifted = _mm256_srai_epi16::<PASS_BITS>(_mm256_slli_epi16::<PASS_BITS>(row));
    let lost = _mm256_xor_si256(row, shifted);
    if _mm256_testz_si256(lost, lost) != 0 {
        return row;
    }
    let [low, high] = blocks.map(|block| _mm_set1_epi8(if has_no_other(block) { -1 } else { 0 }));
    _mm256_blendv_epi8(row, shifted, _mm256_set_m128i(high, low))
}

/// Pairs of 16 bits, multiplied with a pair and added.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn dot(pairs: __m256i, even: i32, odd: i32) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi32((odd << 16) | (even & 0xffff)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn difference(a: __m256i, b: __m256i) -> __m256i {
    _mm256_sub_epi32(a, b)
}
