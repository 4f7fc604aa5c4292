//! The coefficients of a block.

use super::bits::{Bits, FULL};
use super::table::{extend, Entry, Table, END, ENTRIES, LONG, LOOKUP_BITS, PARTIAL};
use super::{Block, ReadyBlock};

/// Look-ups, of [`LOOKUP_BITS`] at most, that a refill is enough for.
const AFTER_REFILL: usize = 4;

/// Look-ups that are left for where a first coefficient was taken, of 31 bits at most.
const AFTER_FIRST: usize = 2;

/// Where the coefficients in their coded order stand in a block. What a run leads beyond a block
/// takes its last place, as in libjpeg; what stands behind [`END`] goes to the first, which is
/// written last.
const NATURAL_ORDER: [u8; 512] = {
    const WITHIN: [u8; 64] = [
        0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27,
        20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
        58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    ];
    let mut order = [0; 512];
    let mut at = 0;
    while at < END as usize {
        order[at] = if at < 64 { WITHIN[at] } else { 63 };
        at += 1;
    }
    order
};

/// Why look-ups ended.
enum Stop {
    /// There were as many as were asked for.
    Used,
    /// The next coefficient is not for this kind of look-up.
    Single,
    /// The block is whole.
    Done,
}

impl<'a> Bits<'a> {
    /// Takes a code and its value: coefficients to go on by, and the value. `entry` is that of the
    /// bits at the head; they are enough unless `CHECKED` is set.
    #[inline(always)]
    pub(super) fn coefficient<const CHECKED: bool>(
        &mut self,
        table: &Table,
        entry: Entry,
    ) -> Option<(u32, i32)> {
        if entry & (PARTIAL | LONG) == 0 {
            self.take::<CHECKED>(entry & 63)?;
            return Some((entry >> 8 & 255, entry as i32 >> 16));
        }
        let (len, advance, size) = if entry & PARTIAL != 0 {
            (entry & 63, entry >> 8 & 255, entry >> 16)
        } else {
            let (len, symbol) = table.long(self.head)?;
            let (advance, size) = table.meaning(symbol);
            (len, advance, size)
        };
        self.take::<CHECKED>(len)?;
        let bits = (self.head >> 1 >> (63 - (size & 63))) as u32;
        self.take::<CHECKED>(size)?;
        Some((advance, extend(bits, size)))
    }

    #[inline(always)]
    pub(super) fn look_up(&self, entries: &[Entry; ENTRIES]) -> Entry {
        entries[(self.head >> (64 - LOOKUP_BITS)) as usize]
    }

    /// The coefficients behind the first, which was taken since a refill. What it writes to the
    /// first place of `block` means nothing.
    #[inline(always)]
    pub(super) fn rest(&mut self, table: &Table, block: &mut Block) -> Option<()> {
        let mut last = 0;
        let mut stop = self.look_ups::<AFTER_FIRST>(table, block, &mut last);
        loop {
            if matches!(stop, Stop::Done) {
                return Some(());
            }
            self.refill();
            if self.count < FULL {
                *self = self.rest_to_the_end(table, last, Some(block))?;
                return Some(());
            }
            if matches!(stop, Stop::Single) {
                let entry = self.look_up(&table.entries);
                let (advance, value) = self.coefficient::<false>(table, entry)?;
                last += advance;
                block[usize::from(NATURAL_ORDER[last as usize & 255])] = value as i16;
                if last >= 63 {
                    return Some(());
                }
                self.refill();
                if self.count < FULL {
                    *self = self.rest_to_the_end(table, last, Some(block))?;
                    return Some(());
                }
            }
            stop = self.look_ups::<AFTER_REFILL>(table, block, &mut last);
        }
    }

