//! The end of compressed data in a file, and what lies behind it.

use std::cell::Cell;
use std::io::{self, BufRead};
use std::rc::Rc;

/// Where a compressed file holds something else behind its compressed data: known once the stream was
/// read to its end. Clones are of the same stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leftover(Rc<Cell<Option<u64>>>);

impl Leftover {
    /// Offset in the file, in bytes.
    pub(crate) fn offset(&self) -> Option<u64> {
        self.0.get()
    }

    pub(super) fn set(&self, offset: u64) {
        self.0.set(Some(offset));
    }
}

/// Passes over zeros; `false` if nothing follows them.
pub(super) fn skip_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let (is_end, is_found) = (bytes.is_empty(), zeros < bytes.len());
        input.consume(zeros);
        if is_end || is_found {
            return Ok(is_found);
        }
    }
}
