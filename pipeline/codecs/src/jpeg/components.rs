//! Rows of components, before upsampling and colour conversion: for pictures that our own code decodes
//! from end to end.
//!
//! libjpeg would upsample chroma to rows of its own and interleave the channels, and the resampler
//! would take them apart again. Here the inverse transform writes to rings of rows, one for each
//! component, and the resampler takes what it needs from there, sixteen rows at a time.

use super::part::Region;
use crate::huffman::Scan;
use crate::inverse::{Inverse, PlanePlan, Rows, PLANES};
use crate::strip::{ComponentStrip, Halved, CHROMA_BEFORE, LUMA_BEFORE, STRIP_ROWS};

/// Samples of a ring's rows before the first that is decoded, and behind the last: some for
/// upsampling, the rest so that whole vectors can be read.
const BEFORE: usize = 16;
const BEHIND: usize = 64;

/// Rows of luma in a ring: those of three rows of MCUs, of which the oldest has the last row of chroma
/// above a strip.
const RING_ROWS: usize = 48;

/// How the components of a picture lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Width and height of the picture.
    size: (usize, usize),
    /// Rows of MCUs, and MCUs of a row.
    mcus: (usize, usize),
    /// The first wanted MCU of a row, and how many are.
    wanted: (usize, usize),
    /// Width and height of an MCU, in samples of luma and of chroma.
    luma: (usize, usize),
    chroma: (usize, usize),
    halved: Halved,
    /// Rows of luma that libjpeg upsamples at a time.
    group: usize,
}

impl Geometry {
    /// For the components of a scan. None for other samplings than those of [`Halved`].
    pub(crate) fn new(
        size: (u32, u32),
        mcus: (u32, u32),
        wanted: (u32, u32),
        planes: &[PlanePlan; PLANES],
    ) -> Option<Geometry> {
        let [luma, blue, red] = planes;
        let of = |plane: &PlanePlan| (plane.across * plane.side, plane.down * plane.side);
        let ratio = |luma: usize, chroma: usize| match luma == chroma {
            true => Some(false),
            false => (luma == 2 * chroma).then_some(true),
        };
        let is_ordered = (luma.index, blue.index, red.index) == (0, 1, 2);
        let are_alike = of(blue) == of(red);
        let (luma, chroma) = (of(luma), of(blue));
        let halved = Halved {
            across: ratio(luma.0, chroma.0)?,
            down: ratio(luma.1, chroma.1)?,
        };
        let size = (size.0 as usize, size.1 as usize);
        // libjpeg repeats the samples of narrower pictures.
        let is_wide = !halved.across || size.0.div_ceil(2) > 2;
        let count = wanted.1.checked_sub(wanted.0)? + 1;
        // Rings hold whole rows of MCUs.
        let is_low = luma.1 * 3 <= RING_ROWS && RING_ROWS.is_multiple_of(luma.1);
        let least_side = planes.iter().map(|plane| plane.side).min()?;
        let fits = is_ordered && are_alike && is_wide && is_low && wanted.1 < mcus.1;
        fits.then_some(Geometry {
            size,
            mcus: (mcus.0 as usize, mcus.1 as usize),
            wanted: (wanted.0 as usize, count as usize),
            luma,
            chroma,
            halved,
            group: luma.1 / least_side,
        })
    }
}

/// A number made even if its kind comes in pairs.
fn aligned(number: u32, in_pairs: bool) -> usize {
    number as usize & !usize::from(in_pairs)
}

/// Rings of rows, kept from one picture to the next.
#[derive(Debug, Default)]
pub(crate) struct Components([Ring; 3]);

/// Rows of a component: row r is at r modulo their number.
#[derive(Debug, Default)]
struct Ring {
    memory: Vec<u8>,
    pitch: usize,
    rows: usize,
}

impl Ring {
    /// Makes room; None if there is no memory.
    fn set(&mut self, columns: usize, rows: usize) -> Option<()> {
        (self.pitch, self.rows) = (BEFORE + columns + BEHIND, rows);
        let len = self.pitch.checked_mul(rows)?;
        if self.memory.len() < len {
            let more = len - self.memory.len();
            self.memory.try_reserve_exact(more).ok()?;
            self.memory.resize(len, 0);
        }
        Some(())
    }

    /// A row from this place on; at [`BEFORE`] is the first decoded sample.
    fn row(&self, row: usize, from: usize) -> &[u8] {
        &self.memory[row % self.rows * self.pitch..][from..self.pitch]
    }

    /// So many rows, which lie one behind the other.
    fn rows_mut(&mut self, first: usize, count: usize) -> &mut [u8] {
        &mut self.memory[first % self.rows * self.pitch..][..count * self.pitch]
    }

    /// Where the samples of a row of MCUs go, which has so many rows.
    fn target(&mut self, mcu_row: usize, height: usize) -> Rows<'_> {
        let pitch = self.pitch;
        let memory = &mut self.rows_mut(mcu_row * height, height)[BEFORE..];
        Rows { memory, pitch }
    }
}

