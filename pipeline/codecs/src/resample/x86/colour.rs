//! Strips of components to units of red, green and blue, in AVX2.
//!
//! Rows are transposed first: a vector holds a column of sixteen rows, 16 bits each. Upsampling
//! and colour conversion work on such columns, so what would be neighbours within a vector are vectors of
//! their own, and the results are interleaved as [`super`] wants them and nowhere else.
//!
//! The arithmetic is libjpeg's, to the last bit: its smooth upsampling (`jdsample.c`, weights 3/4 and 1/4)
//! and JFIF's conversion (`jdcolor.c`). Chroma is centred at zero throughout, which shifts no rounding.

use std::arch::x86_64::*;

use crate::strip::{ComponentStrip, CHROMA_BEFORE, LUMA_BEFORE, STRIP_ROWS};

/// Columns that are done at a time.
const GROUP: usize = 16;

/// Vectors of a unit of pixels: 3 channels, 2 halves of the rows.
const UNIT: usize = 6;

/// Units of a group.
const GROUP_UNITS: usize = GROUP / 2;

/// Units before a strip's first, where chroma is halved across: upsampling is late by one column, and the
/// first needs the one before.
const UNITS_BEFORE: usize = LUMA_BEFORE / 2;
const _: () = assert!(UNITS_BEFORE == CHROMA_BEFORE + 1);

/// A column of sixteen rows.
type Column = __m256i;

/// The first row of each lane; the fifth below it is in the upper half. Interleaved columns then have
/// rows 0–3 and 4–7, and 8–11 and 12–15.
const LANES: [usize; 8] = [0, 1, 2, 3, 8, 9, 10, 11];

/// Units that a strip of so many pixels takes in the tile.
pub(super) fn units_len(width: usize) -> usize {
    (width.div_ceil(2) + UNITS_BEFORE).next_multiple_of(GROUP_UNITS)
}

/// Turns a strip of `width` pixels; returns at which vector of `tile` it begins. None if its rows or the
/// tile are too short. The caller has looked whether the processor has AVX2.
pub(super) fn turn_components(
    strip: &ComponentStrip<'_>,
    width: usize,
    tile: &mut [__m256i],
) -> Option<usize> {
    // SAFETY: the processor has AVX2.
    unsafe {
        match (strip.halved.across, strip.halved.down) {
            (false, false) => turn::<false, false>(strip, width, tile),
            (true, false) => turn::<true, false>(strip, width, tile),
            (false, true) => turn::<false, true>(strip, width, tile),
            (true, true) => turn::<true, true>(strip, width, tile),
        }
    }
}

#[target_feature(enable = "avx2")]
fn turn<const ACROSS: bool, const DOWN: bool>(
    strip: &ComponentStrip<'_>,
    width: usize,
    tile: &mut [__m256i],
) -> Option<usize> {
    let before = if ACROSS { UNITS_BEFORE } else { 0 };
    let groups = (width.div_ceil(2) + before).div_ceil(GROUP_UNITS);
    let chroma_step = if ACROSS { GROUP / 2 } else { GROUP };
    let luma = Lines::new(&strip.luma, groups * GROUP)?;
    let [blue, red] = strip.chroma.each_ref();
    let blue = Lines::new(blue, groups * chroma_step)?;
    let red = Lines::new(red, groups * chroma_step)?;
    let tile = tile.get_mut(..groups * GROUP_UNITS * UNIT)?;
    let zero = _mm256_setzero_si256();
    let mut late = [[zero; 2]; 2];
    for (group, units) in tile.chunks_exact_mut(GROUP_UNITS * UNIT).enumerate() {
        let luma = luma.units(group * GROUP);
        let at = group * chroma_step;
        let blue = chroma::<ACROSS, DOWN>(&blue, at, &mut late[0]);
        let red = chroma::<ACROSS, DOWN>(&red, at, &mut late[1]);
        for (number, unit) in units.chunks_exact_mut(UNIT).enumerate() {
            let [even, odd] = split(luma[number]);
            let even = rgb(even, blue[number][0], red[number][0]);
            let odd = rgb(odd, blue[number][1], red[number][1]);
            for channel in 0..3 {
                put(even[channel], odd[channel], &mut unit[2 * channel..]);
            }
        }
    }
    Some(before * UNIT)
}

