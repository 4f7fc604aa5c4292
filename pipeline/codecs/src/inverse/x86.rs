//! Two blocks at a time, in AVX2: one in each half of a vector.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::stretch::{Stretch, HALF, SIDE};
use crate::huffman::Block;
use vectors::{
    as_shifted, clear_two_rows, difference, dot, one_row, sum, two_rows, CONSTANT_BITS, PASS_BITS,
};

pub(super) mod reduced;
mod vectors;

/// What each pass shifts by.
const FIRST: i32 = CONSTANT_BITS - PASS_BITS;
const SECOND: i32 = CONSTANT_BITS + PASS_BITS + 3;

const ONE: i32 = 1 << CONSTANT_BITS;

const F_0_298: i32 = 2446;
const F_0_390: i32 = 3196;
const F_0_541: i32 = 4433;
const F_0_765: i32 = 6270;
const F_0_899: i32 = 7373;
const F_1_175: i32 = 9633;
const F_1_501: i32 = 12299;
const F_1_847: i32 = 15137;
const F_1_961: i32 = 16069;
const F_2_053: i32 = 16819;
const F_2_562: i32 = 20995;
const F_3_072: i32 = 25172;

/// By which odd result (0 to 3), where inputs 5 and 7 are zeros: what inputs 1 and 3 are multiplied by.
const LOW_ODD: [[i32; 2]; 4] = [
    [F_1_501 - F_0_899 + F_1_175 - F_0_390, F_1_175],
    [F_1_175, F_3_072 - F_2_562 + F_1_175 - F_1_961],
    [F_1_175 - F_0_390, F_1_175 - F_2_562],
    [F_1_175 - F_0_899, F_1_175 - F_1_961],
];

/// As [`Stretch::transform`]. The caller has looked whether the processor has AVX2.
pub(super) fn transform(
    stretch: Stretch<'_>,
    side: usize,
    factors: &Block,
    memory: &mut [u8],
    pitch: usize,
) -> Option<()> {
    // SAFETY: the processor has AVX2.
    unsafe {
        match side {
            SIDE => each_with_avx2::<SIDE>(stretch, factors, memory, pitch),
            _ => each_with_avx2::<HALF>(stretch, factors, memory, pitch),
        }
    }
}

/// Transforms all pairs of a stretch, to `SAMPLES` samples of a block in a row.
#[target_feature(enable = "avx2")]
fn each_with_avx2<const SAMPLES: usize>(
    stretch: Stretch<'_>,
    factors: &Block,
    memory: &mut [u8],
    pitch: usize,
) -> Option<()> {
    let mut nothing = [0; SIDE * SIDE];
    stretch.each_pair(|first, second, number| {
        let rows = memory.get_mut(number * SAMPLES..)?;
        if rows.len() < (SAMPLES - 1) * pitch + 2 * SAMPLES {
            return None;
        }
        let second = second.unwrap_or(&mut nothing);
        match SAMPLES {
            SIDE => pair(first, second, factors, rows, pitch),
            _ => reduced::pair(first, second, factors, rows, pitch),
        }
        Some(())
    })
}

/// Transforms two blocks, and leaves zeros; 16 samples come to each of eight rows, which are there.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(first: &mut Block, second: &mut Block, factors: &Block, rows: &mut [u8], pitch: usize) {
    let [upper, middle, lower_upper, lower] =
        [0, 1, 2, 3].map(|at| _mm256_or_si256(two_rows(first, 2 * at), two_rows(second, 2 * at)));
    let lower = _mm256_or_si256(lower_upper, lower);
    let high_columns = _mm256_set1_epi64x(-1);
    let high_columns = _mm256_unpacklo_epi64(_mm256_setzero_si256(), high_columns);
    let beyond = _mm256_or_si256(
        lower,
        _mm256_and_si256(_mm256_or_si256(upper, middle), high_columns),
    );
    let columns = if _mm256_testz_si256(beyond, beyond) == 0 {
        let coefficients = dequantised(first, second, factors);
        for row in [0, 2, 4, 6] {
            clear_two_rows(first, row);
            clear_two_rows(second, row);
        }
        all(coefficients)
    } else {
        let but_one = _mm256_set_epi64x(-1, -1, -1, !0xffff);
        let others = _mm256_or_si256(_mm256_and_si256(upper, but_one), middle);
        if _mm256_testz_si256(others, others) != 0 {
            let samples =
                [&*first, &*second].map(|block| constant(block[0].wrapping_mul(factors[0])));
            (first[0], second[0]) = (0, 0);
            let samples = samples.map(|sample| _mm_set1_epi8(sample as i8));
            let row = _mm_unpacklo_epi64(samples[0], samples[1]);
            for number in 0..SIDE {
                put(&mut rows[number * pitch..], row);
            }
            return;
        }
        let coefficients = dequantised(first, second, factors);
        for row in [0, 2] {
            clear_two_rows(first, row);
            clear_two_rows(second, row);
        }
        low(coefficients)
    };
    put_samples(columns, rows, pitch);
}

