//! Pillow's bicubic resize of 8-bit RGB, to the bit (`src/libImaging/Resample.c` of Pillow 12): weights in
//! f64 rounded to 22 binary places, sums in i32, each pass rounded and clipped to u8, the upright
//! picture's rows first.
//!
//! Evaluation goes through it: published figures were measured on Pillow's pixels. Training's resampler
//! has weights of 16 bits, which puts a value in a hundred off by 1.

use qf_codecs::resample::Area;

use crate::decode::DecodedCrop;

/// Binary places of a weight.
const PRECISION: u32 = 22;

/// Pixels to each side of an output pixel that have an influence, where nothing is reduced.
const SUPPORT: f64 = 2.0;

/// Pillow's bicubic kernel, a = −0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// What the outputs along one side are sums of.
#[derive(Debug, Default)]
struct Taps {
    /// Of each output: its first input, and where its weights begin and end.
    outputs: Vec<(usize, usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    /// `size` outputs of `span` of `len` inputs from `start` on. With `flipped`, the inputs are counted from
    /// the far end: the first output is at the end of the last input.
    fn set(&mut self, len: usize, (start, span): (f64, f64), size: usize, flipped: bool) {
        let start = match flipped {
            true => len as f64 - (start + span),
            false => start,
        };
        let scale = span / size as f64;
        let reduction = scale.max(1.0);
        let support = SUPPORT * reduction;
        self.outputs.clear();
        self.weights.clear();
        for output in 0..size {
            let center = start + (output as f64 + 0.5) * scale;
            // The casts cut off, and below 0 saturate.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(len);
            let count = end.saturating_sub(first);
            let weight =
                |at: usize| bicubic(((at + first) as f64 - center + 0.5) * (1.0 / reduction));
            let sum: f64 = (0..count).map(weight).sum();
            let begin = self.weights.len();
            self.weights.extend((0..count).map(|at| {
                let weight = if sum == 0.0 {
                    weight(at)
                } else {
                    weight(at) / sum
                };
                let scaled = weight * f64::from(1u32 << PRECISION);
                // Rounded half away from zero.
                (scaled + 0.5f64.copysign(scaled)) as i32
            }));
            let first = match flipped {
                true => {
                    self.weights[begin..].reverse();
                    len - end
                }
                false => first,
            };
            self.outputs.push((first, begin, self.weights.len()));
        }
    }

    /// First input, and weights, of each output.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let outputs = self.outputs.iter();
        outputs.map(|&(first, begin, end)| (first, &self.weights[begin..end]))
    }
}

/// Rounds a sum and clips it.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// Rows of RGB, one each `stride` bytes, to as many rows of a pixel for each of `taps`.
fn along_rows(source: &[u8], stride: usize, rows: usize, taps: &Taps, out: &mut [u8]) {
    let lines = source.chunks(stride).take(rows);
    for (line, out) in lines.zip(out.chunks_exact_mut(taps.outputs.len() * 3)) {
        for ((first, weights), out) in taps.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [HALF; 3];
            for (pixel, &weight) in line[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * weight;
                }
            }
            out.copy_from_slice(&sums.map(clip));
        }
    }
}

/// Rows of `row_bytes` bytes, one each `stride` bytes, to a row for each of `taps`.
fn across_rows(
    source: &[u8],
    (stride, row_bytes): (usize, usize),
    taps: &Taps,
    sums: &mut Vec<i32>,
    out: &mut [u8],
) {
    sums.resize(row_bytes, 0);
    for ((first, weights), out) in taps.iter().zip(out.chunks_exact_mut(row_bytes)) {
        sums.fill(HALF);
        for (line, &weight) in source[first * stride..].chunks(stride).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(line) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(sums.iter()) {
            *out = clip(sum);
        }
    }
}

/// Resizes as Pillow does; holds the buffers it needs.
#[derive(Debug, Default)]
pub(super) struct PillowResizer {
    columns: Taps,
    rows: Taps,
    /// The crop after its first pass.
    halfway: Vec<u8>,
    sums: Vec<i32>,
}

impl PillowResizer {
    /// Resizes a crop to S × S, upright but for its transposition: `[S, S, 3]`, columns first if the crop is
    /// stored on its side.
    pub(super) fn resize(&mut self, decoded: &DecodedCrop<'_>, size: usize, out: &mut Vec<u8>) {
        let (hull, turn) = (decoded.hull, decoded.turn);
        let (width, height) = (hull.width as usize, hull.height as usize);
        let Area {
            left,
            top,
            width: across,
            height: down,
        } = decoded.crop;
        self.columns
            .set(width, (left, across), size, turn.flip_columns);
        self.rows.set(height, (top, down), size, turn.flip_rows);
        let stride = decoded.columns as usize * 3;
        let source = &decoded.pixels[hull.y as usize * stride + hull.x as usize * 3..];
        out.resize(size * size * 3, 0);
        let halfway = &mut self.halfway;
        if turn.transposed {
            halfway.resize(size * width * 3, 0);
            let line = (stride, width * 3);
            across_rows(source, line, &self.rows, &mut self.sums, halfway);
            along_rows(halfway, width * 3, size, &self.columns, out);
        } else {
            halfway.resize(height * size * 3, 0);
            along_rows(source, stride, height, &self.columns, halfway);
            let line = (size * 3, size * 3);
            across_rows(halfway, line, &self.rows, &mut self.sums, out);
        }
    }

    /// Bytes of its largest buffer.
    pub(super) fn kept_bytes(&self) -> usize {
        self.halfway.capacity()
    }
}