impl Components {
    fn set(&mut self, geometry: &Geometry) -> Option<()> {
        let [luma, chroma @ ..] = &mut self.0;
        luma.set(geometry.wanted.1 * geometry.luma.0, RING_ROWS)?;
        let rows = RING_ROWS * geometry.chroma.1 / geometry.luma.1;
        for ring in chroma {
            ring.set(geometry.wanted.1 * geometry.chroma.0, rows)?;
        }
        Some(())
    }

    /// Where the samples of a row of MCUs go.
    fn rows_mut(&mut self, geometry: &Geometry, mcu_row: usize) -> [Rows<'_>; PLANES] {
        let [luma, chroma @ ..] = &mut self.0;
        let [blue, red] = chroma;
        [
            luma.target(mcu_row, geometry.luma.1),
            blue.target(mcu_row, geometry.chroma.1),
            red.target(mcu_row, geometry.chroma.1),
        ]
    }

    /// Repeats the outermost samples of chroma where the picture ends.
    fn repeat_ends(&mut self, geometry: &Geometry, mcu_row: usize) {
        if !geometry.halved.across {
            return;
        }
        let (first_mcu, mcus) = geometry.wanted;
        let end = geometry.size.0.div_ceil(2) - first_mcu * geometry.chroma.0;
        let [_, chroma @ ..] = &mut self.0;
        for ring in chroma {
            let pitch = ring.pitch;
            let rows = ring.rows_mut(mcu_row * geometry.chroma.1, geometry.chroma.1);
            for row in rows.chunks_exact_mut(pitch) {
                if first_mcu == 0 {
                    row[BEFORE - 1] = row[BEFORE];
                }
                if end <= mcus * geometry.chroma.0 {
                    row[BEFORE + end] = row[BEFORE + end - 1];
                }
            }
        }
    }

    /// The strip of a region from this row of the picture on.
    fn strip(&self, geometry: &Geometry, region: &Region, start: usize) -> ComponentStrip<'_> {
        let halved = geometry.halved;
        let [luma, chroma @ ..] = &self.0;
        let left = aligned(region.x, halved.across) - geometry.wanted.0 * geometry.luma.0;
        let top = aligned(region.y, halved.down);
        let end = (region.y + region.height) as usize;
        let (luma_from, chroma_from) = match halved.across {
            true => (
                BEFORE + left - LUMA_BEFORE,
                BEFORE + left / 2 - CHROMA_BEFORE,
            ),
            false => (BEFORE + left, BEFORE + left),
        };
        let chroma_row = |at: usize| match halved.down {
            true => {
                let last = geometry.size.1.div_ceil(2) - 1;
                (start / 2 + at).saturating_sub(1).min(last)
            }
            false => start + at,
        };
        ComponentStrip {
            first_row: (start - top) as u32,
            before: (
                region.x - aligned(region.x, halved.across) as u32,
                region.y - top as u32,
            ),
            rows: STRIP_ROWS.min(end - start),
            halved,
            luma: std::array::from_fn(|at| luma.row(start + at, luma_from)),
            chroma: chroma
                .each_ref()
                .map(|ring| std::array::from_fn(|at| ring.row(chroma_row(at), chroma_from))),
        }
    }

    /// Decodes a region of the picture, whose scan and transform are at their beginning, and hands it over
    /// in strips of [`STRIP_ROWS`] rows. The region is within the picture, with what upsampling looks at
    /// beside it within the wanted MCUs. None if the data is not sound down to the region's last row.
    pub(crate) fn read(
        &mut self,
        geometry: &Geometry,
        region: &Region,
        (scan, inverse): (&mut Scan<'_>, &mut Inverse<'_>),
        sink: &mut dyn FnMut(&ComponentStrip<'_>),
    ) -> Option<()> {
        self.set(geometry)?;
        let pairs = geometry.halved.down;
        let mut start = aligned(region.y, pairs);
        let end = (region.y + region.height) as usize;
        let above = if pairs { 2 } else { 0 };
        let first_row = start.saturating_sub(above) / geometry.luma.1;
        for _ in 0..first_row * geometry.mcus.1 {
            scan.next_mcu(None)?;
        }
        for number in first_row..geometry.mcus.0 {
            inverse.next_row(scan, &mut self.rows_mut(geometry, number))?;
            self.repeat_ends(geometry, number);
            let decoded = (number + 1) * geometry.luma.1;
            loop {
                let strip_end = (start + STRIP_ROWS).min(end);
                // The second row of a pair takes chroma from the next. A file that is damaged there is
                // not to be taken for sound, whichever way it is decoded: libjpeg has as much before it
                // gives out a group of rows.
                let needed = match pairs {
                    true => strip_end.next_multiple_of(geometry.group) + 1,
                    false => strip_end,
                };
                if decoded < needed.min(geometry.size.1) {
                    break;
                }
                sink(&self.strip(geometry, region, start));
                if strip_end == end {
                    return Some(());
                }
                start = strip_end;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
