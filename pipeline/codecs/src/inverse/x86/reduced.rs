//! Blocks at half their size: four samples for eight, along a side.

use std::arch::x86_64::*;

use super::super::stretch::{HALF, SIDE};
use super::vectors::{
    as_shifted, clear_two_rows, difference, dot, one_row, sum, two_rows, CONSTANT_BITS, PASS_BITS,
};
use crate::huffman::Block;

const F_0_211: i32 = 1730;
const F_0_509: i32 = 4176;
const F_0_601: i32 = 4926;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_061: i32 = 8697;
const F_1_451: i32 = 11893;
const F_1_847: i32 = 15137;
const F_2_172: i32 = 17799;
const F_2_562: i32 = 20995;

/// What each pass shifts by.
const FIRST: i32 = CONSTANT_BITS - PASS_BITS + 1;
const SECOND: i32 = CONSTANT_BITS + PASS_BITS + 3 + 1;

/// Transforms two blocks, and leaves zeros; eight samples come to each of four rows, which are there.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pair(
    first: &mut Block,
    second: &mut Block,
    factors: &Block,
    rows: &mut [u8],
    pitch: usize,
) {
    let upper = _mm256_or_si256(two_rows(first, 4), two_rows(second, 4));
    let lower = _mm256_or_si256(two_rows(first, 6), two_rows(second, 6));
    let beyond = _mm256_or_si256(upper, lower);
    let samples = if _mm256_testz_si256(beyond, beyond) == 0 {
        both_passes::<true>(first, second, factors)
    } else {
        both_passes::<false>(first, second, factors)
    };
    for row in [0, 2, 4, 6] {
        clear_two_rows(first, row);
        clear_two_rows(second, row);
    }
    // Four rows of each block, one in each half.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let samples = _mm256_permutevar8x32_epi32(samples, order);
    let (upper, lower) = (
        _mm256_castsi256_si128(samples),
        _mm256_extracti128_si256::<1>(samples),
    );
    put(rows, upper);
    put(&mut rows[pitch..], _mm_unpackhi_epi64(upper, upper));
    put(&mut rows[2 * pitch..], lower);
    put(&mut rows[3 * pitch..], _mm_unpackhi_epi64(lower, lower));
}

/// The first eight.
#[inline]
#[target_feature(enable = "avx2")]
fn put(place: &mut [u8], samples: __m128i) {
    let place = &mut place[..2 * HALF];
    // SAFETY: it has as many bytes.
    unsafe { _mm_storel_epi64(place.as_mut_ptr().cast(), samples) }
}

/// A row of two blocks, multiplied with its factors.
#[target_feature(enable = "avx2")]
fn row(first: &Block, second: &Block, factors: &Block, number: usize) -> __m256i {
    let rows = _mm256_set_m128i(one_row(second, number), one_row(first, number));
    _mm256_mullo_epi16(rows, _mm256_broadcastsi128_si256(one_row(factors, number)))
}

/// The first row; the fifth is not looked at.
#[target_feature(enable = "avx2")]
fn first_row(first: &Block, second: &Block, factors: &Block) -> __m256i {
    let row = row(first, second, factors, 0);
    as_shifted([first, second], row, |block| {
        let others = block[SIDE..4 * SIDE].iter().chain(&block[5 * SIDE..]);
        others.into_iter().all(|&coefficient| coefficient == 0)
    })
}

/// The upper 16 bits of 32, moved to where the constants have their point, and one more.
#[target_feature(enable = "avx2")]
fn first_term(interleaved_with_zeros: __m256i) -> __m256i {
    _mm256_srai_epi32::<{ 16 - CONSTANT_BITS - 1 }>(interleaved_with_zeros)
}

