//! The passes, in AVX2.
//!
//! A unit is two neighbouring samples of a channel, 16 bits each: what one instruction multiplies
//! with a pair of weights and adds. A vector holds eight units.
//!
//! rows → `tile`: units of pixels side by side, for each sixteen rows → `halfway`: units of rows
//! one above the other → planes.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

mod colour;

use super::shape::Shape;
use super::weights::{Line, Weights};
use crate::strip::{ComponentStrip, STRIP_ROWS};
use colour::{turn_components, units_len};

/// Pairs of rows of a strip.
const PAIRS: usize = STRIP_ROWS / 2;

/// Pixels that are turned at once, and their bytes.
const GROUP: usize = 8;
const GROUP_BYTES: usize = 3 * GROUP;

/// Strips that `halfway` has room for beside what the next result needs.
const STRIPS_AHEAD: usize = 4;

/// Both passes over a part, and how far they have got.
#[derive(Clone, Debug, Default)]
pub(super) struct Passes {
    across: Weights,
    down: Weights,
    /// `[pairs of pixels, 3, 2]`: units of 16 rows.
    tile: Vec<__m256i>,
    /// `[pairs of rows, 3, entries / 8]`: units of 8 columns, of the pairs from `base` to `filled`.
    halfway: Vec<__m256i>,
    base: usize,
    filled: usize,
    /// The result's next row.
    next: usize,
}

impl Passes {
    pub(super) fn kept_bytes(&self) -> usize {
        size_of::<__m256i>() * (self.tile.capacity() + self.halfway.capacity())
            + self.across.kept_bytes()
            + self.down.kept_bytes()
    }

    /// Begins with a valid shape. The caller has looked whether the processor has AVX2.
    pub(super) fn begin(&mut self, shape: &Shape) {
        // SAFETY: the processor has AVX2.
        unsafe { self.begin_with_avx2(shape) }
    }

    /// Takes the next rows, which are there. The caller has looked whether the processor has AVX2.
    pub(super) fn push(
        &mut self,
        shape: &Shape,
        pixels: &[u8],
        stride: usize,
        rows: usize,
        planes: &mut [u8],
    ) {
        // SAFETY: the processor has AVX2.
        unsafe {
            // What is missing of a strip weighs nothing.
            let lines =
                std::array::from_fn(|row| &pixels[row.min(rows - 1) * stride..][..3 * shape.width]);
            turn(&lines, &mut self.tile);
            self.take_tile(shape, 0, planes);
        }
    }

    /// The same for components. Returns false, with nothing done, if rows of the strip are too short. The
    /// caller has looked whether the processor has AVX2.
    pub(super) fn push_components(
        &mut self,
        shape: &Shape,
        strip: &ComponentStrip<'_>,
        planes: &mut [u8],
    ) -> bool {
        let Some(from) = turn_components(strip, shape.width, &mut self.tile) else {
            return false;
        };
        // SAFETY: the processor has AVX2.
        unsafe { self.take_tile(shape, from, planes) };
        true
    }

    #[target_feature(enable = "avx2")]
    fn begin_with_avx2(&mut self, shape: &Shape) {
        let size = shape.size;
        let area = shape.area;
        self.across.set(&Line {
            before: shape.before.0,
            len: shape.width - shape.before.0,
            start: area.left,
            span: area.width,
            size,
            entries: size.next_multiple_of(8),
            reversed: shape.mirrored,
        });
        self.down.set(&Line {
            before: shape.before.1,
            len: shape.height - shape.before.1,
            start: area.top,
            span: area.height,
            size,
            entries: size,
            reversed: false,
        });
        let zero = _mm256_setzero_si256();
        let units = (shape.width.div_ceil(GROUP) * GROUP / 2).max(units_len(shape.width));
        let tile_len = units * 6;
        if self.tile.len() < tile_len {
            self.tile.resize(tile_len, zero);
        }
        let halfway_len = self.capacity() * pitch(shape);
        if self.halfway.len() < halfway_len {
            self.halfway.resize(halfway_len, zero);
        }
        (self.base, self.filled, self.next) = (0, 0, 0);
    }

    /// Pairs of rows that `halfway` has room for.
    fn capacity(&self) -> usize {
        self.down.pairs_each + STRIPS_AHEAD * PAIRS
    }

