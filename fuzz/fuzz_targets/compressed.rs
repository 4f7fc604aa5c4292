//! Any bytes as a gzip or zstd shard, against flate2 and libzstd: where they decompress all of it, the samples are
//! those of the plain archive; where they do not, reading ends with an error or a note.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use qf_fuzz::{check_index, stream, write};

const MAX_BYTES: u64 = 4 << 20;

/// What a library makes of it; `None` if that is too much to compare.
fn by_library(data: &[u8]) -> Option<io::Result<Vec<u8>>> {
    let mut plain = Vec::new();
    let read = if data.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(data)
            .take(MAX_BYTES)
            .read_to_end(&mut plain)
    } else {
        let decoder = zstd::stream::read::Decoder::new(data).and_then(|mut decoder| {
            decoder.window_log_max(20)?;
            Ok(decoder)
        });
        decoder.and_then(|decoder| decoder.take(MAX_BYTES).read_to_end(&mut plain))
    };
    (plain.len() as u64 != MAX_BYTES).then(|| read.map(|_| plain))
}

/// The same without the zeros behind the last frame, which are no damage: copies from tapes and block devices are padded.
/// The first of them may belong to the frame.
fn by_library_without_padding(data: &[u8]) -> Option<std::io::Result<Vec<u8>>> {
    let padding = data.iter().rev().take_while(|&&byte| byte == 0).count();
    let bare = data.len() - padding;
    let read = by_library(data);
    let mut shorter = (0..padding.min(16)).map(|zeros| by_library(&data[..bare + zeros]));
    match read {
        Some(Err(_)) => shorter
            .find(|read| matches!(read, Some(Ok(_))))
            .unwrap_or(read),
        read => read,
    }
}

fuzz_target!(|data: &[u8]| {
    let is_zstd = matches!(
        data,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
    );
    if !is_zstd && !data.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    let shard = write("a.compressed", data);
    let (samples, end) = stream(&shard);
    if samples.len() < 1000 {
        check_index(&shard, &samples, end.is_ok());
    }
    match by_library_without_padding(data) {
        None => {}
        Some(Ok(plain)) => {
            let (expected, expected_end) = stream(&write("b.tar", &plain));
            assert_eq!(
                samples.len(),
                expected.len(),
                "{end:?}, plain {expected_end:?}"
            );
            for (ours, plain) in samples.iter().zip(&expected) {
                match (ours, plain) {
                    (Ok(ours), Ok(plain)) => {
                        assert_eq!(
                            (&ours.id.key, &ours.members),
                            (&plain.id.key, &plain.members)
                        );
                    }
                    (ours, plain) => assert_eq!(ours.is_ok(), plain.is_ok()),
                }
            }
            assert_eq!(
                end.is_ok(),
                expected_end.is_ok(),
                "{end:?}, plain {expected_end:?}"
            );
        }
        Some(Err(error)) => {
            let is_told = end.as_ref().map_or(true, |notes| !notes.is_empty());
            assert!(is_told, "the library says {error}, reading {end:?}");
        }
    }
});