/// The four results of a pass.
#[target_feature(enable = "avx2")]
fn butterflies<const SHIFT: i32>(
    first: __m256i,
    two_six: __m256i,
    [inner, outer]: [__m256i; 2],
) -> [__m256i; HALF] {
    let first = sum(first, _mm256_set1_epi32(1 << (SHIFT - 1)));
    let (a, b) = (sum(first, two_six), difference(first, two_six));
    [
        sum(a, outer),
        sum(b, inner),
        difference(b, inner),
        difference(a, outer),
    ]
    .map(|result| _mm256_srai_epi32::<SHIFT>(result))
}

/// What inputs 1 and 3 add to the inner and to the outer results.
#[target_feature(enable = "avx2")]
fn one_three(pairs: __m256i) -> [__m256i; 2] {
    [dot(pairs, F_1_061, -F_2_172), dot(pairs, F_2_562, F_0_899)]
}

/// What inputs 5 and 7 add.
#[target_feature(enable = "avx2")]
fn five_seven(pairs: __m256i) -> [__m256i; 2] {
    [
        dot(pairs, F_1_451, -F_0_211),
        dot(pairs, -F_0_601, -F_0_509),
    ]
}

/// One pass. Inputs come in pairs: zeros with 0; 2 with 6; 1 with 3; 5 with 7.
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>([first, two_six, odd_low, odd_high]: [__m256i; 4]) -> [__m256i; HALF] {
    let (low, high) = (one_three(odd_low), five_seven(odd_high));
    let odd = [sum(low[0], high[0]), sum(low[1], high[1])];
    butterflies::<SHIFT>(first_term(first), dot(two_six, F_1_847, -F_0_765), odd)
}

/// Both passes, to 4 × 4 samples of each block: bytes in the halves, row by row. Without `LOWER`, rows 4
/// to 7 hold zeros.
#[target_feature(enable = "avx2")]
fn both_passes<const LOWER: bool>(first: &Block, second: &Block, factors: &Block) -> __m256i {
    let zero = _mm256_setzero_si256();
    let upper = |number| row(first, second, factors, number);
    let lower = |number| if LOWER { upper(number) } else { zero };
    let (r0, r1, r2, r3) = (
        first_row(first, second, factors),
        upper(1),
        upper(2),
        upper(3),
    );
    let pairs = [(zero, r0), (r2, lower(6)), (r1, r3), (lower(5), lower(7))];
    let left = pass::<FIRST>(pairs.map(|(a, b)| _mm256_unpacklo_epi16(a, b)));
    let right = pass::<FIRST>(pairs.map(|(a, b)| _mm256_unpackhi_epi16(a, b)));
    let [a, b, c, d]: [__m256i; HALF] =
        std::array::from_fn(|row| _mm256_packs_epi32(left[row], right[row]));
    // Columns of four rows, two in a vector.
    let (ab, cd) = (_mm256_unpacklo_epi16(a, b), _mm256_unpacklo_epi16(c, d));
    let (zero_one, two_three) = (_mm256_unpacklo_epi32(ab, cd), _mm256_unpackhi_epi32(ab, cd));
    let (ab, cd) = (_mm256_unpackhi_epi16(a, b), _mm256_unpackhi_epi16(c, d));
    let (four_five, six_seven) = (_mm256_unpacklo_epi32(ab, cd), _mm256_unpackhi_epi32(ab, cd));
    let [c0, c1, c2, c3] = pass::<SECOND>([
        _mm256_unpacklo_epi16(zero, zero_one),
        _mm256_unpacklo_epi16(two_three, six_seven),
        _mm256_unpackhi_epi16(zero_one, two_three),
        _mm256_unpackhi_epi16(four_five, six_seven),
    ]);
    let even = _mm256_packs_epi32(c0, c2);
    let odd = _mm256_packs_epi32(c1, c3);
    let left = _mm256_unpacklo_epi16(even, odd);
    let right = _mm256_unpackhi_epi16(even, odd);
    let upper = _mm256_unpacklo_epi32(left, right);
    let lower = _mm256_unpackhi_epi32(left, right);
    _mm256_xor_si256(_mm256_packs_epi16(upper, lower), _mm256_set1_epi8(-128))
}
