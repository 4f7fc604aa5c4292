//! Edits of a sidecar whose checksums are put right again: a hostile index, not a damaged one. Each edit is four
//! bytes: a place, and what is added there.
#![no_main]

use std::cell::OnceCell;

use libfuzzer_sys::fuzz_target;
use qf_fuzz::{options, stream, write};
use qf_pipeline::index::{build_index, read_samples, Checksums, ShardIndex};
use qf_pipeline::shard::read::NoObserver;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use sha2::{Digest, Sha256};

/// From the table of the format in `qf_pipeline::index`.
const HEADER: usize = 176;
const RECORD: usize = 76;

struct Base {
    shard: ShardLocation,
    sidecar: Vec<u8>,
}

thread_local! {
    static BASES: OnceCell<Vec<Base>> = const { OnceCell::new() };
}

/// An archive of five samples, plain and in zstd frames.
fn bases() -> Vec<Base> {
    let mut plain = Vec::new();
    for sample in 0..5usize {
        for (extension, len) in [("jpg", 700 * sample), ("txt", 9)] {
            let mut header = [0; 512];
            let name = format!("{sample:04}.{extension}");
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[100..108].copy_from_slice(b"0000644\0");
            header[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
            header[156] = b'0';
            header[257..265].copy_from_slice(b"ustar\x0000");
            plain.extend(header);
            plain.extend(std::iter::repeat_n(b'x', len));
            plain.resize(plain.len().next_multiple_of(512), 0);
        }
    }
    plain.resize(plain.len() + 1024, 0);
    qf_fuzz::repair_tar(&mut plain);
    let frames: Vec<u8> = plain
        .chunks(2048)
        .flat_map(|chunk| zstd::encode_all(chunk, 1).expect("compresses"))
        .collect();
    let base = |(name, bytes): (&str, &[u8])| {
        let shard = write(name, bytes);
        assert_eq!(stream(&shard).0.len(), 5);
        let index = build_index(&shard, &options(), Checksums::Taken, &Stop::default(), &|_| {});
        let sidecar = index.expect("an index").bytes().to_vec();
        Base { shard, sidecar }
    };
    [("base.tar", &plain[..]), ("base.tar.zst", &frames)]
        .map(base)
        .into()
}

fn repair(sidecar: &mut [u8]) {
    let count = u32::from_le_bytes(sidecar[16..20].try_into().expect("four")) as usize;
    let names_at = HEADER.saturating_add(count.saturating_mul(RECORD));
    for number in 0..count.min(1000) {
        let at = HEADER + RECORD * number;
        let Some(record) = sidecar.get(at..at + RECORD) else {
            break;
        };
        let field = |range: std::ops::Range<usize>| {
            record[range]
                .iter()
                .rev()
                .fold(0usize, |number, &byte| number << 8 | usize::from(byte))
        };
        let (offset, len) = (field(40..48), field(48..52));
        let entry = names_at
            .checked_add(offset)
            .and_then(|from| sidecar.get(from..from.checked_add(len)?));
        let crc = entry.map(crc32fast::hash);
        if let Some(crc) = crc {
            sidecar[at + 64..at + 68].copy_from_slice(&crc.to_le_bytes());
        }
        let mut summed = (number as u32).to_le_bytes().to_vec();
        summed.extend(&sidecar[at..at + 72]);
        let sum = crc32fast::hash(&summed);
        sidecar[at + 72..at + 76].copy_from_slice(&sum.to_le_bytes());
    }
    let tables: [u8; 32] = Sha256::digest(&sidecar[HEADER..]).into();
    sidecar[96..128].copy_from_slice(&tables);
    let header: [u8; 32] = Sha256::digest(&sidecar[..144]).into();
    sidecar[144..176].copy_from_slice(&header);
}

fn check(base: &Base, edits: &[u8]) {
    let mut sidecar = base.sidecar.clone();
    for edit in edits.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % sidecar.len();
        for (byte, more) in sidecar[at..].iter_mut().zip(&edit[2..]) {
            *byte = byte.wrapping_add(*more);
        }
    }
    repair(&mut sidecar);
    let path = base.shard.sidecar(".qfidx");
    std::fs::write(path.path().expect("a file"), &sidecar).expect("writes");
    let stop = Stop::default();
    let Ok(Some(index)) = ShardIndex::open(&base.shard, &stop) else {
        return;
    };
    let wanted: Vec<u32> = (0..index.len().min(100)).collect();
    let _ = index.entries(&base.shard, 0..index.len().min(100), &stop);
    let _ = index.verify_tables(&base.shard, &stop);
    let _ = index.verify(&base.shard, &options(), &stop);
    let mut visit = |_: u32, sample: Result<qf_pipeline::EncodedSample, _>| {
        if let Ok(sample) = sample {
            assert!(sample.payload_bytes() < 10_000);
        }
        true
    };
    let _ = read_samples(
        &base.shard,
        0,
        &index,
        &wanted,
        &options(),
        &NoObserver,
        &stop,
        &mut visit,
    );
}

fuzz_target!(|data: &[u8]| {
    BASES.with(|cell| {
        for base in cell.get_or_init(bases) {
            check(base, data);
        }
    });
});
