//! Pictures in luma and chroma (JFIF's YCbCr): the components of a JPEG, resized one by one, for a JPEG that
//! is written of them.
//!
//! Resizing and the conversion between YCbCr and RGB are both linear, so the result is that of a detour by
//! RGB but for rounding, clipping and the filter of chroma, which here is resized once, from the samples
//! that are stored to those that 4:2:0 stores, instead of twice. It saves upsampling, two conversions, and
//! half of the samples.

mod lanczos;
mod passes;
mod plane;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use crate::strip::{ComponentStrip, Halved, CHROMA_BEFORE, LUMA_BEFORE};
use lanczos::Axis;
use passes::Passes;
pub(crate) use plane::Plane;

/// A whole picture as a decoder delivers it; kept from one picture to the next.
#[derive(Debug, Default)]
pub struct Stored {
    planes: [Plane; 3],
    halved: Halved,
    size: (usize, usize),
    rows: usize,
}

impl Stored {
    /// Begins with a picture of this width and height.
    pub fn begin(&mut self, (width, height): (u32, u32)) {
        self.size = (width as usize, height as usize);
        self.rows = 0;
    }

    /// Takes the next strip of the whole picture. Returns false if it is not that, or if there is no memory.
    #[must_use]
    pub fn push(&mut self, strip: &ComponentStrip<'_>) -> bool {
        self.take(strip).is_some()
    }

    /// Whether all rows are there.
    pub fn is_complete(&self) -> bool {
        self.rows == self.size.1
    }

    fn take(&mut self, strip: &ComponentStrip<'_>) -> Option<()> {
        let (width, height) = self.size;
        let halved = strip.halved;
        let half = |length: usize, is_halved: bool| match is_halved {
            true => length.div_ceil(2),
            false => length,
        };
        if strip.first_row == 0 {
            self.halved = halved;
            self.rows = 0;
            let [luma, chroma @ ..] = &mut self.planes;
            luma.set(width, height)?;
            for plane in chroma {
                plane.set(half(width, halved.across), half(height, halved.down))?;
            }
        }
        let is_next = strip.first_row as usize == self.rows
            && strip.before == (0, 0)
            && halved == self.halved
            && self.rows + strip.rows <= height;
        if !is_next {
            return None;
        }
        let (luma_from, chroma_from) = match halved.across {
            true => (LUMA_BEFORE, CHROMA_BEFORE),
            false => (0, 0),
        };
        // Of halved rows the first is the one above the strip's own.
        let above = usize::from(halved.down);
        let [luma, chroma @ ..] = &mut self.planes;
        for (at, row) in strip.luma.iter().take(strip.rows).enumerate() {
            let row = row.get(luma_from..luma_from + width)?;
            luma.row_mut(self.rows + at)[..width].copy_from_slice(row);
        }
        let first = half(self.rows, halved.down);
        for (plane, rows) in chroma.iter_mut().zip(&strip.chroma) {
            let rows = rows.iter().skip(above).take(half(strip.rows, halved.down));
            for (at, row) in rows.enumerate() {
                let row = row.get(chroma_from..chroma_from + plane.width)?;
                let width = plane.width;
                plane.row_mut(first + at)[..width].copy_from_slice(row);
            }
        }
        self.rows += strip.rows;
        Some(())
    }
}

/// What a picture becomes. Sizes are those of the upright picture.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Width and height of the whole picture once it is resized.
    pub scaled: (u32, u32),
    /// First column and row of the part that is kept.
    pub origin: (u32, u32),
    /// Width and height of that part.
    pub size: (u32, u32),
    /// Whether upright columns are stored rows.
    pub transposed: bool,
    /// Whether stored columns and rows count from their ends.
    pub flipped: (bool, bool),
}

/// A picture whose chroma has a sample for two columns and two rows (4:2:0).
#[derive(Debug, Default)]
pub struct Picture420 {
    pub(crate) size: (u32, u32),
    /// Y, Cb and Cr; Y is even to both sides.
    pub(crate) planes: [Plane; 3],
}

/// Resizes pictures with a Lanczos filter of three lobes (PIL's `LANCZOS`); keeps its buffers, and the
/// weights of sizes that come again.
#[derive(Debug, Default)]
pub struct Resizer {
    passes: Passes,
    halfway: Plane,
    picture: Picture420,
}

impl Resizer {
    /// Resizes a picture that is complete, whose content is `content` columns and rows of luma (the last of
    /// a reduced one may be in part). None if there is no memory, or if the target is empty.
    pub fn resize(
        &mut self,
        stored: &Stored,
        content: (f64, f64),
        target: &Target,
    ) -> Option<&Picture420> {
        let is_empty = |(width, height): (u32, u32)| width == 0 || height == 0;
        if is_empty(target.size) || is_empty(target.scaled) || !stored.is_complete() {
            return None;
        }
        for (number, plane) in stored.planes.iter().enumerate() {
            let is_chroma = number > 0;
            // Of the upright picture: x, then y.
            let axis = |upright_y: bool| {
                let pick = |(x, y): (u32, u32)| if upright_y { y } else { x };
                let is_row = upright_y != target.transposed;
                let (content, len, halved, flipped) = match is_row {
                    false => (
                        content.0,
                        plane.width,
                        stored.halved.across,
                        target.flipped.0,
                    ),
                    true => (
                        content.1,
                        plane.height,
                        stored.halved.down,
                        target.flipped.1,
                    ),
                };
                let every = if is_chroma { 2 } else { 1 };
                let content = if is_chroma && halved {
                    content / 2.0
                } else {
                    content
                };
                let scale = content / f64::from(pick(target.scaled));
                let first = (f64::from(pick(target.origin)) + f64::from(every) / 2.0) * scale;
                let step = f64::from(every) * scale;
                let pairs = pick(target.size).div_ceil(2) as usize;
                Axis {
                    len,
                    size: if is_chroma { pairs } else { 2 * pairs },
                    first: if flipped { content - first } else { first },
                    step: if flipped { -step } else { step },
                }
            };
            let out = &mut self.picture.planes[number];
            if target.transposed {
                self.passes
                    .resize(plane, (axis(true), axis(false)), &mut self.halfway)?;
                self.halfway.transpose_into(out)?;
            } else {
                self.passes.resize(plane, (axis(false), axis(true)), out)?;
            }
        }
        self.picture.size = target.size;
        Some(&self.picture)
    }
}