/// The sample of a block that has its first coefficient alone.
fn constant(coefficient: i16) -> u8 {
    // libjpeg shifts 16 bits here; see `as_shifted`.
    let halfway = i32::from(coefficient << PASS_BITS);
    let sample = (halfway * ONE + (1 << (SECOND - 1))) >> SECOND;
    (sample.clamp(-128, 127) + 128) as u8
}

/// The first rows of two blocks, multiplied with their factors.
#[target_feature(enable = "avx2")]
fn dequantised<const ROWS: usize>(
    first: &Block,
    second: &Block,
    factors: &Block,
) -> [__m256i; ROWS] {
    let mut rows = std::array::from_fn(|row| {
        let rows = _mm256_set_m128i(one_row(second, row), one_row(first, row));
        let factors = _mm256_broadcastsi128_si256(one_row(factors, row));
        _mm256_mullo_epi16(rows, factors)
    });
    rows[0] = as_shifted([first, second], rows[0], |block| {
        block[SIDE..].iter().all(|&coefficient| coefficient == 0)
    });
    rows
}

/// The eight results of a pass from its even parts, with a half added, and its odd ones.
#[target_feature(enable = "avx2")]
fn butterflies<const SHIFT: i32>(even: [__m256i; 4], odd: [__m256i; 4]) -> [__m256i; SIDE] {
    std::array::from_fn(|at| {
        let result = match at {
            0..4 => sum(even[at], odd[at]),
            _ => difference(even[7 - at], odd[7 - at]),
        };
        _mm256_srai_epi32::<SHIFT>(result)
    })
}

/// One pass. Inputs come in pairs: the sum and the difference of 0 and 4; 2 with 6; 7 with 5; 3 with 1.
#[target_feature(enable = "avx2")]
fn pass<const SHIFT: i32>(
    [sum_difference, two_six, seven_five, three_one]: [__m256i; 4],
) -> [__m256i; SIDE] {
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let a = sum(dot(sum_difference, ONE, 0), half);
    let b = sum(dot(sum_difference, 0, ONE), half);
    let c = dot(two_six, F_0_541 + F_0_765, F_0_541);
    let d = dot(two_six, F_0_541, F_0_541 - F_1_847);
    let even = [sum(a, c), sum(b, d), difference(b, d), difference(a, c)];
    // Here and in the sum and the difference libjpeg adds 16 bits, and so do we.
    let z = _mm256_add_epi16(seven_five, three_one);
    let z3 = dot(z, F_1_175 - F_1_961, F_1_175);
    let z4 = dot(z, F_1_175, F_1_175 - F_0_390);
    let seven_one = _mm256_blend_epi16::<0b1010_1010>(seven_five, three_one);
    let three_five = _mm256_blend_epi16::<0b1010_1010>(three_one, seven_five);
    let odd = [
        sum(dot(seven_one, -F_0_899, F_1_501 - F_0_899), z4),
        sum(dot(three_five, F_3_072 - F_2_562, -F_2_562), z3),
        sum(dot(three_five, -F_2_562, F_2_053 - F_2_562), z4),
        sum(dot(seven_one, F_0_298 - F_0_899, -F_0_899), z3),
    ];
    butterflies::<SHIFT>(even, odd)
}

/// One pass where inputs 4 to 7 are zeros: 0 with 2, 1 with 3.
#[target_feature(enable = "avx2")]
fn low_pass<const SHIFT: i32>(even: __m256i, odd: __m256i) -> [__m256i; SIDE] {
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let even = [F_0_541 + F_0_765, F_0_541, -F_0_541, -F_0_541 - F_0_765]
        .map(|by| sum(dot(even, ONE, by), half));
    let odd = LOW_ODD.map(|by| dot(odd, by[0], by[1]));
    butterflies::<SHIFT>(even, odd)
}

/// Both passes: rows of coefficients to columns of samples, 16 bits each.
#[target_feature(enable = "avx2")]
fn all([r0, r1, r2, r3, r4, r5, r6, r7]: [__m256i; SIDE]) -> [__m256i; SIDE] {
    let sums = (_mm256_add_epi16(r0, r4), _mm256_sub_epi16(r0, r4));
    let pairs = [sums, (r2, r6), (r7, r5), (r3, r1)];
    let left = pass::<FIRST>(pairs.map(|(a, b)| _mm256_unpacklo_epi16(a, b)));
    let right = pass::<FIRST>(pairs.map(|(a, b)| _mm256_unpackhi_epi16(a, b)));
    // Columns in pairs (0 with 4, 2 with 6, 7 with 5, 3 with 1), then rows under each other.
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 1, 8, 9, 4, 5, 12, 13, 14, 15, 10, 11, 6, 7, 2, 3,
    ));
    let rows: [__m256i; SIDE] = std::array::from_fn(|row| {
        _mm256_shuffle_epi8(_mm256_packs_epi32(left[row], right[row]), order)
    });
    let upper = second_pass([rows[0], rows[1], rows[2], rows[3]]);
    let lower = second_pass([rows[4], rows[5], rows[6], rows[7]]);
    std::array::from_fn(|column| _mm256_packs_epi32(upper[column], lower[column]))
}