    /// Coefficients behind that at `last`, as many as so many look-ups give. There have to be bits
    /// enough.
    #[inline(always)]
    fn look_ups<const N: usize>(
        &mut self,
        table: &Table,
        block: &mut Block,
        last: &mut u32,
    ) -> Stop {
        // Entries are added up as they are: their lowest byte is what is taken, their highest the
        // place of the last coefficient.
        let mut sum = *last << 24;
        let mut stop = Stop::Used;
        for _ in 0..N {
            let head = self.head;
            let pair = table.pairs[(head >> (64 - LOOKUP_BITS)) as usize];
            let entry = pair as u32;
            if entry & (PARTIAL | LONG) != 0 {
                stop = Stop::Single;
                break;
            }
            self.head = head << (entry & 63);
            let before = sum;
            sum = sum.wrapping_add(entry);
            let first = (before >> 24) + (entry >> 8 & 255);
            // If there is no second one, it has the place of the first, which stays.
            block[usize::from(NATURAL_ORDER[(sum >> 24) as usize])] = (pair >> 48) as i16;
            block[usize::from(NATURAL_ORDER[first as usize])] = (pair >> 32) as i16;
            if sum >= 63 << 24 {
                if (63..END).contains(&first) {
                    // The block is full: a second one is of the next block.
                    (self.head, sum) = (head, before);
                    let entry = self.look_up(&table.entries);
                    self.head = head << (entry & 63);
                    sum = sum.wrapping_add(entry & 63);
                }
                stop = Stop::Done;
                break;
            }
        }
        self.count -= sum & 255;
        *last = sum >> 24;
        stop
    }

    /// A block, coefficient by coefficient, where the data may end within it.
    #[inline(never)]
    pub(super) fn to_the_end(
        mut self,
        ready: &ReadyBlock<'_>,
        prediction: &mut i32,
        mut block: Option<&mut Block>,
    ) -> Option<Bits<'a>> {
        let entry = self.look_up(&ready.dc.entries);
        let (_, difference) = self.coefficient::<true>(ready.dc, entry)?;
        *prediction = prediction.wrapping_add(difference);
        let rest = block.as_deref_mut().filter(|_| ready.wants_ac);
        let bits = self.rest_to_the_end(ready.ac, 0, rest)?;
        if let Some(block) = block {
            block[0] = *prediction as i16;
        }
        Some(bits)
    }

    /// The coefficients behind that at `last`, likewise.
    #[inline(never)]
    fn rest_to_the_end(
        mut self,
        table: &Table,
        mut last: u32,
        mut block: Option<&mut Block>,
    ) -> Option<Bits<'a>> {
        while last < 63 {
            self.refill();
            let entry = self.look_up(&table.entries);
            let (advance, value) = self.coefficient::<true>(table, entry)?;
            last += advance;
            if let Some(block) = &mut block {
                block[usize::from(NATURAL_ORDER[last as usize & 255])] = value as i16;
            }
        }
        Some(self)
    }

    /// Passes over the coefficients behind the first, which was taken since a refill. (One loop for
    /// this and for [`Bits::rest`], and without the second refill in each, was a twentieth slower.)
    #[inline(always)]
    pub(super) fn skip_rest(&mut self, table: &Table) -> Option<()> {
        let mut last = 0;
        let mut stop = self.skips::<AFTER_FIRST>(table, &mut last);
        loop {
            if matches!(stop, Stop::Done) {
                return Some(());
            }
            self.refill();
            if self.count < FULL {
                *self = self.rest_to_the_end(table, last, None)?;
                return Some(());
            }
            if matches!(stop, Stop::Single) {
                let entry = self.look_up(&table.entries);
                last += self.coefficient::<false>(table, entry)?.0;
                if last >= 63 {
                    return Some(());
                }
                self.refill();
                if self.count < FULL {
                    *self = self.rest_to_the_end(table, last, None)?;
                    return Some(());
                }
            }
            stop = self.skips::<AFTER_REFILL>(table, &mut last);
        }
    }

    /// Passes over as many coefficients as so many look-ups give. There have to be bits enough.
    #[inline(always)]
    fn skips<const N: usize>(&mut self, table: &Table, last: &mut u32) -> Stop {
        let mut sum = *last << 24;
        let mut stop = Stop::Used;
        for _ in 0..N {
            let skip = self.look_up(&table.skips);
            if (sum >> 24) + (skip >> 8 & 255) >= 63 {
                stop = Stop::Single;
                break;
            }
            self.head <<= skip & 63;
            sum = sum.wrapping_add(skip);
            if sum >= 63 << 24 {
                stop = Stop::Done;
                break;
            }
        }
        self.count -= sum & 255;
        *last = sum >> 24;
        stop
    }
}
