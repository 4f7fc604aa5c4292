//! Huffman codes, made ready to be looked up.

/// Bits that one look-up sees.
pub(super) const LOOKUP_BITS: u32 = 10;
pub(super) const ENTRIES: usize = 1 << LOOKUP_BITS;

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
pub(super) enum Class {
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
pub(super) type Entry = u32;

pub(super) const PARTIAL: Entry = 1 << 6;
pub(super) const LONG: Entry = 1 << 7;
pub(super) const END: u32 = 128;

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
pub(super) type Pair = u64;

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
pub(super) struct Table {
    code: Code,
    pub(super) entries: [Entry; ENTRIES],
    /// For the coefficients behind the first: one or two at once, and as many as fit, to pass over.
    pub(super) pairs: [Pair; ENTRIES],
    pub(super) skips: [Entry; ENTRIES],
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
    pub(super) fn meaning(&self, symbol: u8) -> (u32, u32) {
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        match self.class {
            Class::Dc => (1, size),
            Class::Ac if size == 0 && run < 15 => (END, 0),
            Class::Ac => (run + 1, size),
        }
    }

    /// The symbol of a code longer than a look-up at the head of `head`, and its length.
    #[cold]
    pub(super) fn long(&self, head: u64) -> Option<(u32, u8)> {
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
pub(super) fn extend(bits: u32, size: u32) -> i32 {
    let half = 1u32 << size >> 1;
    let below = if bits < half { (1 << size) - 1 } else { 0 };
    bits as i32 - below
}

/// The codes of a picture. Those of the picture before are used again where they are the same, as
/// the standard's own are in most files.
#[derive(Default)]
pub(crate) struct Tables {
    pub(super) dc: [Option<Box<Table>>; 4],
    pub(super) ac: [Option<Box<Table>>; 4],
}

pub(super) fn prepare(slot: &mut Option<Box<Table>>, code: &Code, class: Class) -> Option<()> {
    if slot.as_ref().is_none_or(|table| table.code != *code) {
        *slot = None;
        *slot = Some(Box::new(Table::new(code, class)?));
    }
    Some(())
}
