//! Huffman decoding of a sequential JPEG scan, in place of libjpeg's own.
//!
//! Half of the time of a decode goes into this. libjpeg looks a code up, then takes the bits of its
//! value from the stream, and finds their sign. Here one look-up at ten bits gives one or two whole
//! coefficients: runs of zeros, values with their signs, the end of the block, and how many bits all
//! that took. Nine in ten are that short. Blocks whose coefficients nobody reads (those beside and
//! above the region, and all but the first coefficient at an eighth of the size) are passed over,
//! as many coefficients at a look-up as fit.
//!
//! It decodes sound data only. At anything else (a code that does not exist, data that ends early,
//! a marker out of place) it gives up, and the caller decodes the picture again with libjpeg, whose
//! judgement of damaged files is the one that counts. Specification: ITU-T T.81, annex F.2.2.

mod bits;
mod block;
mod table;

use bits::{Bits, FULL};
use table::{prepare, Class, Table};
pub(crate) use table::{Code, Tables};

/// Most blocks of an MCU, by the standard.
pub(crate) const MAX_BLOCKS: usize = 10;

/// Coefficients of a block, in natural order, not yet dequantised.
pub(crate) type Block = [i16; 64];

/// A block of an MCU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockPlan {
    /// The component it is of, 0–3.
    pub(crate) component: u8,
    /// Number of its code for first coefficients, 0–3.
    pub(crate) dc: u8,
    /// Number of its code for the others, 0–3.
    pub(crate) ac: u8,
    /// Whether more than the first coefficient is read.
    pub(crate) wants_ac: bool,
}

/// How a scan is laid out, and what of it is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanPlan {
    /// The blocks of an MCU.
    pub(crate) blocks: [BlockPlan; MAX_BLOCKS],
    /// How many there are, 1 to [`MAX_BLOCKS`].
    pub(crate) block_count: usize,
    /// MCUs side by side.
    pub(crate) mcus_per_row: u32,
    /// The first and the last of a row that are wanted.
    pub(crate) wanted_mcus: (u32, u32),
    /// MCUs between restart markers; 0 for none.
    pub(crate) restart_interval: u32,
}

/// A block of an MCU with its codes at hand.
#[derive(Clone, Copy)]
struct ReadyBlock<'a> {
    dc: &'a Table,
    ac: &'a Table,
    component: u8,
    wants_ac: bool,
}

/// Where a scan has got to.
struct Position<'a> {
    bits: Bits<'a>,
    /// Value of the last first coefficient of each component.
    predictions: [i32; 4],
}

/// A scan that is being decoded.
pub(crate) struct Scan<'a> {
    blocks: [ReadyBlock<'a>; MAX_BLOCKS],
    plan: ScanPlan,
    position: Position<'a>,
    column: u32,
    until_restart: u32,
    restarts: u8,
    decode: DecodeMcu,
}

type DecodeMcu = fn(&mut Position<'_>, &[ReadyBlock<'_>], Option<&mut [Block]>) -> Option<()>;

