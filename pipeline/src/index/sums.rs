//! CRC-32C of parts of a stream whose ends are known late: a tar sample begins with headers that were read
//! before it is known whose they are, and ends where the next one begins.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};

use crc32c::{crc32c_append, crc32c_combine};

/// Size of a header's block, in bytes: every header begins at a multiple of it.
const BLOCK_BYTES: u64 = 512;

/// Beginnings of blocks that are remembered. Before the header of a file there may be extension headers;
/// three are usual.
const MAX_BLOCKS: usize = 1024;

/// Sums over a stream that is read through [`StreamSums::reader`].
#[derive(Debug, Default)]
pub(super) struct StreamSums(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    position: u64,
    /// Of everything so far.
    sum: u32,
    /// Where blocks were read that may be headers, and the sum of everything before each.
    blocks: VecDeque<(u64, u32)>,
    /// Where a sample may end, and the sum of everything before.
    end: u64,
    end_sum: Option<u32>,
}

/// The sum of everything before a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    position: u64,
    sum: u32,
}

impl StreamSums {
    /// The stream, which is summed as it is read.
    pub(super) fn reader<R: Read>(&self, inner: R) -> SummedReader<'_, R> {
        SummedReader { inner, sums: self }
    }

    /// What is before a header's block. `None` if it was too many headers ago.
    pub(super) fn before(&self, position: u64) -> Option<Before> {
        let mut state = self.0.borrow_mut();
        let mut blocks = state.blocks.iter().rev();
        let found = blocks.find(|(at, _)| *at == position).copied();
        state.blocks.clear();
        found.map(|(position, sum)| Before { position, sum })
    }

    /// Says where the present sample ends, as far as is known: the reader is not behind it yet, or at it.
    pub(super) fn note_end(&self, end: u64) {
        let mut state = self.0.borrow_mut();
        state.end = end;
        state.end_sum = (end <= state.position).then_some(state.sum);
    }

    /// The sum of what lies between a sample's beginning and its end, which was noted last; up to the end of
    /// the stream, if that comes first.
    pub(super) fn between(&self, before: Option<Before>, end: u64) -> Option<u32> {
        let state = self.0.borrow();
        let before = before?;
        debug_assert_eq!(state.end, end);
        let sum = state.end_sum.unwrap_or(state.sum);
        let len = usize::try_from(end.min(state.position).checked_sub(before.position)?).ok()?;
        // crc(ab) = shift(crc(a), len(b)) ^ crc(b)
        Some(sum ^ crc32c_combine(before.sum, 0, len))
    }
}

impl State {
    fn take(&mut self, bytes: &[u8]) {
        let is_block = self.position.is_multiple_of(BLOCK_BYTES);
        if is_block && bytes.len() as u64 <= BLOCK_BYTES {
            if self.blocks.len() == MAX_BLOCKS {
                self.blocks.pop_front();
            }
            self.blocks.push_back((self.position, self.sum));
        }
        let until_end = self.end.checked_sub(self.position).filter(|len| *len > 0);
        let until_end = until_end.and_then(|len| usize::try_from(len).ok());
        let (first, rest) = match until_end {
            Some(len) if len <= bytes.len() => {
                let (first, rest) = bytes.split_at(len);
                self.sum = crc32c_append(self.sum, first);
                self.end_sum = Some(self.sum);
                (first.len(), rest)
            }
            _ => (0, bytes),
        };
        self.sum = crc32c_append(self.sum, rest);
        self.position += (first + rest.len()) as u64;
    }
}

/// A stream whose bytes are summed; what is passed over is read as well.
pub(super) struct SummedReader<'a, R> {
    inner: R,
    sums: &'a StreamSums,
}

impl<R: Read> Read for SummedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sums.0.borrow_mut().take(&buffer[..count]);
        Ok(count)
    }
}

impl<R: Read> Seek for SummedReader<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Current(ahead @ 0..) = to else {
            let message = "only what lies ahead can be sought";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        };
        let ahead = ahead.unsigned_abs();
        let passed = io::copy(&mut self.by_ref().take(ahead), &mut io::sink())?;
        match passed < ahead {
            true => Err(crate::shard::forward::ends_early()),
            false => Ok(self.sums.0.borrow().position),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_sums_of_their_bytes() {
        let bytes: Vec<u8> = (0..40_000u32).map(|at| (at * at / 7 % 251) as u8).collect();
        let sums = StreamSums::default();
        let mut reader = sums.reader(&bytes[..]);
        let mut block = [0; 512];
        let mut read = |len: usize| reader.read_exact(&mut block[..len]).unwrap();
        read(512);
        read(512);
        read(512);
        let before = sums.before(512);
        assert!(
            before.is_some() && sums.before(1024).is_none(),
            "the last asked for"
        );
        // Behind the position, at it, and where the stream ends before it.
        sums.note_end(5120);
        let mut passed = [0; 7000];
        reader.read_exact(&mut passed).unwrap();
        assert_eq!(
            sums.between(before, 5120),
            Some(crc32c::crc32c(&bytes[512..5120]))
        );
        let at = 1536 + 7000;
        sums.note_end(at);
        assert_eq!(
            sums.between(before, at),
            Some(crc32c::crc32c(&bytes[512..at as usize]))
        );
        sums.note_end(1 << 40);
        assert!(reader.seek(SeekFrom::Current(1 << 39)).is_err());
        assert_eq!(
            sums.between(before, 1 << 40),
            Some(crc32c::crc32c(&bytes[512..]))
        );
        assert_eq!(sums.between(None, 1 << 40), None);
    }
}
