//! The inverse transform of a sequential JPEG at its full or half size, in place of libjpeg's own.
//!
//! libjpeg transforms block by block, as they are decoded. Here a stretch of MCUs is decoded, then
//! neighbouring blocks of a component are transformed two at a time, which fills the vectors. Most
//! blocks, of colour above all, hold coefficients of low frequencies alone and need half the
//! arithmetic.
//!
//! The results are those of libjpeg's accurate integer transform (`jidctint.c`, after Loeffler,
//! Ligtenberg and Moschytz) and of its reduced one (`jidctred.c`), to the last bit.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use crate::huffman::{Block, Scan, MAX_BLOCKS};

/// Samples of a block, along a side.
pub(crate) const SIDE: usize = 8;

/// Samples of a block at half its size.
pub(crate) const HALF: usize = SIDE / 2;

/// Most components.
pub(crate) const MAX_PLANES: usize = 4;

/// Blocks that are decoded before they are transformed: 6 KiB, which stay in the first cache.
const AT_ONCE: usize = 48;

/// Rows of samples of a block row, to be written; each holds all blocks of the component side by side.
/// Half a block has four.
pub(crate) type Rows<'a> = [&'a mut [MaybeUninit<u8>]; SIDE];

/// Where samples go.
pub(crate) trait Samples {
    /// The rows of a component for one of its rows of blocks in the current row of MCUs; the first wanted
    /// MCU comes to their beginning.
    fn rows(&mut self, plane: &PlanePlan, block_row: usize) -> Option<Rows<'_>>;
}

/// The same memory, to be written by a transform.
#[allow(unsafe_code)]
pub(crate) fn as_uninit(row: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: a transform puts initialised samples in it, and nobody else has it.
    unsafe { &mut *(std::ptr::from_mut(row) as *mut [MaybeUninit<u8>]) }
}

/// A component of the scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanePlan {
    /// Number of the component in the picture.
    pub(crate) index: usize,
    /// Blocks of an MCU, side by side and one above the other.
    pub(crate) across: usize,
    pub(crate) down: usize,
    /// Rows of blocks that the last row of MCUs has.
    pub(crate) last_down: usize,
    /// Blocks of the component, side by side.
    pub(crate) blocks_wide: usize,
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
    planes: [PlanePlan; MAX_PLANES],
    plane_count: usize,
    mcu_blocks: usize,
    mcus_per_row: usize,
    wanted: std::ops::RangeInclusive<usize>,
    coefficients: &'a mut Coefficients,
}

impl<'a> Inverse<'a> {
    /// For these components, in the order of the scan, and those MCUs of a row. None if this processor
    /// cannot, or if they are not those of an MCU.
    pub(crate) fn new(
        planes: &[PlanePlan],
        mcus_per_row: u32,
        wanted: (u32, u32),
        coefficients: &'a mut Coefficients,
    ) -> Option<Inverse<'a>> {
        let mut all = [*planes.first()?; MAX_PLANES];
        all.get_mut(..planes.len())?.copy_from_slice(planes);
        let sizes = planes.iter().map(|plane| plane.across * plane.down);
        let mcu_blocks = sizes.clone().sum();
        let are_known = planes.iter().all(|plane| matches!(plane.side, SIDE | HALF));
        let is_whole = sizes.min() > Some(0) && mcu_blocks <= MAX_BLOCKS && are_known;
        let is_within = wanted.0 <= wanted.1 && wanted.1 < mcus_per_row;
        if !crate::has_avx2() || !is_whole || !is_within {
            return None;
        }
        // Those of a picture that was given up are still there.
        coefficients.0.fill([0; SIDE * SIDE]);
        Some(Inverse {
            planes: all,
            plane_count: planes.len(),
            mcu_blocks,
            mcus_per_row: mcus_per_row as usize,
            wanted: wanted.0 as usize..=wanted.1 as usize,
            coefficients,
        })
    }

    /// Decodes the next row of MCUs. None if the data is not sound.
    pub(crate) fn next_row(
        &mut self,
        scan: &mut Scan<'_>,
        is_last: bool,
        samples: &mut impl Samples,
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
            for plane in &self.planes[..self.plane_count] {
                let down = match is_last {
                    true => plane.last_down.min(plane.down),
                    false => plane.down,
                };
                for row in 0..down {
                    let stretch = Stretch {
                        mcu_blocks: self.mcu_blocks,
                        offset: offset + row * plane.across,
                        across: plane.across,
                        len: (count * plane.across)
                            .min(plane.blocks_wide.saturating_sub(from * plane.across)),
                        column: (from - first) * plane.across * plane.side,
                        side: plane.side,
                    };
                    let rows = &mut samples.rows(plane, row)?;
                    stretch.transform(blocks, &plane.factors, rows)?;
                }
                // Below the picture there are blocks that nobody reads.
                for row in down..plane.down {
                    let offset = offset + row * plane.across;
                    for mcu in blocks.chunks_exact_mut(self.mcu_blocks) {
                        mcu[offset..offset + plane.across].fill([0; SIDE * SIDE]);
                    }
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

/// Neighbouring blocks of a component.
struct Stretch {
    mcu_blocks: usize,
    /// Of the first, within its MCU.
    offset: usize,
    across: usize,
    /// How many there are.
    len: usize,
    /// Where their samples begin.
    column: usize,
    /// Samples that become of a block, along a side.
    side: usize,
}

impl Stretch {
    /// Where a block is.
    fn at(&self, number: usize) -> usize {
        let (mcu, within) = match self.across {
            1 => (number, 0),
            across => (number / across, number % across),
        };
        mcu * self.mcu_blocks + self.offset + within
    }

    /// Transforms them, and leaves zeros. None if they are not all there.
    fn transform(&self, blocks: &mut [Block], factors: &Block, rows: &mut Rows<'_>) -> Option<()> {
        let mut number = 0;
        while number + 1 < self.len {
            let pair = [self.at(number), self.at(number + 1)];
            let [first, second] = blocks.get_disjoint_mut(pair).ok()?;
            let column = self.column + number * self.side;
            transform(self.side, first, Some(second), factors, rows, column)?;
            number += 2;
        }
        if number < self.len {
            let last = blocks.get_mut(self.at(number))?;
            let column = self.column + number * self.side;
            transform(self.side, last, None, factors, rows, column)?;
        }
        // Beyond the picture's right edge there are blocks that nobody reads.
        let mut beyond = self.len;
        while let Some(block) = blocks.get_mut(self.at(beyond)) {
            block.fill(0);
            beyond += 1;
        }
        Some(())
    }
}

/// Puts the samples of one or two blocks side by side into `rows` from `column` on, 8 or 4 of each in a
/// row; the blocks are zeros afterwards. None if the rows end before that. Only where there is
/// [AVX2](crate::has_avx2).
#[inline(always)]
fn transform(
    side: usize,
    first: &mut Block,
    second: Option<&mut Block>,
    factors: &Block,
    rows: &mut Rows<'_>,
    column: usize,
) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    return match side {
        SIDE => x86::transform(first, second, factors, rows, column),
        _ => x86::reduced::transform(first, second, factors, rows, column),
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (side, first, second, factors, rows, column);
        None
    }
}
