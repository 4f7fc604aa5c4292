//! Antialiased bicubic resizing of RGB crops to planes, for processors with AVX2.
//!
//! The arithmetic is that of `fast_image_resize` (`CatmullRom`, which is PIL's bicubic), to the bit:
//! weights in 64-bit floating point, rounded to 16 bits with as many places as fit, products added
//! in 32 bits. The order is PIL's: rows first, rounded and clipped to 8 bits, then columns. It is
//! faster for what it leaves out (other formats, other filters) and for two things that follow:
//! sixteen rows are turned on their side, so that rows fill the vectors and no output needs a sum
//! across one; and what comes out is planes, mirrored as asked for. Once warm it allocates nothing.

mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

/// A part of a picture, and what it is resized to.
#[derive(Clone, Copy, Debug)]
pub struct Crop<'a> {
    /// RGB, rows of `stride` bytes; it begins with the first pixel of the part.
    pub pixels: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Pixels of a row of the part.
    pub width: usize,
    /// Its rows.
    pub height: usize,
    /// What becomes the whole result, in pixels of the part: left, top, width, height. What lies
    /// beyond the part has no influence.
    pub area: (f64, f64, f64, f64),
    /// Side S of the result, in pixels.
    pub size: usize,
    /// Whether the result is mirrored left to right.
    pub mirrored: bool,
    /// Whether its last row comes first.
    pub upside_down: bool,
}

impl Crop<'_> {
    /// Whether pixels, sizes and area fit each other.
    fn is_valid(&self) -> bool {
        let (left, top, width, height) = self.area;
        let inside = |start: f64, length: f64, len: usize| {
            start >= 0.0 && length > 0.0 && start + length <= len as f64
        };
        let row = self.width.checked_mul(3);
        let needed = self
            .height
            .checked_sub(1)
            .and_then(|rows| rows.checked_mul(self.stride)?.checked_add(row?));
        inside(left, width, self.width)
            && inside(top, height, self.height)
            && self.size > 0
            && row.is_some_and(|row| row <= self.stride || self.height == 1)
            && needed.is_some_and(|needed| needed <= self.pixels.len())
    }
}

/// Resizes crops; holds the buffers it needs, so each worker keeps its own.
#[derive(Clone, Debug, Default)]
pub struct Resampler {
    #[cfg(target_arch = "x86_64")]
    across: weights::Weights,
    #[cfg(target_arch = "x86_64")]
    down: weights::Weights,
    #[cfg(target_arch = "x86_64")]
    buffers: x86::Buffers,
}

impl Resampler {
    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available() -> bool {
        #[cfg(target_arch = "x86_64")]
        let available = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let available = false;
        available
    }

    /// Writes the crop to `planes`, `[3, S, S]` u8. Returns false, with `planes` as they were, if
    /// this processor cannot, the pixels are not as many as the crop says, its area is not within it,
    /// or `planes` has another length.
    #[must_use]
    pub fn resize(&mut self, crop: &Crop<'_>, planes: &mut [u8]) -> bool {
        let expected = crop
            .size
            .checked_mul(crop.size)
            .and_then(|n| n.checked_mul(3));
        if !Resampler::is_available() || !crop.is_valid() || Some(planes.len()) != expected {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        x86::resize(
            &mut self.across,
            &mut self.down,
            &mut self.buffers,
            crop,
            planes,
        );
        true
    }

    /// Bytes of the buffers that are kept.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let bytes = self.across.kept_bytes() + self.down.kept_bytes() + self.buffers.kept_bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let bytes = 0;
        bytes
    }
}