/// Rows that have so many samples at least.
struct Lines<'a> {
    rows: [&'a [u8]; STRIP_ROWS],
    len: usize,
}

impl<'a> Lines<'a> {
    fn new(rows: &[&'a [u8]; STRIP_ROWS], len: usize) -> Option<Lines<'a>> {
        let rows = *rows;
        let are_long = rows.iter().all(|row| row.len() >= len);
        are_long.then_some(Lines { rows, len })
    }

    /// Sixteen columns from here on, as eight pairs: the first of a pair is the lower byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn units(&self, at: usize) -> [Column; GROUP_UNITS] {
        assert!(at + 16 <= self.len);
        let mut rows = [_mm256_setzero_si256(); 8];
        for (both, row) in rows.iter_mut().zip(LANES) {
            // SAFETY: the rows have 16 bytes from there on.
            *both = unsafe {
                let low = _mm_loadu_si128(self.rows[row].as_ptr().add(at).cast());
                let high = _mm_loadu_si128(self.rows[row + 4].as_ptr().add(at).cast());
                _mm256_set_m128i(high, low)
            };
        }
        transposed(rows)
    }

    /// Eight columns from here on, centred. Rows in the lower halves, and those in the upper: of
    /// [`LANES`], and four below them; or the first eight, and two below them, where rows are `HALVED`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn centred<const HALVED: bool>(&self, at: usize) -> [__m256i; 8] {
        assert!(at + 8 <= self.len);
        let mut rows = [_mm256_setzero_si256(); 8];
        for (number, both) in rows.iter_mut().enumerate() {
            let (low, high) = match HALVED {
                true => (number, number + 2),
                false => (LANES[number], LANES[number] + 4),
            };
            // SAFETY: the rows have 8 bytes from there on.
            let bytes = unsafe {
                let low = _mm_loadl_epi64(self.rows[low].as_ptr().add(at).cast());
                let high = _mm_loadl_epi64(self.rows[high].as_ptr().add(at).cast());
                _mm_unpacklo_epi64(low, high)
            };
            *both = _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), _mm256_set1_epi16(128));
        }
        rows
    }
}

/// The columns of a group of chroma in pairs, at full size. Where it is halved across, what comes is one
/// pair behind `at`, and `late` has the two columns before it.
#[inline]
#[target_feature(enable = "avx2")]
fn chroma<const ACROSS: bool, const DOWN: bool>(
    lines: &Lines<'_>,
    at: usize,
    late: &mut [Column; 2],
) -> [[Column; 2]; GROUP_UNITS] {
    let mut pairs = [[_mm256_setzero_si256(); 2]; GROUP_UNITS];
    if ACROSS {
        let columns = columns::<true, DOWN>(lines, at);
        // Where rows were upsampled too, values are four times as large.
        let (even_half, odd_half) = if DOWN {
            (half(8), half(7))
        } else {
            (half(1), half(2))
        };
        let [mut before, mut current] = *late;
        for (pair, next) in pairs.iter_mut().zip(columns) {
            let near = thrice(current);
            let even = add(add(near, even_half), before);
            let odd = add(add(near, odd_half), next);
            *pair = match DOWN {
                true => [_mm256_srai_epi16::<4>(even), _mm256_srai_epi16::<4>(odd)],
                false => [_mm256_srai_epi16::<2>(even), _mm256_srai_epi16::<2>(odd)],
            };
            (before, current) = (current, next);
        }
        *late = [before, current];
    } else if DOWN {
        let low = columns::<false, true>(lines, at);
        let high = columns::<false, true>(lines, at + 8);
        for at in 0..GROUP_UNITS / 2 {
            pairs[at] = [low[2 * at], low[2 * at + 1]];
            pairs[GROUP_UNITS / 2 + at] = [high[2 * at], high[2 * at + 1]];
        }
    } else {
        let middle = _mm256_set1_epi16(128);
        for (pair, unit) in pairs.iter_mut().zip(lines.units(at)) {
            let [even, odd] = split(unit);
            *pair = [
                _mm256_sub_epi16(even, middle),
                _mm256_sub_epi16(odd, middle),
            ];
        }
    }
    pairs
}

