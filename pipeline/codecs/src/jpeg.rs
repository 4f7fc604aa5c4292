//! A region of a JPEG at one, two, four or eight eighths of its size.
//!
//! Entropy decoding is sequential, so everything above the region is decoded that far; the inverse
//! transform, upsampling and colour conversion run for the region alone, and nothing below it is
//! touched. Huffman codes of sequential pictures are decoded by our own code, which is faster than
//! libjpeg's and gives up on damaged data, for libjpeg to judge. The inverse transform is libjpeg's
//! accurate integer one with its smooth chroma upsampling: the settings of PIL.
//!
//! Pixels come from [`Decompressor::decode`] and [`Decompressor::decode_strips`]. The usual kinds of
//! pictures also come as components, from [`Decompressor::decode_components`]: what is left to do then,
//! [`crate::resample`] does on its way.

use std::fmt;

use crate::{huffman, inverse};

pub(crate) mod components;
#[allow(unsafe_code)]
mod ffi;
mod part;

pub use crate::strip::ComponentStrip;
pub use part::{Entropy, Error, Options, Outcome, Part, Placed, Region, Scale, Strip};

/// Columns that smooth upsampling of chroma looks at beside a pixel. A region is decoded with as
/// many more on each side, so that its pixels are those of the whole picture.
const CHROMA_CONTEXT: u32 = 4;

/// A decoder of one thread; it holds libjpeg's state between calls.
pub struct Decompressor {
    handle: ffi::Handle,
    tables: huffman::Tables,
    coefficients: inverse::Coefficients,
    components: components::Components,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// A decoder.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new() -> Result<Decompressor, Error> {
        Ok(Decompressor {
            handle: ffi::Handle::new()?,
            tables: huffman::Tables::default(),
            coefficients: inverse::Coefficients::default(),
            components: components::Components::default(),
        })
    }

    /// Decodes a part of a picture into `pixels`, which grows as needed and is never shrunk.
    ///
    /// # Errors
    /// [`Error`]; `pixels` then holds nothing of use.
    pub fn decode(&mut self, part: &Part<'_>, pixels: &mut Vec<u8>) -> Result<Placed, Error> {
        let mut placed = None;
        let mut whole = |strip: Strip<'_>| placed = Some(strip.placed);
        self.decode_strips(part, part.region.height, pixels, &mut whole)?;
        placed.ok_or_else(|| Error::Broken("it has no rows".into()))
    }

    /// Decodes a part of a picture in strips of `rows_at_once` rows (the last may have fewer), which
    /// come through `memory`. Should the picture turn out to be damaged, they may come once more, from
    /// the first row.
    ///
    /// # Errors
    /// [`Error`]; what was handed over is then of no use.
    pub fn decode_strips(
        &mut self,
        part: &Part<'_>,
        rows_at_once: u32,
        memory: &mut Vec<u8>,
        sink: &mut dyn FnMut(Strip<'_>),
    ) -> Result<(), Error> {
        let mut part = *part;
        if part.options.entropy == Entropy::Fast {
            if self.attempt(&part, rows_at_once, memory, sink)? {
                return Ok(());
            }
            part.options.entropy = Entropy::Libjpeg;
        }
        match self.attempt(&part, rows_at_once, memory, sink)? {
            true => Ok(()),
            false => Err(Error::Broken("it cannot be decoded".into())),
        }
    }

    /// Decodes a part of a picture in strips of components, sixteen rows each but for the last, where our
    /// own code can decode all of it: luma and chroma, chroma halved or not, in one sequential scan of
    /// Huffman codes, at full or half size, on a processor with AVX2. [`Decompressor::decode_strips`] decodes
    /// the others, or says what is wrong with them.
    pub fn decode_components(
        &mut self,
        part: &Part<'_>,
        sink: &mut dyn FnMut(&ComponentStrip<'_>),
    ) -> Outcome {
        let is_for_us = matches!(part.scale, Scale::Full | Scale::Half);
        if part.options.entropy != Entropy::Fast || !is_for_us {
            return Outcome::OtherKind;
        }
        let Ok(picture) = Self::begin(&mut self.handle, part) else {
            return Outcome::OtherKind;
        };
        let memory = (&mut self.tables, &mut self.coefficients);
        match picture.components(&part.region, memory, &mut self.components, sink) {
            Some(Some(())) => Outcome::Complete,
            Some(None) => Outcome::Corrupt,
            None => Outcome::OtherKind,
        }
    }

    /// Begins with the picture that a part is of, which is within it.
    fn begin<'a>(handle: &'a mut ffi::Handle, part: &Part<'a>) -> Result<ffi::Picture<'a>, Error> {
        let &Part {
            bytes,
            size,
            scale,
            region,
            options,
        } = part;
        let scaled_width = size.0.div_ceil(scale.reduction());
        let left = region.x.saturating_sub(CHROMA_CONTEXT);
        let right = region
            .x
            .saturating_add(region.width)
            .saturating_add(CHROMA_CONTEXT)
            .min(scaled_width);
        let columns = right.saturating_sub(left);
        let picture = handle.begin(bytes, options, scale, left, columns)?;
        let layout = picture.layout();
        if (layout.width, layout.height) != size {
            let (width, height) = size;
            return Err(Error::OtherSize(width, height, layout.width, layout.height));
        }
        let inside = region.width > 0
            && region.height > 0
            && region.x >= layout.first_column
            && u64::from(region.x) + u64::from(region.width)
                <= u64::from(layout.first_column) + u64::from(layout.columns)
            && u64::from(region.y) + u64::from(region.height) <= u64::from(layout.scaled_height);
        if !inside {
            return Err(Error::Broken("a region beyond the picture".into()));
        }
        Ok(picture)
    }

    /// Decodes with one of the decoders of Huffman codes; false if that gave up.
    fn attempt(
        &mut self,
        part: &Part<'_>,
        rows_at_once: u32,
        memory: &mut Vec<u8>,
        sink: &mut dyn FnMut(Strip<'_>),
    ) -> Result<bool, Error> {
        let &Part {
            region, options, ..
        } = part;
        let picture = Self::begin(&mut self.handle, part)?;
        let layout = picture.layout();
        let channels = layout.channels as usize;
        let stride = layout.columns as usize * channels;
        let at_once = rows_at_once.clamp(1, region.height);
        let needed = stride.saturating_mul(at_once as usize);
        if memory.len() < needed {
            memory
                .try_reserve_exact(needed - memory.len())
                .map_err(|_| Error::NoMemory(needed))?;
            memory.resize(needed, 0);
        }
        let own = match options.entropy {
            Entropy::Fast => Some(&mut self.tables),
            Entropy::Libjpeg => None,
        };
        let placed = Placed {
            stride,
            offset: (region.x - layout.first_column) as usize * channels,
            channels,
        };
        let mut hand_over = |first_row, pixels: &[u8]| {
            sink(Strip {
                first_row,
                pixels,
                placed,
            });
        };
        let memory = &mut memory[..needed];
        picture.rows(region.y, region.height, memory, stride, own, &mut hand_over)
    }
}

#[cfg(test)]
mod tests;