    /// Takes the strip that is in the tile, from this vector on.
    #[target_feature(enable = "avx2")]
    fn take_tile(&mut self, shape: &Shape, from: usize, planes: &mut [u8]) {
        let (size, pitch, capacity) = (shape.size, pitch(shape), self.capacity());
        let Passes {
            across,
            down,
            tile,
            halfway,
            ..
        } = self;
        let Some(&needed) = down.starts.get(self.next) else {
            return; // The result is complete.
        };
        if self.filled + PAIRS - self.base > capacity {
            // The next result may begin below what there is.
            let first = needed.min(self.filled);
            let kept = (first - self.base) * pitch..(self.filled - self.base) * pitch;
            halfway.copy_within(kept, 0);
            self.base = first;
        }
        let strip = &mut halfway[(self.filled - self.base) * pitch..][..PAIRS * pitch];
        let tile = &tile[from..];
        match across.pairs_each {
            2 => horizontal::<2>(across, tile, strip, pitch),
            3 => horizontal::<3>(across, tile, strip, pitch),
            4 => horizontal::<4>(across, tile, strip, pitch),
            5 => horizontal::<5>(across, tile, strip, pitch),
            6 => horizontal::<6>(across, tile, strip, pitch),
            7 => horizontal::<7>(across, tile, strip, pitch),
            8 => horizontal::<8>(across, tile, strip, pitch),
            _ => horizontal::<0>(across, tile, strip, pitch),
        }
        self.filled += PAIRS;
        while let Some(&start) = down.starts.get(self.next) {
            if start + down.pairs_each > self.filled {
                break;
            }
            let weights = &down.pairs[self.next * down.pairs_each..][..down.pairs_each];
            let row = match shape.upside_down {
                true => size - 1 - self.next,
                false => self.next,
            };
            for (channel, plane) in planes.chunks_exact_mut(size * size).enumerate() {
                let units = &halfway[(start - self.base) * pitch + channel * pitch / 3..];
                let out = &mut plane[row * size..][..size];
                vertical(weights, down.places, units, pitch, out);
            }
            self.next += 1;
        }
    }
}

/// Vectors of a pair of rows in `halfway`.
fn pitch(shape: &Shape) -> usize {
    3 * shape.size.next_multiple_of(8) / 8
}

/// Transposes a strip of rows: units of pixels 2k and 2k + 1 of a channel, of all rows, at
/// `tile[2 * (3 * k + channel)]` and the vector behind it.
#[target_feature(enable = "avx2")]
fn turn(rows: &[&[u8]; STRIP_ROWS], tile: &mut [__m256i]) {
    let width = rows[0].len();
    let whole = width / GROUP_BYTES;
    let mut groups = tile.chunks_exact_mut(GROUP / 2 * 6);
    for (group, units) in (0..whole).zip(&mut groups) {
        for (half, rows) in rows.chunks_exact(8).enumerate() {
            let bytes = std::array::from_fn(|row| {
                rows[row][group * GROUP_BYTES..]
                    .first_chunk()
                    .unwrap_or(&[0; GROUP_BYTES])
            });
            turn_group(bytes, half, units);
        }
    }
    let rest = whole * GROUP_BYTES;
    if rest < width {
        let mut padded = [[0; GROUP_BYTES]; STRIP_ROWS];
        for (padded, row) in padded.iter_mut().zip(rows) {
            padded[..width - rest].copy_from_slice(&row[rest..]);
        }
        if let Some(units) = groups.next() {
            for (half, rows) in padded.chunks_exact(8).enumerate() {
                turn_group(std::array::from_fn(|row| &rows[row]), half, units);
            }
        }
    }
}

/// Eight pixels of eight rows, to the first or second `half` of the units.
#[inline]
#[target_feature(enable = "avx2")]
fn turn_group(rows: [&[u8; GROUP_BYTES]; 8], half: usize, units: &mut [__m256i]) {
    const Z: i8 = -1;
    // Which bytes, from the 4th, 8th or none on, make four units: a sample, a zero, the sample three
    // bytes on, a zero.
    let picks = [
        _mm_setr_epi8(0, Z, 3, Z, 1, Z, 4, Z, 2, Z, 5, Z, 6, Z, 9, Z),
        _mm_setr_epi8(3, Z, 6, Z, 4, Z, 7, Z, 8, Z, 11, Z, 9, Z, 12, Z),
        _mm_setr_epi8(6, Z, 9, Z, 10, Z, 13, Z, 11, Z, 14, Z, 12, Z, 15, Z),
    ];
    for (part, (pick, units)) in picks.into_iter().zip(units.chunks_exact_mut(8)).enumerate() {
        let pick = _mm256_broadcastsi128_si256(pick);
        // Row r in the lower half, row r + 4 in the upper.
        let both = |row: usize| {
            let load = |row: usize| load(rows[row][4 * part..].first_chunk().unwrap_or(&[0; 16]));
            let both = _mm256_set_m128i(load(row + 4), load(row));
            _mm256_shuffle_epi8(both, pick)
        };
        let (a, b, c, d) = (both(0), both(1), both(2), both(3));
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        units[half] = _mm256_unpacklo_epi64(ab, cd);
        units[2 + half] = _mm256_unpackhi_epi64(ab, cd);
        let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        units[4 + half] = _mm256_unpacklo_epi64(ab, cd);
        units[6 + half] = _mm256_unpackhi_epi64(ab, cd);
    }
}