impl<'a> Scan<'a> {
    /// Reads the scan at the beginning of `data`. `codes` gives the codes by class (first
    /// coefficients or others) and number. None if the plan or a code cannot be.
    pub(crate) fn new(
        tables: &'a mut Tables,
        plan: ScanPlan,
        codes: impl Fn(bool, u8) -> Option<Code>,
        data: &'a [u8],
    ) -> Option<Scan<'a>> {
        let blocks = plan.blocks.get(..plan.block_count)?;
        for block in blocks {
            let slot = tables.dc.get_mut(usize::from(block.dc))?;
            prepare(slot, &codes(true, block.dc)?, Class::Dc)?;
            let slot = tables.ac.get_mut(usize::from(block.ac))?;
            prepare(slot, &codes(false, block.ac)?, Class::Ac)?;
            if block.component > 3 {
                return None;
            }
        }
        let tables: &Tables = tables;
        let ready = |block: &BlockPlan| {
            Some(ReadyBlock {
                dc: tables.dc[usize::from(block.dc)].as_deref()?,
                ac: tables.ac[usize::from(block.ac)].as_deref()?,
                component: block.component,
                wants_ac: block.wants_ac,
            })
        };
        let mut all = [ready(blocks.first()?)?; MAX_BLOCKS];
        for (place, block) in all.iter_mut().zip(blocks) {
            *place = ready(block)?;
        }
        Some(Scan {
            blocks: all,
            plan,
            position: Position {
                bits: Bits::new(data),
                predictions: [0; 4],
            },
            column: 0,
            until_restart: plan.restart_interval,
            restarts: 0,
            decode: best_decoder(),
        })
    }

    /// Decodes the next MCU. Its coefficients go to `blocks`, which hold zeros, unless nobody wants
    /// them. None if the data is not sound: the scan is then of no more use.
    pub(crate) fn next_mcu(&mut self, blocks: Option<&mut [Block]>) -> Option<()> {
        if self.plan.restart_interval > 0 {
            if self.until_restart == 0 {
                self.restart()?;
            }
            self.until_restart -= 1;
        }
        let (first, last) = self.plan.wanted_mcus;
        let blocks = blocks.filter(|_| (first..=last).contains(&self.column));
        self.column += 1;
        if self.column == self.plan.mcus_per_row {
            self.column = 0;
        }
        let ready = self.blocks.get(..self.plan.block_count)?;
        (self.decode)(&mut self.position, ready, blocks)
    }

    /// Passes the restart marker that has to come here.
    fn restart(&mut self) -> Option<()> {
        let Position { bits, predictions } = &mut self.position;
        bits.pass_marker(0xd0 + (self.restarts & 7))?;
        *predictions = [0; 4];
        self.restarts = self.restarts.wrapping_add(1);
        self.until_restart = self.plan.restart_interval;
        Some(())
    }
}

/// Shifts by a number in any register are instructions of their own (BMI2), not in every processor.
fn best_decoder() -> DecodeMcu {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi1") && std::arch::is_x86_feature_detected!("bmi2") {
        return x86::decode_mcu;
    }
    decode_mcu
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::{Block, Position, ReadyBlock};

    #[target_feature(enable = "bmi1,bmi2")]
    fn with_bmi(
        position: &mut Position<'_>,
        ready: &[ReadyBlock<'_>],
        blocks: Option<&mut [Block]>,
    ) -> Option<()> {
        super::decode_mcu(position, ready, blocks)
    }

    pub(super) fn decode_mcu(
        position: &mut Position<'_>,
        ready: &[ReadyBlock<'_>],
        blocks: Option<&mut [Block]>,
    ) -> Option<()> {
        // SAFETY: `best_decoder` gives this function out where the processor has both.
        unsafe { with_bmi(position, ready, blocks) }
    }
}

#[inline(always)]
fn decode_mcu(
    position: &mut Position<'_>,
    ready: &[ReadyBlock<'_>],
    blocks: Option<&mut [Block]>,
) -> Option<()> {
    let Position { bits, predictions } = position;
    // A copy lives in registers.
    let mut own = *bits;
    let mut blocks = blocks.map(|blocks| blocks.iter_mut());
    for ready in ready {
        let block = match &mut blocks {
            Some(blocks) => Some(blocks.next()?),
            None => None,
        };
        let prediction = &mut predictions[usize::from(ready.component & 3)];
        own.refill();
        if own.count < FULL {
            own = own.to_the_end(ready, prediction, block)?;
            continue;
        }
        let entry = own.look_up(&ready.dc.entries);
        let (_, difference) = own.coefficient::<false>(ready.dc, entry)?;
        *prediction = prediction.wrapping_add(difference);
        match block {
            Some(block) if ready.wants_ac => {
                own.rest(ready.ac, block)?;
                block[0] = *prediction as i16;
            }
            Some(block) => {
                block[0] = *prediction as i16;
                own.skip_rest(ready.ac)?;
            }
            None => own.skip_rest(ready.ac)?,
        }
    }
    *bits = own;
    Some(())
}
