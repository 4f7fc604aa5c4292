//! Values of one column of bytes or text, whatever their encoding, as they lie in the batch.

use std::sync::Arc;

use arrow2::array::BinaryArray;
use arrow2::bitmap::Bitmap;
use arrow2::buffer::Buffer;

use super::dictionary::Dictionary;
use super::error::{malformed, ArrowError};
use super::schema::IndexType;

/// Bytes of a view.
const VIEW_BYTES: usize = 16;
/// Most bytes that a view holds itself.
const MAX_INLINE_BYTES: usize = 12;

/// Number of rows and which of them are null.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) len: usize,
    pub(super) validity: Option<Bitmap>,
}

impl Rows {
    pub(super) fn is_valid(&self, row: usize) -> bool {
        row < self.len
            && self
                .validity
                .as_ref()
                .is_none_or(|validity| validity.get_bit(row))
    }
}

/// Binary or text values.
#[derive(Debug)]
pub(super) enum Leaf {
    Plain(BinaryArray<i64>),
    Indexed {
        rows: Rows,
        indices: Indices,
        values: Arc<Dictionary>,
    },
    Views(Views),
}

impl Leaf {
    pub(super) fn len(&self) -> usize {
        match self {
            Leaf::Plain(array) => array.len(),
            Leaf::Indexed { rows, .. } => rows.len,
            Leaf::Views(views) => views.rows.len,
        }
    }

    /// The value of a row; `None` if null.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Leaf::Plain(array) => (row < array.len()).then(|| array.get(row)).flatten(),
            Leaf::Indexed {
                rows,
                indices,
                values,
            } => {
                if !rows.is_valid(row) {
                    return None;
                }
                values.get(indices.get(row)?)
            }
            Leaf::Views(views) => views.get(row),
        }
    }
}

/// Dictionary indices as they are stored: widening them would multiply their memory by eight.
#[derive(Debug)]
pub(super) struct Indices {
    pub(super) bytes: Buffer<u8>,
    pub(super) index_type: IndexType,
}

impl Indices {
    pub(super) fn get(&self, row: usize) -> Option<usize> {
        let width = self.index_type.width_bytes;
        let start = row.checked_mul(width)?;
        let stored = self
            .bytes
            .as_slice()
            .get(start..start.checked_add(width)?)?;
        let is_negative = self.index_type.signed && stored.last().is_some_and(|&top| top >= 0x80);
        if is_negative {
            return None;
        }
        let mut wide = [0; 8];
        wide.get_mut(..width)?.copy_from_slice(stored);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    }
}

/// Values of a view type: 16 bytes each, with the value in them, or where it is in a data buffer.
///
/// Format: <https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout>.
#[derive(Debug)]
pub(super) struct Views {
    rows: Rows,
    views: Buffer<u8>,
    data: Vec<Buffer<u8>>,
}

impl Views {
    /// Checks that every value that is not null lies where it says.
    pub(super) fn new(
        rows: Rows,
        views: Buffer<u8>,
        data: Vec<Buffer<u8>>,
    ) -> Result<Views, ArrowError> {
        let needed = rows.len.checked_mul(VIEW_BYTES);
        if needed.is_none_or(|needed| needed > views.len()) {
            return Err(malformed(format!(
                "{} bytes of views for {} rows",
                views.len(),
                rows.len
            )));
        }
        let views = Views { rows, views, data };
        for row in (0..views.rows.len).filter(|&row| views.rows.is_valid(row)) {
            if views.get(row).is_none() {
                return Err(malformed(format!(
                    "the view of row {row} lies outside of its {} data buffers",
                    views.data.len()
                )));
            }
        }
        Ok(views)
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        if !self.rows.is_valid(row) {
            return None;
        }
        let start = row.checked_mul(VIEW_BYTES)?;
        let view = self.views.as_slice().get(start..)?.first_chunk::<16>()?;
        let number = |at: usize| {
            let bytes = view.get(at..)?.first_chunk::<4>()?;
            usize::try_from(i32::from_le_bytes(*bytes)).ok()
        };
        let length = number(0)?;
        if length <= MAX_INLINE_BYTES {
            return view.get(4..4 + length);
        }
        let (buffer, offset) = (number(8)?, number(12)?);
        let data = self.data.get(buffer)?.as_slice();
        data.get(offset..offset.checked_add(length)?)
    }
}

/// Where the runs of a run-end encoded column end.
#[derive(Debug)]
pub(super) struct RunEnds {
    ends: Indices,
    runs: usize,
    pub(super) rows: usize,
}

impl RunEnds {
    /// Checks that the ends rise and reach `rows`.
    pub(super) fn new(ends: Indices, runs: usize, rows: usize) -> Result<RunEnds, ArrowError> {
        let mut before = 0;
        for run in 0..runs {
            match ends.get(run) {
                Some(end) if end > before => before = end,
                _ => return Err(malformed(format!("run {run} does not end after {before}"))),
            }
        }
        if before < rows {
            return Err(malformed(format!(
                "runs end at {before}, there are {rows} rows"
            )));
        }
        Ok(RunEnds { ends, runs, rows })
    }

    /// The run that a row is in.
    pub(super) fn run_of(&self, row: usize) -> Option<usize> {
        if row >= self.rows {
            return None;
        }
        let (mut low, mut high) = (0, self.runs);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.ends.get(middle)? > row {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        (low < self.runs).then_some(low)
    }
}