/// The horizontal pass over a strip: 8 pairs of rows, each `pitch` vectors. `EACH` is how many pairs of
/// pixels make a result, or 0 for any number.
#[target_feature(enable = "avx2")]
fn horizontal<const EACH: usize>(
    weights: &Weights,
    tile: &[__m256i],
    strip: &mut [__m256i],
    pitch: usize,
) {
    let each = if EACH == 0 { weights.pairs_each } else { EACH };
    let places = _mm_cvtsi32_si128(weights.places as i32);
    let half = _mm256_set1_epi32(1 << weights.places >> 1);
    let (zero, most) = (_mm256_setzero_si256(), _mm256_set1_epi16(255));
    let starts = weights.starts.chunks_exact(8);
    let pairs = weights.pairs.chunks_exact(8 * each);
    // Eight results of each channel, as units of rows.
    let mut results = [[zero; 8]; 3];
    for (block, (starts, pairs)) in starts.zip(pairs).enumerate() {
        for (at, (&start, pairs)) in starts.iter().zip(pairs.chunks_exact(each)).enumerate() {
            let units = &tile[6 * start..][..6 * each];
            let mut sums = [half; 6];
            for (units, &pair) in units.chunks_exact(6).zip(pairs) {
                let pair = _mm256_set1_epi32(pair);
                for (sum, &unit) in sums.iter_mut().zip(units) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(unit, pair));
                }
            }
            for (results, sums) in results.iter_mut().zip(sums.chunks_exact(2)) {
                let (low, high) = (
                    _mm256_sra_epi32(sums[0], places),
                    _mm256_sra_epi32(sums[1], places),
                );
                // Rows 0–3, 8–11, 4–7, 12–15.
                let rows = _mm256_packs_epi32(low, high);
                results[at] = _mm256_min_epi16(_mm256_max_epi16(rows, zero), most);
            }
        }
        for (channel, results) in results.iter().enumerate() {
            let turned = transposed(results);
            for (pair, turned) in [0, 1, 4, 5, 2, 3, 6, 7].into_iter().zip(turned) {
                strip[pair * pitch + channel * pitch / 3 + block] = turned;
            }
        }
    }
}

/// Eight vectors of eight units, transposed.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(v: &[__m256i; 8]) -> [__m256i; 8] {
    let low = |a, b| _mm256_unpacklo_epi32(v[a], v[b]);
    let high = |a, b| _mm256_unpackhi_epi32(v[a], v[b]);
    // Each holds, in either half, a row of the result's first or last four columns.
    let quarter = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let (a0, a1) = quarter(low(0, 1), low(2, 3));
    let (a2, a3) = quarter(high(0, 1), high(2, 3));
    let (b0, b1) = quarter(low(4, 5), low(6, 7));
    let (b2, b3) = quarter(high(4, 5), high(6, 7));
    let lower = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
    let upper = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
    [
        lower(a0, b0),
        lower(a1, b1),
        lower(a2, b2),
        lower(a3, b3),
        upper(a0, b0),
        upper(a1, b1),
        upper(a2, b2),
        upper(a3, b3),
    ]
}

/// A row of the result from pairs of rows, `pitch` vectors apart.
#[target_feature(enable = "avx2")]
fn vertical(weights: &[i32], places: u32, units: &[__m256i], pitch: usize, out: &mut [u8]) {
    let shift = _mm_cvtsi32_si128(places as i32);
    let half = _mm256_set1_epi32(1 << places >> 1);
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = |sums: [__m256i; 4]| {
        let [a, b, c, d] = sums.map(|sum| _mm256_sra_epi32(sum, shift));
        let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        _mm256_permutevar8x32_epi32(bytes, order)
    };
    let mut wide = out.chunks_exact_mut(64);
    let mut at = 0;
    for out in &mut wide {
        let [a, b, c, d, e, f, g, h] = sums::<8>(weights, half, &units[at..], pitch);
        let (left, right) = out.split_at_mut(32);
        if let (Some(left), Some(right)) = (left.first_chunk_mut(), right.first_chunk_mut()) {
            store(bytes([a, b, c, d]), left);
            store(bytes([e, f, g, h]), right);
        }
        at += 8;
    }
    let mut blocks = wide.into_remainder().chunks_exact_mut(32);
    for out in &mut blocks {
        let sums = sums::<4>(weights, half, &units[at..], pitch);
        if let Some(out) = out.first_chunk_mut() {
            store(bytes(sums), out);
        }
        at += 4;
    }
    for out in blocks.into_remainder().chunks_mut(8) {
        let [sum] = sums::<1>(weights, half, &units[at..], pitch);
        let mut ordered = [0; 32];
        store(bytes([sum, half, half, half]), &mut ordered);
        out.copy_from_slice(&ordered[..out.len()]);
        at += 1;
    }
}

/// What `N` vectors of units add up to.
#[inline]
#[target_feature(enable = "avx2")]
fn sums<const N: usize>(
    weights: &[i32],
    half: __m256i,
    units: &[__m256i],
    pitch: usize,
) -> [__m256i; N] {
    let mut sums = [half; N];
    for (&pair, row) in weights.iter().zip(units.chunks(pitch)) {
        let pair = _mm256_set1_epi32(pair);
        for (sum, &unit) in sums.iter_mut().zip(&row[..N]) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(unit, pair));
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are there.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: __m256i, out: &mut [u8; 32]) {
    // SAFETY: there is room for 32 bytes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
}
