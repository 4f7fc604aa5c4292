//! The fax codings of TIFF: modified Huffman, group 3 and group 4, with the code tables of the `fax`
//! crate. Rows come packed, a bit for a pixel, 1 for black.

use std::borrow::Cow;
use std::convert::Infallible;
use std::io::{self, Read};

use fax::maps::{black, mode, white, Mode};
use fax::{BitReader, ByteReader};

/// How rows are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// Runs, each row beginning at a byte (compression 2).
    ModifiedHuffman,
    /// Runs behind end-of-line codes; in two dimensions, most rows are coded by the row above
    /// (compression 3).
    Group3 { two_dimensional: bool },
    /// Every row is coded by the row above (compression 4).
    Group4,
}

type Bits<'a> = ByteReader<Box<dyn Iterator<Item = Result<u8, Infallible>> + 'a>>;

/// Decodes rows of a strip.
pub(super) struct Rows<'a> {
    coding: Coding,
    width: u16,
    bits: Bits<'a>,
    /// Columns at which the colour changes, white at first, of the row above and of this one.
    above: Vec<u16>,
    changes: Vec<u16>,
    /// The row that is being read, and how much of it was.
    row: Vec<u8>,
    read: usize,
    /// Behind the end of the data all rows are white.
    ended: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(data: Cow<'a, [u8]>, coding: Coding, width: u16) -> Rows<'a> {
        // The tables look at more bits than the last code has.
        let padded = (0..).map(move |at| Ok(data.get(at).copied().unwrap_or(0)));
        let bytes: Box<dyn Iterator<Item = _> + 'a> = Box::new(padded);
        let row = vec![0; usize::from(width).div_ceil(8)];
        Rows {
            coding,
            width,
            bits: ByteReader::new(bytes).unwrap_or_else(|never| match never {}),
            above: Vec::new(),
            changes: Vec::new(),
            read: row.len(),
            row,
            ended: false,
        }
    }

    fn next_row(&mut self) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged fax codes");
        std::mem::swap(&mut self.above, &mut self.changes);
        self.changes.clear();
        if !self.ended {
            self.codes().ok_or_else(damaged)?;
        }
        self.row.fill(0);
        let mut starts = self.changes.iter().copied();
        while let Some(start) = starts.next() {
            let end = starts.next().unwrap_or(self.width).min(self.width);
            for column in start..end {
                self.row[usize::from(column / 8)] |= 0x80 >> (column % 8);
            }
        }
        Ok(())
    }

    /// Decodes a row into `changes`.
    fn codes(&mut self) -> Option<()> {
        match self.coding {
            Coding::ModifiedHuffman => {
                self.skip(self.bits.bits_to_byte_boundary());
                self.runs()
            }
            Coding::Group3 { two_dimensional } => {
                let found = self.end_of_line();
                let by_row_above = two_dimensional && found && {
                    let one_dimensional = self.bits.peek(1)? == 1;
                    self.skip(1);
                    !one_dimensional
                };
                // Two end-of-line codes in a row are the end of the data.
                if found && self.is_end_of_line() {
                    self.ended = true;
                    return Some(());
                }
                match by_row_above {
                    true => self.by_row_above(),
                    false => self.runs(),
                }
            }
            Coding::Group4 => self.by_row_above(),
        }
    }

    fn skip(&mut self, bits: u8) {
        let Ok(()) = self.bits.consume(bits);
    }

    /// No code but the end of a line begins with more than seven zeros.
    fn is_end_of_line(&self) -> bool {
        self.bits.peek(11) == Some(0)
    }

    /// Passes over an end-of-line code, if there is one, with the zeros that fill up before it.
    fn end_of_line(&mut self) -> bool {
        // Zeros without end are those behind the data.
        const MOST_FILL: u32 = 1 << 16;
        if !self.is_end_of_line() {
            return false;
        }
        for _ in 0..MOST_FILL {
            let bit = self.bits.peek(1);
            self.skip(1);
            if bit == Some(1) {
                return true;
            }
        }
        self.ended = true;
        false
    }

    /// A row of runs, white first.
    fn runs(&mut self) -> Option<()> {
        if self.ended {
            return Some(());
        }
        let (mut at, mut is_black) = (0u16, false);
        while at < self.width {
            at = at
                .checked_add(self.run(is_black)?)
                .filter(|&at| at <= self.width)?;
            self.changes.push(at);
            is_black = !is_black;
        }
        Some(())
    }

    /// The length of a run: codes for multiples of 64 up to one for what is left.
    fn run(&mut self, is_black: bool) -> Option<u16> {
        let mut length = 0u16;
        loop {
            let part = match is_black {
                true => black::decode(&mut self.bits)?,
                false => white::decode(&mut self.bits)?,
            };
            length = length.checked_add(part)?;
            if part < 64 {
                return Some(length);
            }
        }
    }

    /// A row coded by the changes of the row above.
    fn by_row_above(&mut self) -> Option<()> {
        let (mut at, mut is_black) = (None::<u16>, false);
        while at.is_none_or(|at| at < self.width) {
            match mode::decode(&mut self.bits)? {
                Mode::Pass => at = Some(self.change_above(at, is_black, 1)),
                Mode::Vertical(offset) => {
                    let above = i32::from(self.change_above(at, is_black, 0));
                    let change = u16::try_from(above + i32::from(offset)).ok()?;
                    if change > self.width || at.is_some_and(|at| change < at) {
                        return None;
                    }
                    self.changes.push(change);
                    (at, is_black) = (Some(change), !is_black);
                }
                Mode::Horizontal => {
                    let mut end = at.unwrap_or(0);
                    for is_black in [is_black, !is_black] {
                        let run = self.run(is_black)?;
                        end = end.checked_add(run).filter(|&end| end <= self.width)?;
                        self.changes.push(end);
                    }
                    at = Some(end);
                }
                Mode::EOF if at.is_none() => {
                    self.ended = true;
                    return Some(());
                }
                Mode::EOF | Mode::Extension => return None,
            }
        }
        Some(())
    }

    /// The change of the row above, right of `at`, away from this colour (b1), or one of those behind
    /// it; the width where there is none.
    fn change_above(&self, at: Option<u16>, is_black: bool, behind: usize) -> u16 {
        let is_right = |change: u16| at.is_none_or(|at| change > at);
        let mut first = self.above.partition_point(|&change| !is_right(change));
        // Changes to black are at even positions.
        if first % 2 != usize::from(is_black) {
            first += 1;
        }
        self.above
            .get(first + behind)
            .copied()
            .unwrap_or(self.width)
    }
}

impl Read for Rows<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.read == self.row.len() {
            self.next_row()?;
            self.read = 0;
        }
        let read = (&self.row[self.read..]).read(out)?;
        self.read += read;
        Ok(read)
    }
}
