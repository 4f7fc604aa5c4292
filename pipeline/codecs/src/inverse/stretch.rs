//! Neighbouring blocks, in pairs.

use crate::huffman::Block;

/// Samples of a block, along a side.
pub(crate) const SIDE: usize = 8;

/// Samples of a block at half its size.
pub(crate) const HALF: usize = SIDE / 2;

/// Neighbouring blocks of a component, in MCUs one behind the other.
pub(super) struct Stretch<'a> {
    pub(super) blocks: &'a mut [Block],
    pub(super) mcu_blocks: usize,
    /// Of the first, within its MCU.
    pub(super) offset: usize,
    /// How many there are in an MCU.
    pub(super) across: usize,
}

impl Stretch<'_> {
    /// Calls `transform` with two blocks at a time, and at the end with one that is left; and with the
    /// number of the first of them.
    #[inline(always)]
    pub(super) fn each_pair(
        self,
        mut transform: impl FnMut(&mut Block, Option<&mut Block>, usize) -> Option<()>,
    ) -> Option<()> {
        let Stretch {
            blocks,
            mcu_blocks,
            offset,
            across,
        } = self;
        let mut number = 0;
        if across == 1 {
            for mcus in blocks.chunks_mut(2 * mcu_blocks) {
                let (first, second) = mcus.split_at_mut(mcu_blocks);
                transform(first.get_mut(offset)?, second.get_mut(offset), number)?;
                number += 2;
            }
            return Some(());
        }
        for mcu in blocks.chunks_exact_mut(mcu_blocks) {
            for pair in mcu.get_mut(offset..offset + across)?.chunks_mut(2) {
                let (first, second) = pair.split_first_mut()?;
                transform(first, second.first_mut(), number)?;
                number += 2;
            }
            number -= across & 1;
        }
        Some(())
    }
}
