//! The passes, in AVX2.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::lanczos::{Weights, GROUP, PLACES, VECTOR};
use super::plane::PITCH_UNIT;

const SHIFT: i32 = PLACES as i32;

/// As [`super::passes::columns`]; the caller has looked whether the processor has AVX2.
///
/// # Panics
/// If a row is shorter than the line.
pub(super) fn columns(rows: &[&[u8]], weights: &[i16], line: &mut [u8]) {
    assert!(rows.iter().all(|row| row.len() >= line.len()), "short rows");
    // SAFETY: the processor has AVX2, and rows are as long as the line.
    unsafe { columns_with_avx2(rows, weights, line) }
}

/// # Safety
/// Rows are as long as `line`.
#[target_feature(enable = "avx2")]
unsafe fn columns_with_avx2(rows: &[&[u8]], weights: &[i16], line: &mut [u8]) {
    let half = _mm256_set1_epi32(1 << (PLACES - 1));
    for (block, out) in line.chunks_exact_mut(PITCH_UNIT).enumerate() {
        let at = block * PITCH_UNIT;
        let mut sums = [half; 4];
        for (rows, weights) in rows.chunks_exact(2).zip(weights.chunks_exact(2)) {
            let pair = i32::from(weights[0] as u16) | i32::from(weights[1]) << 16;
            let pair = _mm256_set1_epi32(pair);
            for part in 0..2 {
                // SAFETY: `at + 32` is within the line, so within the rows.
                let (a, b) = unsafe {
                    let load = |row: &[u8]| {
                        let place = row.as_ptr().add(at + 16 * part).cast();
                        _mm256_cvtepu8_epi16(_mm_loadu_si128(place))
                    };
                    (load(rows[0]), load(rows[1]))
                };
                let low = _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair);
                let high = _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair);
                sums[2 * part] = _mm256_add_epi32(sums[2 * part], low);
                sums[2 * part + 1] = _mm256_add_epi32(sums[2 * part + 1], high);
            }
        }
        let shifted = sums.map(|sum| _mm256_srai_epi32::<SHIFT>(sum));
        let first = _mm256_packs_epi32(shifted[0], shifted[1]);
        let second = _mm256_packs_epi32(shifted[2], shifted[3]);
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(first, second));
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
    }
}

/// As [`super::passes::row`]; the caller has looked whether the processor has AVX2.
///
/// # Panics
/// If the line ends before the last weight, or `out` before the last group.
pub(super) fn row(line: &[u8], across: &Weights, out: &mut [u8]) {
    let entries = across.axis.size.next_multiple_of(GROUP);
    assert!(
        across.last_start + across.taps <= line.len(),
        "a short line"
    );
    assert!(
        across.starts.len() == entries && across.weights.len() == entries * across.taps,
        "another table"
    );
    // SAFETY: the processor has AVX2; of each result, all samples are within the line.
    unsafe { row_with_avx2(line, across, &mut out[..entries]) }
}

/// # Safety
/// From each start on, the line has as many samples as there are weights; the table has as many entries
/// as `out`, which are whole groups.
#[target_feature(enable = "avx2")]
unsafe fn row_with_avx2(line: &[u8], across: &Weights, out: &mut [u8]) {
    let half = _mm256_set1_epi32(1 << (PLACES - 1));
    let taps = across.taps;
    let groups = across.starts.chunks_exact(GROUP);
    let weights = across.weights.chunks_exact(GROUP * taps);
    for ((starts, weights), out) in groups.zip(weights).zip(out.chunks_exact_mut(GROUP)) {
        let mut sums = [_mm256_setzero_si256(); GROUP];
        for (at, sum) in sums.iter_mut().enumerate() {
            for tap in (0..taps).step_by(VECTOR) {
                // SAFETY: the line has `taps` samples from the start on; there are `GROUP × taps` weights.
                let (samples, weights) = unsafe {
                    let samples = line.as_ptr().add(starts[at] + tap).cast();
                    let weights = weights.as_ptr().add(at * taps + tap).cast();
                    (
                        _mm256_cvtepu8_epi16(_mm_loadu_si128(samples)),
                        _mm256_loadu_si256(weights),
                    )
                };
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(samples, weights));
            }
        }
        let four = |at: usize| {
            let first = _mm256_hadd_epi32(sums[at], sums[at + 1]);
            let second = _mm256_hadd_epi32(sums[at + 2], sums[at + 3]);
            _mm256_hadd_epi32(first, second)
        };
        let (first, second) = (four(0), four(4));
        let low = _mm256_permute2x128_si256::<0x20>(first, second);
        let high = _mm256_permute2x128_si256::<0x31>(first, second);
        let sum = _mm256_add_epi32(half, _mm256_add_epi32(low, high));
        let shifted = _mm256_srai_epi32::<SHIFT>(sum);
        let words = _mm256_packs_epi32(shifted, shifted);
        let bytes = _mm256_packus_epi16(words, words);
        // Four results in each half.
        let low = _mm256_extract_epi32::<0>(bytes).to_le_bytes();
        let high = _mm256_extract_epi32::<4>(bytes).to_le_bytes();
        out[..4].copy_from_slice(&low);
        out[4..].copy_from_slice(&high);
    }
}
