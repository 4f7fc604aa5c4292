//! The inverse transform of a sequential JPEG at its full or half size, in place of libjpeg's own.
//!
//! libjpeg transforms block by block, as they are decoded. Here a stretch of MCUs is decoded, then
//! neighbouring blocks of a component are transformed two at a time, which fills the vectors. Most
//! blocks, of colour above all, hold coefficients of low frequencies alone and need half the
//! arithmetic.
//!
//! The results are those of libjpeg's accurate integer transform (`jidctint.c`, after Loeffler,
//! Ligtenberg and Moschytz) and of its reduced one (`jidctred.c`), to the last bit.

mod stretch;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use crate::huffman::{Block, Scan, MAX_BLOCKS};
use stretch::Stretch;
pub(crate) use stretch::{HALF, SIDE};

/// Components: luma and chroma.
pub(crate) const PLANES: usize = 3;

/// Blocks that are decoded before they are transformed: 6 KiB, which stay in the first cache.
const AT_ONCE: usize = 48;

/// Rows of samples of a component, one row of MCUs; the first wanted MCU comes to their beginning.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) memory: &'a mut [u8],
    /// Bytes from one row to the next.
    pub(crate) pitch: usize,
}

/// A component of the scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanePlan {
    /// Number of the component in the picture.
    pub(crate) index: usize,
    /// Blocks of an MCU, side by side and one above the other.
    pub(crate) across: usize,
    pub(crate) down: usize,
    /// Samples that become of a block, along a side: 8 or 4.
    pub(crate) side: usize,
    /// `[8, 8]`: what coefficients are multiplied by, in natural order.
    pub(crate) factors: Block,
}

/// Memory for coefficients, which are zeros between pictures.
#[derive(Debug)]
pub(crate) struct Coefficients(Box<[Block; AT_ONCE]>);

impl Default for Coefficients {
    fn default() -> Coefficients {
        Coefficients(Box::new([[0; SIDE * SIDE]; AT_ONCE]))
    }
}

/// Makes rows of samples of a scan.
pub(crate) struct Inverse<'a> {
    planes: [PlanePlan; PLANES],
    mcu_blocks: usize,
    mcus_per_row: usize,
    wanted: std::ops::RangeInclusive<usize>,
    coefficients: &'a mut Coefficients,
}

impl<'a> Inverse<'a> {
    /// For these components, in the order of the scan, and those MCUs of a row. None if this processor
    /// cannot, or if they are not those of an MCU.
    pub(crate) fn new(
        planes: [PlanePlan; PLANES],
        mcus_per_row: u32,
        wanted: (u32, u32),
        coefficients: &'a mut Coefficients,
    ) -> Option<Inverse<'a>> {
        let sizes = planes.iter().map(|plane| plane.across * plane.down);
        let mcu_blocks = sizes.clone().sum();
        let are_known = planes.iter().all(|plane| matches!(plane.side, SIDE | HALF));
        let is_whole = sizes.min() > Some(0) && mcu_blocks <= MAX_BLOCKS && are_known;
        let is_within = wanted.0 <= wanted.1 && wanted.1 < mcus_per_row;
        if !crate::cpu::has_avx2() || !is_whole || !is_within {
            return None;
        }
        // Those of a picture that was given up are still there.
        coefficients.0.fill([0; SIDE * SIDE]);
        Some(Inverse {
            planes,
            mcu_blocks,
            mcus_per_row: mcus_per_row as usize,
            wanted: wanted.0 as usize..=wanted.1 as usize,
            coefficients,
        })
    }

    /// Decodes the next row of MCUs to the rows of each component, in the order of the scan. None if the
    /// data is not sound, or the rows are too short.
    pub(crate) fn next_row(
        &mut self,
        scan: &mut Scan<'_>,
        rows: &mut [Rows<'_>; PLANES],
    ) -> Option<()> {
        let (first, last) = (*self.wanted.start(), *self.wanted.end());
        for _ in 0..first {
            scan.next_mcu(None)?;
        }
        // An even number, so that pairs do not straddle.
        let at_once = (AT_ONCE / self.mcu_blocks) & !1;
        let mut from = first;
        while from <= last {
            let count = at_once.min(last + 1 - from);
            let blocks = self.coefficients.0.get_mut(..count * self.mcu_blocks)?;
            for mcu in blocks.chunks_exact_mut(self.mcu_blocks) {
                scan.next_mcu(Some(mcu))?;
            }
            let mut offset = 0;
            for (plane, rows) in self.planes.iter().zip(&mut *rows) {
                let column = (from - first) * plane.across * plane.side;
                for row in 0..plane.down {
                    let stretch = Stretch {
                        blocks,
                        mcu_blocks: self.mcu_blocks,
                        offset: offset + row * plane.across,
                        across: plane.across,
                    };
                    let memory = rows.memory.get_mut(row * plane.side * rows.pitch..)?;
                    transform(stretch, plane, memory.get_mut(column..)?, rows.pitch)?;
                }
                offset += plane.across * plane.down;
            }
            from += count;
        }
        for _ in last + 1..self.mcus_per_row {
            scan.next_mcu(None)?;
        }
        Some(())
    }
}

/// Transforms the blocks, and leaves zeros. The samples of each, `side` in a row, come side by side to
/// rows of `memory`; where the last has no neighbour, as many are written behind them. None if there
/// is no room for that.
fn transform(
    stretch: Stretch<'_>,
    plane: &PlanePlan,
    memory: &mut [u8],
    pitch: usize,
) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    return x86::transform(stretch, plane.side, &plane.factors, memory, pitch);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (
            stretch.blocks,
            stretch.mcu_blocks,
            stretch.offset,
            stretch.across,
        );
        let _ = (plane, memory, pitch);
        None
    }
}
