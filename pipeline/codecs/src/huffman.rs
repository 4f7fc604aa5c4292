//! Huffman decoding of a sequential JPEG scan, in place of libjpeg's own.
//!
//! Half of the time of a decode goes into this. libjpeg looks a code up, then takes the bits of its
//! value from the stream, and finds their sign. Here one look-up at ten bits gives the length of
//! code and value together, the run of zeros, and the value with its sign, for the nine in ten
//! coefficients that are that short. Blocks whose coefficients nobody reads (those beside and above
//! the region, and all but the first coefficient at an eighth of the size) are passed over, several
//! coefficients at a look-up.
//!
//! It decodes sound data only. At anything else (a code that does not exist, data that ends early,
//! a marker out of place) it gives up, and the caller decodes the picture again with libjpeg, whose
//! judgement of damaged files is the one that counts. Specification: ITU-T T.81, annex F.2.2.

/// Bits that one look-up sees.
const LOOKUP_BITS: u32 = 10;
const ENTRIES: usize = 1 << LOOKUP_BITS;

/// Bits that there are after a refill, unless the data ends.
const FULL: u32 = 56;

/// Look-ups, of [`LOOKUP_BITS`] at most, that a refill is enough for.
const AFTER_REFILL: usize = 4;

/// Look-ups that are left for where a first coefficient was taken, of 31 bits at most.
const AFTER_FIRST: usize = 2;

/// Most blocks of an MCU, by the standard.
pub(crate) const MAX_BLOCKS: usize = 10;

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

/// Coefficients of a block, in natural order, not yet dequantised.
pub(crate) type Block = [i16; 64];

/// A Huffman code as a file declares it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code {
    /// Number of codes of each length; the first entry is unused.
    pub(crate) counts: [u8; 17],
    /// What they stand for, shortest code first.
    pub(crate) symbols: [u8; 256],
}

/// Whether a code is that of first coefficients or of the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Dc,
    Ac,
}

/// An entry of a table, for the bits at the head of the stream:
///
/// | bits | |
/// |---|---|
/// | 0–5 | bits to take from the stream |
/// | 6 | [`PARTIAL`]: the bits of the value follow; their number stands in place of the value |
/// | 7 | [`LONG`]: the code is longer than a look-up |
/// | 8–15 | coefficients to go on by, counting the one that is coded; [`END`] at the end of a block |
/// | 16–31 | the value |
type Entry = u32;

const PARTIAL: Entry = 1 << 6;
const LONG: Entry = 1 << 7;
const END: u32 = 128;

fn entry(len: u32, advance: u32, value: i32) -> Entry {
    len | advance << 8 | (value as u32) << 16
}

/// An entry for one or two coefficients at once:
///
/// | bits | |
/// |---|---|
/// | 0–5 | bits to take from the stream for all of it |
/// | 6–7 | as of an [`Entry`]; then it says nothing else |
/// | 8–15 | coefficients to go on by to the first |
/// | 24–31 | coefficients to go on by in all, [`END`] included |
/// | 32–47 | the first value |
/// | 48–63 | the second, if there is one: it has the last place |
type Pair = u64;

/// Both entries as one, if they fit a look-up.
fn pair(first: Entry, second: Entry) -> Pair {
    if first & (PARTIAL | LONG) != 0 {
        return u64::from(first & 255);
    }
    let (len, advance) = (first & 63, first >> 8 & 255);
    let value = u64::from(first >> 16) << 32;
    let (second_len, further) = (second & 63, second >> 8 & 255);
    if advance == END || second & (PARTIAL | LONG) != 0 || len + second_len > LOOKUP_BITS {
        return u64::from(len | advance << 8 | advance << 24) | value;
    }
    let low = (len + second_len) | advance << 8 | (advance + further) << 24;
    u64::from(low) | value | u64::from(second >> 16) << 48
}

/// An entry for passing over; as a [`Pair`] it has the bits at 0–5 and the coefficients to go on by
/// at 24–31. At 8–15 there are those before the last (beyond any block if there is none).
fn skip_entry(len: u32, advance: u32, before_last: u32) -> Entry {
    len | before_last << 8 | advance << 24
}

/// A code, made ready to be looked up.
struct Table {
    code: Code,
    entries: [Entry; ENTRIES],
    /// For the coefficients behind the first: one or two at once, and as many as fit, to pass over.
    pairs: [Pair; ENTRIES],
    skips: [Entry; ENTRIES],
    /// Codes of at most `l` bits are less than `limits[l]`, when both are extended to 16 bits.
    limits: [u32; 17],
    /// What to add to a code of `l` bits for its place among the symbols.
    offsets: [i32; 17],
    class: Class,
}