/// Over four rows of paired columns.
#[target_feature(enable = "avx2")]
fn second_pass(rows: [__m256i; SIDE / 2]) -> [__m256i; SIDE] {
    let [zero_four, two_six, seven_five, three_one] = turned(rows);
    let both = |even: i8, odd: i8| {
        let at = |unit: i8, half: i8| 4 * unit + 2 * half;
        let half = |unit: i8| {
            [
                at(unit, even),
                at(unit, even) + 1,
                at(unit, odd),
                at(unit, odd) + 1,
            ]
        };
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [0, 1, 2, 3].map(half);
        _mm256_broadcastsi128_si256(_mm_setr_epi8(
            a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p,
        ))
    };
    let zeros = _mm256_shuffle_epi8(zero_four, both(0, 0));
    let fours = _mm256_shuffle_epi8(zero_four, both(1, 1));
    let fours = _mm256_sign_epi16(fours, _mm256_set1_epi32((-1 << 16) | 1));
    let sum_difference = _mm256_add_epi16(zeros, fours);
    pass::<SECOND>([sum_difference, two_six, seven_five, three_one])
}

/// The same where only the first four rows and columns hold coefficients.
#[target_feature(enable = "avx2")]
fn low(rows: [__m256i; SIDE / 2]) -> [__m256i; SIDE] {
    let [r0, r1, r2, r3] = rows;
    let rows = low_pass::<FIRST>(_mm256_unpacklo_epi16(r0, r2), _mm256_unpacklo_epi16(r1, r3));
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
    ));
    let two: [__m256i; SIDE / 2] = std::array::from_fn(|at| {
        _mm256_shuffle_epi8(_mm256_packs_epi32(rows[2 * at], rows[2 * at + 1]), order)
    });
    let [upper, lower] = [(two[0], two[1]), (two[2], two[3])].map(|(a, b)| {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
        let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
        low_pass::<SECOND>(even, odd)
    });
    std::array::from_fn(|column| _mm256_packs_epi32(upper[column], lower[column]))
}

/// Four rows of four units of 32 bits, turned.
#[target_feature(enable = "avx2")]
fn turned([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let [ab, cd] =
        [(a, b), (c, d)].map(|(a, b)| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)));
    [
        _mm256_unpacklo_epi64(ab.0, cd.0),
        _mm256_unpackhi_epi64(ab.0, cd.0),
        _mm256_unpacklo_epi64(ab.1, cd.1),
        _mm256_unpackhi_epi64(ab.1, cd.1),
    ]
}

/// Columns of 16 bits as rows of bytes, the first block's beside the second's.
#[target_feature(enable = "avx2")]
fn put_samples(columns: [__m256i; SIDE], rows: &mut [u8], pitch: usize) {
    let middle = _mm256_set1_epi8(-128);
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,
    ));
    let two: [__m256i; SIDE / 2] = std::array::from_fn(|at| {
        let bytes = _mm256_packs_epi16(columns[2 * at], columns[2 * at + 1]);
        _mm256_shuffle_epi8(_mm256_xor_si256(bytes, middle), order)
    });
    let [left, right] = [(two[0], two[1]), (two[2], two[3])]
        .map(|(a, b)| [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]);
    let two_rows = [
        _mm256_unpacklo_epi32(left[0], right[0]),
        _mm256_unpackhi_epi32(left[0], right[0]),
        _mm256_unpacklo_epi32(left[1], right[1]),
        _mm256_unpackhi_epi32(left[1], right[1]),
    ];
    for (number, samples) in two_rows.into_iter().enumerate() {
        // The halves are the first block's two rows, and the second's.
        let [first, second] = [
            _mm256_castsi256_si128(samples),
            _mm256_extracti128_si256::<1>(samples),
        ];
        let upper = _mm_unpacklo_epi64(first, second);
        let lower = _mm_unpackhi_epi64(first, second);
        put(&mut rows[2 * number * pitch..], upper);
        put(&mut rows[(2 * number + 1) * pitch..], lower);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn put(place: &mut [u8], samples: __m128i) {
    let place = &mut place[..2 * SIDE];
    // SAFETY: it has as many bytes.
    unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), samples) }
}
