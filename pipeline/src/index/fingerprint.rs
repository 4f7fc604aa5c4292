//! What tells a shard from another of the same length without reading all of it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use flate2::Crc;

use crate::source::ShardLocation;
use crate::stop::Stop;

/// Bytes at the beginning and in the middle of a shard.
const PIECE_BYTES: u64 = 4 << 10;
/// Bytes at its end: more than the 10 KiB of zeros that GNU tar may fill up with.
const END_BYTES: u64 = 16 << 10;

/// CRC-32 of a shard's first 4 KiB, of 4 KiB in its middle and of its last 16 KiB; of pieces that would
/// overlap, less.
///
/// Of two archives of other samples at least the first differs. Of copies nothing does, whatever became
/// of their times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u32; 3]);

impl Fingerprint {
    /// That of a shard of `shard_bytes`. A local one costs an opening and three reads.
    ///
    /// # Errors
    /// Those of opening and reading, and where the shard has become shorter.
    pub(super) fn of(shard: &ShardLocation, shard_bytes: u64, stop: &Stop) -> io::Result<Self> {
        let file = shard.path().map(File::open).transpose()?;
        let mut buffer = [0; END_BYTES as usize];
        let mut sums = [0; 3];
        for (sum, piece) in sums.iter_mut().zip(pieces(shard_bytes)) {
            let length = piece.end - piece.start;
            let bytes = &mut buffer[..length as usize];
            match &file {
                Some(file) => file.read_exact_at(bytes, piece.start)?,
                None if length == 0 => {}
                None => shard.open_range(piece, stop)?.read_exact(bytes)?,
            }
            let mut crc = Crc::new();
            crc.update(bytes);
            *sum = crc.sum();
        }
        Ok(Fingerprint(sums))
    }
}

/// Beginning, middle and end of a shard, without overlap.
fn pieces(shard_bytes: u64) -> [Range<u64>; 3] {
    let first = 0..shard_bytes.min(PIECE_BYTES);
    let last = shard_bytes.saturating_sub(END_BYTES).max(first.end)..shard_bytes;
    let start = (shard_bytes / 2).clamp(first.end, last.start);
    let middle = start..(start + PIECE_BYTES).min(last.start);
    [first, middle, last]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_within_and_apart() {
        for bytes in [
            0,
            1,
            4095,
            4096,
            4097,
            20_480,
            20_481,
            24_576,
            24_577,
            1 << 40,
            u64::MAX,
        ] {
            let [first, middle, last] = pieces(bytes);
            assert!(
                first.end <= middle.start && middle.end <= last.start,
                "{bytes}"
            );
            assert_eq!((first.start, last.end), (0, bytes));
            assert!(middle.start <= middle.end && last.start <= last.end);
            if bytes <= PIECE_BYTES + END_BYTES {
                assert_eq!(first.end, last.start, "all of a short one");
            }
        }
        assert_eq!(
            pieces(1 << 20),
            [0..4096, 524_288..528_384, 1_032_192..1_048_576]
        );
    }

    #[test]
    fn every_piece_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.tar");
        let shard = ShardLocation::local(&path);
        let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
        let fingerprint = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Fingerprint::of(&shard, bytes.len() as u64, &Stop::default()).unwrap()
        };
        let of_all = fingerprint(&bytes);
        for at in [0, 4095, 50_000, 54_095, 83_616, 99_999] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(fingerprint(&changed), of_all, "{at}");
        }
        let mut elsewhere = bytes.clone();
        elsewhere[20_000] ^= 1;
        assert_eq!(fingerprint(&elsewhere), of_all);
        assert!(Fingerprint::of(&shard, 100_001, &Stop::default()).is_err());
        fingerprint(&[]);
    }
}
