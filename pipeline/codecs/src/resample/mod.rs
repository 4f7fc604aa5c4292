//! Antialiased bicubic resizing of RGB crops to planes, for processors with AVX2.
//!
//! The arithmetic is that of `fast_image_resize` (`CatmullRom`, which is PIL's bicubic), to the bit:
//! weights in 64-bit floating point, rounded to 16 bits with as many places as fit, products added
//! in 32 bits. The order is PIL's: rows first, rounded and clipped to 8 bits, then columns. It is
//! faster for what it leaves out (other formats, other filters) and for two things that follow:
//! sixteen rows are transposed, so that rows fill the vectors and no output needs a sum
//! across one; and what comes out is planes, mirrored as asked for. Once warm it allocates nothing.

mod shape;
#[cfg(target_arch = "x86_64")]
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use crate::strip::ComponentStrip;
pub use crate::strip::STRIP_ROWS;
pub use shape::{Area, Shape};

/// Resizes parts of pictures; holds the buffers it needs, so each worker keeps its own.
///
/// Rows come strip by strip, as a decoder delivers them: [`Resampler::begin`], then
/// [`Resampler::push`] until all are there.
#[derive(Clone, Debug, Default)]
pub struct Resampler {
    shape: Shape,
    /// Rows that were pushed.
    pushed: usize,
    #[cfg(target_arch = "x86_64")]
    passes: x86::Passes,
}

impl Resampler {
    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available() -> bool {
        crate::cpu::has_avx2()
    }

    /// Begins with a new part. Returns false if this processor cannot, or if the area is not within
    /// the part.
    #[must_use]
    pub fn begin(&mut self, shape: &Shape) -> bool {
        let can = Resampler::is_available() && shape.is_valid();
        self.shape = if can { *shape } else { Shape::default() };
        self.pushed = 0;
        #[cfg(target_arch = "x86_64")]
        if can {
            self.passes.begin(shape);
        }
        can
    }

    /// Takes the next rows: [`STRIP_ROWS`], at the end what is left. `pixels` begins with the first
    /// pixel of the first of them, RGB, rows of `stride` bytes; the result goes to `planes`,
    /// `[3, S, S]` u8, which is complete with the last row. Returns false, with nothing done, if
    /// the rows are not as many as come next, or not there, or if `planes` has another length.
    #[must_use]
    pub fn push(&mut self, pixels: &[u8], stride: usize, rows: usize, planes: &mut [u8]) -> bool {
        if !self.is_next(rows, planes) || !self.shape.has_rows(rows, pixels, stride) {
            return false;
        }
        self.pushed += rows;
        #[cfg(target_arch = "x86_64")]
        self.passes.push(&self.shape, pixels, stride, rows, planes);
        true
    }

    /// Takes the next rows as [`Resampler::push`] does, as components of a JPEG: what becomes of them are
    /// the pixels that libjpeg makes of them. Returns false, with nothing done, if the strip is not the
    /// next.
    #[must_use]
    pub fn push_components(&mut self, strip: &ComponentStrip<'_>, planes: &mut [u8]) -> bool {
        let shape = &self.shape;
        let before = (strip.before.0 as usize, strip.before.1 as usize);
        let is_next = self.is_next(strip.rows, planes)
            && strip.first_row as usize == self.pushed
            && before == shape.before;
        #[cfg(target_arch = "x86_64")]
        let done = is_next && self.passes.push_components(&self.shape, strip, planes);
        #[cfg(not(target_arch = "x86_64"))]
        let (done, _) = (false, is_next);
        if done {
            self.pushed += strip.rows;
        }
        done
    }

    /// Whether so many rows come next, and `planes` has room for the result.
    fn is_next(&self, rows: usize, planes: &[u8]) -> bool {
        let next = STRIP_ROWS.min(self.shape.height - self.pushed);
        rows == next && rows > 0 && Some(planes.len()) == self.shape.out_len()
    }

    /// Resizes a part whose rows are all there: `pixels` as in [`Resampler::push`]. Returns false,
    /// with `planes` as they were, for what [`Resampler::begin`] and [`Resampler::push`] refuse.
    #[must_use]
    pub fn resize(
        &mut self,
        shape: &Shape,
        pixels: &[u8],
        stride: usize,
        planes: &mut [u8],
    ) -> bool {
        let fits = shape.is_valid()
            && shape.has_rows(shape.height, pixels, stride)
            && Some(planes.len()) == shape.out_len();
        if !fits || !self.begin(shape) {
            return false;
        }
        (0..shape.height).step_by(STRIP_ROWS).all(|first| {
            let rows = STRIP_ROWS.min(shape.height - first);
            self.push(&pixels[first * stride..], stride, rows, planes)
        })
    }

    /// Bytes of the buffers that are kept.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let bytes = self.passes.kept_bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let bytes = 0;
        bytes
    }
}