impl Table {
    /// None if there are more codes than symbols, or than there can be.
    fn new(code: &Code, class: Class) -> Option<Table> {
        let mut table = Table {
            code: *code,
            entries: [LONG; ENTRIES],
            pairs: [0; ENTRIES],
            skips: [0; ENTRIES],
            limits: [0; 17],
            offsets: [0; 17],
            class,
        };
        let (mut next, mut place) = (0u32, 0usize);
        for len in 1..=16u32 {
            let count = u32::from(code.counts[len as usize]);
            table.offsets[len as usize] = place as i32 - next as i32;
            let symbols = code.symbols.get(place..place + count as usize)?;
            if next + count > 1 << len {
                return None;
            }
            if len <= LOOKUP_BITS {
                for (code, &symbol) in (next..).zip(symbols) {
                    table.fill(code, len, symbol);
                }
            }
            place += count as usize;
            next += count;
            table.limits[len as usize] = next << (16 - len);
            next <<= 1;
        }
        if class == Class::Ac {
            table.set_pairs();
            table.set_skips();
        }
        Some(table)
    }

    /// The entries that begin with this code.
    fn fill(&mut self, code: u32, len: u32, symbol: u8) {
        let (advance, size) = self.meaning(symbol);
        let free = LOOKUP_BITS - len;
        let start = (code << free) as usize;
        if size > free {
            let partial = entry(len, advance, size as i32) | PARTIAL;
            self.entries[start..start + (1 << free)].fill(partial);
            return;
        }
        let each = 1usize << (free - size);
        for (bits, entries) in (0u32..1 << size).zip(self.entries[start..].chunks_mut(each)) {
            entries.fill(entry(len + size, advance, extend(bits, size)));
        }
    }

    /// How many coefficients a symbol goes on by, and the bits of its value.
    fn meaning(&self, symbol: u8) -> (u32, u32) {
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        match self.class {
            Class::Dc => (1, size),
            Class::Ac if size == 0 && run < 15 => (END, 0),
            Class::Ac => (run + 1, size),
        }
    }

    /// The symbol of a code longer than a look-up at the head of `head`, and its length.
    #[cold]
    fn long(&self, head: u64) -> Option<(u32, u8)> {
        let bits = (head >> 48) as u32;
        let len = (LOOKUP_BITS + 1..=16).find(|&len| bits < self.limits[len as usize])?;
        let place = (bits >> (16 - len)) as i32 + self.offsets[len as usize];
        let symbol = self.code.symbols.get(usize::try_from(place).ok()?)?;
        Some((len, *symbol))
    }

    fn set_pairs(&mut self) {
        for (at, both) in self.pairs.iter_mut().enumerate() {
            let first = self.entries[at];
            *both = pair(first, self.entries[(at << (first & 15)) & (ENTRIES - 1)]);
        }
    }

    /// From the pairs, with as many more as there is room for.
    fn set_skips(&mut self) {
        for (at, (skip, &pair)) in self.skips.iter_mut().zip(&self.pairs).enumerate() {
            let pair = pair as u32;
            if pair & (PARTIAL | LONG) != 0 {
                *skip = skip_entry(0, 0, 255);
                continue;
            }
            let (mut len, mut advance) = (pair & 63, pair >> 24);
            let first = pair >> 8 & 255;
            let mut before_last = if first == advance { 0 } else { first };
            while advance < END && len < LOOKUP_BITS {
                let entry = self.entries[(at << len) & (ENTRIES - 1)];
                let of_entry = entry & 63;
                if entry & (PARTIAL | LONG) != 0 || len + of_entry > LOOKUP_BITS {
                    break;
                }
                before_last = advance;
                advance += entry >> 8 & 255;
                len += of_entry;
            }
            *skip = skip_entry(len, advance, before_last);
        }
    }
}

/// The number that `size` bits stand for (T.81, table F.1 and figure F.12): those that begin with 0
/// are negative.
fn extend(bits: u32, size: u32) -> i32 {
    let half = 1u32 << size >> 1;
    let below = if bits < half { (1 << size) - 1 } else { 0 };
    bits as i32 - below
}

/// The codes of a picture. Those of the picture before are used again where they are the same, as
/// the standard's own are in most files.
#[derive(Default)]
pub(crate) struct Tables {
    dc: [Option<Box<Table>>; 4],
    ac: [Option<Box<Table>>; 4],
}

fn prepare(slot: &mut Option<Box<Table>>, code: &Code, class: Class) -> Option<()> {
    if slot.as_ref().is_none_or(|table| table.code != *code) {
        *slot = None;
        *slot = Some(Box::new(Table::new(code, class)?));
    }
    Some(())
}

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

/// A scan that is being decoded.
pub(crate) struct Scan<'a> {
    blocks: [ReadyBlock<'a>; MAX_BLOCKS],
    plan: ScanPlan,
    bits: Bits<'a>,
    /// Value of the last first coefficient of each component.
    predictions: [i32; 4],
    column: u32,
    until_restart: u32,
    restarts: u8,
    decode: DecodeMcu,
}