/// Eight columns of chroma, upsampled over rows. Where columns are upsampled too, four times as large.
#[inline]
#[target_feature(enable = "avx2")]
fn columns<const ACROSS: bool, const DOWN: bool>(lines: &Lines<'_>, at: usize) -> [Column; 8] {
    if !DOWN {
        return transposed(lines.centred::<false>(at));
    }
    // The first row is the one above the strip's own.
    let rows = lines.centred::<true>(at);
    let mut mixed = [_mm256_setzero_si256(); 8];
    for (lane, mixed) in mixed.iter_mut().enumerate() {
        let near = lane / 4 * 4 + 1 + lane % 4 / 2;
        let far = if lane % 2 == 0 { near - 1 } else { near + 1 };
        let sum = add(thrice(rows[near]), rows[far]);
        *mixed = match ACROSS {
            true => sum,
            false => _mm256_srai_epi16::<2>(add(sum, half(1 + lane as i16 % 2))),
        };
    }
    transposed(mixed)
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi16(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
fn thrice(a: __m256i) -> __m256i {
    add(add(a, a), a)
}

/// What is added before a shift, to round.
#[inline]
#[target_feature(enable = "avx2")]
fn half(number: i16) -> __m256i {
    _mm256_set1_epi16(number)
}

/// The columns of a pair.
#[inline]
#[target_feature(enable = "avx2")]
fn split(unit: Column) -> [Column; 2] {
    [
        _mm256_and_si256(unit, _mm256_set1_epi16(0xff)),
        _mm256_srli_epi16::<8>(unit),
    ]
}

/// Red, green and blue of a column.
#[inline]
#[target_feature(enable = "avx2")]
fn rgb(luma: Column, blue: Column, red: Column) -> [Column; 3] {
    // 1.402 and 1.772 with 16 places, less the whole part; the products are rounded.
    let part = _mm256_mulhrs_epi16(red, _mm256_set1_epi16(13_173));
    let r = add(luma, add(red, part));
    let part = _mm256_mulhrs_epi16(blue, _mm256_set1_epi16(-7_471));
    let b = add(luma, add(add(blue, blue), part));
    // −0.34414 and 1 − 0.71414.
    let weights = _mm256_set1_epi32((18_734 << 16) | (-22_554 & 0xffff));
    let half = _mm256_set1_epi32(1 << 15);
    let low = _mm256_madd_epi16(_mm256_unpacklo_epi16(blue, red), weights);
    let high = _mm256_madd_epi16(_mm256_unpackhi_epi16(blue, red), weights);
    let part = _mm256_packs_epi32(
        _mm256_srai_epi32::<16>(_mm256_add_epi32(low, half)),
        _mm256_srai_epi32::<16>(_mm256_add_epi32(high, half)),
    );
    let g = add(luma, _mm256_sub_epi16(part, red));
    [r, g, b]
}

/// Puts two columns as a unit, clipped to 8 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn put(even: Column, odd: Column, place: &mut [__m256i]) {
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,
    ));
    let bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(even, odd), order);
    let zero = _mm256_setzero_si256();
    place[0] = _mm256_unpacklo_epi8(bytes, zero);
    place[1] = _mm256_unpackhi_epi8(bytes, zero);
}

/// Eight rows of eight values in each half, as eight columns.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed([a, b, c, d, e, f, g, h]: [__m256i; 8]) -> [Column; 8] {
    let (ab, ab_high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    let (cd, cd_high) = (_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
    let (ef, ef_high) = (_mm256_unpacklo_epi16(e, f), _mm256_unpackhi_epi16(e, f));
    let (gh, gh_high) = (_mm256_unpacklo_epi16(g, h), _mm256_unpackhi_epi16(g, h));
    let mut columns = [_mm256_setzero_si256(); 8];
    for (columns, [ab, cd, ef, gh]) in columns
        .chunks_exact_mut(4)
        .zip([[ab, cd, ef, gh], [ab_high, cd_high, ef_high, gh_high]])
    {
        let (upper, upper_high) = (_mm256_unpacklo_epi32(ab, cd), _mm256_unpackhi_epi32(ab, cd));
        let (lower, lower_high) = (_mm256_unpacklo_epi32(ef, gh), _mm256_unpackhi_epi32(ef, gh));
        columns[0] = _mm256_unpacklo_epi64(upper, lower);
        columns[1] = _mm256_unpackhi_epi64(upper, lower);
        columns[2] = _mm256_unpacklo_epi64(upper_high, lower_high);
        columns[3] = _mm256_unpackhi_epi64(upper_high, lower_high);
    }
    columns
}
