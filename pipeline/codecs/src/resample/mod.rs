//! Antialiased bicubic resizing of RGB crops to planes, for processors with AVX2.
//!
//! The arithmetic is that of `fast_image_resize` (`CatmullRom`, which is PIL's bicubic), to the bit:
//! weights in 64-bit floating point, rounded to 16 bits with as many places as fit, products added
//! in 32 bits. The order is PIL's: rows first, rounded and clipped to 8 bits, then columns. It is
//! faster for what it leaves out (other formats, other filters) and for two things that follow:
//! sixteen rows are transposed, so that rows fill the vectors and no output needs a sum
//! across one; and what comes out is planes, mirrored as asked for. Once warm it allocates nothing.

#[cfg(target_arch = "x86_64")]
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use crate::jpeg::ComponentStrip;

/// Rows that are taken at a time.
pub const STRIP_ROWS: usize = 16;

/// A rectangle in pixels, which need not be whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Area {
    /// Distance of its left edge from the left of what it lies in.
    pub left: f64,
    /// Distance of its upper edge from the top.
    pub top: f64,
    /// From its left edge to its right edge.
    pub width: f64,
    /// From its upper edge to its lower edge.
    pub height: f64,
}

impl Area {
    /// All of something of this size.
    pub fn whole(width: f64, height: f64) -> Area {
        Area {
            width,
            height,
            ..Area::default()
        }
    }
}

/// The size of a part of a picture, and what it is resized to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Pixels of a row, the part's and those before it.
    pub width: usize,
    /// Rows, the part's and those before it.
    pub height: usize,
    /// Columns and rows that come before the part, and have no influence.
    pub before: (usize, usize),
    /// What of the part becomes the whole result. What lies beyond the part has no influence.
    pub area: Area,
    /// Side S of the result, in pixels.
    pub size: usize,
    /// Whether the result is mirrored left to right.
    pub mirrored: bool,
    /// Whether its last row comes first.
    pub upside_down: bool,
}

impl Shape {
    /// Whether sizes and area fit each other.
    fn is_valid(&self) -> bool {
        let area = self.area;
        let inside = |start: f64, length: f64, len: usize| {
            start >= 0.0 && length > 0.0 && start + length <= len as f64
        };
        let part = (
            self.width.saturating_sub(self.before.0),
            self.height.saturating_sub(self.before.1),
        );
        inside(area.left, area.width, part.0)
            && inside(area.top, area.height, part.1)
            && self.size > 0
            && self.width.checked_mul(3).is_some()
            && self.out_len().is_some()
    }

    /// Bytes of the result, 3 · S · S.
    fn out_len(&self) -> Option<usize> {
        self.size.checked_mul(self.size)?.checked_mul(3)
    }

    /// Whether so many rows of the part are in `pixels`.
    fn has_rows(&self, rows: usize, pixels: &[u8], stride: usize) -> bool {
        let row = 3 * self.width;
        let above = rows
            .checked_sub(1)
            .and_then(|above| above.checked_mul(stride));
        let needed = above.and_then(|above| above.checked_add(row));
        (row <= stride || rows == 1) && needed.is_some_and(|needed| needed <= pixels.len())
    }
}

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
        crate::has_avx2()
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
        let done = false && is_next;
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