type DecodeMcu =
    for<'a> fn(&mut Bits<'a>, &[ReadyBlock<'_>], &mut [i32; 4], Option<&mut [Block]>) -> Option<()>;

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
            bits: Bits::new(data),
            predictions: [0; 4],
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
        (self.decode)(&mut self.bits, ready, &mut self.predictions, blocks)
    }

    /// Passes the restart marker that has to come here.
    fn restart(&mut self) -> Option<()> {
        self.bits.pass_marker(0xd0 + (self.restarts & 7))?;
        self.restarts = self.restarts.wrapping_add(1);
        self.predictions = [0; 4];
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
    use super::{Bits, Block, ReadyBlock};

    #[target_feature(enable = "bmi1,bmi2")]
    fn with_bmi(
        bits: &mut Bits<'_>,
        ready: &[ReadyBlock<'_>],
        predictions: &mut [i32; 4],
        blocks: Option<&mut [Block]>,
    ) -> Option<()> {
        super::decode_mcu(bits, ready, predictions, blocks)
    }

    pub(super) fn decode_mcu(
        bits: &mut Bits<'_>,
        ready: &[ReadyBlock<'_>],
        predictions: &mut [i32; 4],
        blocks: Option<&mut [Block]>,
    ) -> Option<()> {
        // SAFETY: `best_decoder` gives this function out where the processor has both.
        unsafe { with_bmi(bits, ready, predictions, blocks) }
    }
}

#[inline(always)]
fn decode_mcu(
    bits: &mut Bits<'_>,
    ready: &[ReadyBlock<'_>],
    predictions: &mut [i32; 4],
    blocks: Option<&mut [Block]>,
) -> Option<()> {
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

/// Why look-ups ended.
enum Stop {
    /// There were as many as were asked for.
    Used,
    /// The next coefficient is not for this kind of look-up.
    Single,
    /// The block is whole.
    Done,
}

/// The coded bits. Zeros that are stuffed behind each byte 0xff are taken out; it ends at the first
/// marker, or with the data. Methods that are not inlined take it by value, so that it stays in
/// registers.
#[derive(Clone, Copy)]
struct Bits<'a> {
    /// Bytes that are not in `head`, none of them 0xff.
    plain: &'a [u8],
    /// The bytes behind them: 0xff and what follows.
    behind: &'a [u8],
    /// The next bits, the first of them on top. Below the `count` that count there may be some of
    /// those that follow.
    head: u64,
    /// At most 63.
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8]) -> Bits<'a> {
        let (plain, behind) = until_ff(data);
        Bits {
            plain,
            behind,
            head: 0,
            count: 0,
        }
    }

    /// Brings `count` to at least [`FULL`], unless the data ends.
    #[inline(always)]
    fn refill(&mut self) {
        if let Some(&bytes) = self.plain.first_chunk() {
            self.head |= u64::from_be_bytes(bytes) >> self.count;
            self.plain = &self.plain[((63 - self.count) >> 3 & 7) as usize..];
            self.count |= FULL;
        } else {
            *self = self.refilled_bytewise();
        }
    }

    #[inline(never)]
    fn refilled_bytewise(mut self) -> Bits<'a> {
        while self.count < FULL {
            let byte = match (self.plain, self.behind) {
                ([byte, plain @ ..], _) => {
                    self.plain = plain;
                    *byte
                }
                ([], [0xff, 0, behind @ ..]) => {
                    (self.plain, self.behind) = until_ff(behind);
                    0xff
                }
                _ => break,
            };
            self.head |= u64::from(byte) << (FULL - self.count);
            self.count += 8;
        }
        self
    }

    /// Whether the data ends with a marker, of two bytes.
    fn ends_well(&self) -> bool {
        self.behind.len() >= 2
    }

    /// Takes `len` bits; None if there are not as many, or if the data ends without a marker.
    #[inline(always)]
    fn take<const CHECKED: bool>(&mut self, len: u32) -> Option<()> {
        if CHECKED && (len > self.count || !self.ends_well()) {
            return None;
        }
        self.head <<= len & 63;
        self.count -= len;
        Some(())
    }

    /// Takes a code and its value: coefficients to go on by, and the value. `entry` is that of the
    /// bits at the head; they are enough unless `CHECKED` is set.
    #[inline(always)]
    fn coefficient<const CHECKED: bool>(
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
    fn look_up(&self, entries: &[Entry; ENTRIES]) -> Entry {
        entries[(self.head >> (64 - LOOKUP_BITS)) as usize]
    }

    /// The coefficients behind the first, which was taken since a refill. What it writes to the
    /// first place of `block` means nothing.
    #[inline(always)]
    fn rest(&mut self, table: &Table, block: &mut Block) -> Option<()> {
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
    fn to_the_end(
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

    /// Passes over the coefficients behind the first, which was taken since a refill.
    #[inline(always)]
    fn skip_rest(&mut self, table: &Table) -> Option<()> {
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

    /// Passes this marker, which has to be next but for the padding of the last byte.
    fn pass_marker(&mut self, marker: u8) -> Option<()> {
        self.refill();
        match self.behind {
            [0xff, next, rest @ ..]
                if *next == marker && self.count < 8 && self.plain.is_empty() =>
            {
                *self = Bits::new(rest);
                Some(())
            }
            _ => None,
        }
    }
}

/// The bytes before the first 0xff, and those from there on.
fn until_ff(data: &[u8]) -> (&[u8], &[u8]) {
    data.split_at(memchr::memchr(0xff, data).unwrap_or(data.len()))
}
