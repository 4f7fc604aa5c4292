//! What the fuzz targets share: shards in files, reading them in two ways, checksums put right.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use qf_pipeline::index::{build_index, read_samples, Checksums, ShardIndex};
use qf_pipeline::shard::arrow::OtherColumns;
use qf_pipeline::shard::note::ShardNote;
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::{EncodedSample, ShardError};

/// Most bytes of a sample's members.
pub const MAX_SAMPLE_BYTES: u64 = 1 << 20;

/// A file in memory, where the system has such a folder; the same one at each call of a process.
pub fn write(name: &str, bytes: &[u8]) -> ShardLocation {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let parent = match fs::exists("/dev/shm") {
            Ok(true) => PathBuf::from("/dev/shm"),
            _ => std::env::temp_dir(),
        };
        let folder = parent.join(format!("qf-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        folder
    });
    let path = folder.join(name);
    fs::write(&path, bytes).expect("writes");
    ShardLocation::local(path)
}

/// A panic of a library is caught, and costs a sample or a shard; one of our own is a bug.
///
/// # Panics
/// If the message of an error tells of one.
pub fn not_ours(message: &str) {
    let is_ours = message.contains("failed on it") && message.contains("pipeline/");
    assert!(!is_ours, "{message}");
}

/// Small limits, all members.
pub fn options() -> ReadOptions {
    ReadOptions {
        max_sample_bytes: MAX_SAMPLE_BYTES,
        all_members: true,
        needs_captions: false,
        other_columns: OtherColumns::All,
        max_zstd_window_log: 20,
        ..ReadOptions::default()
    }
}

/// A sample, or what is wrong with it.
pub type Seen = Result<EncodedSample, String>;

/// The samples of a shard in order, then how reading it ended.
pub fn stream(shard: &ShardLocation) -> (Vec<Seen>, Result<Vec<ShardNote>, ShardError>) {
    let mut seen = Vec::new();
    let mut payload = 0;
    let mut visit = |sample: Result<EncodedSample, _>| {
        if let Ok(sample) = &sample {
            assert!(
                sample.payload_bytes() as u64 <= MAX_SAMPLE_BYTES,
                "{}",
                sample.id
            );
            payload += sample.payload_bytes();
        }
        seen.push(sample.map_err(|error| format!("{error:?}")));
        // A small compressed file may hold any amount.
        payload < 64 << 20 && seen.len() < 100_000
    };
    let end = read_shard(
        shard,
        0,
        &options(),
        &NoObserver,
        &Stop::default(),
        &mut visit,
    );
    if let Err(error) = &end {
        not_ours(&error.message);
    }
    (seen, end)
}

/// Whether an index can be made of the shard; if so, reading by it gives what streaming gave.
///
/// # Panics
/// If it does not.
pub fn check_index(shard: &ShardLocation, streamed: &[Seen], is_whole: bool) {
    let stop = Stop::default();
    let index = build_index(shard, &options(), Checksums::Taken, &stop, &|_| {});
    assert_eq!(index.is_ok(), is_whole, "{:?}", index.err());
    let Ok(index) = index else { return };
    assert_eq!(index.samples() as usize, streamed.len());
    index.write_beside(shard).expect("writes");
    let index = ShardIndex::open(shard, &stop)
        .expect("fits")
        .expect("is there");
    if index.access().is_none() {
        return;
    }
    let wanted: Vec<u32> = (0..index.len()).collect();
    let mut at = 0;
    let mut visit = |number: u32, sample: Result<EncodedSample, _>| {
        let sample = sample.map_err(|error| format!("{error:?}"));
        assert_eq!(number as usize, at);
        assert_eq!(sample, streamed[at]);
        at += 1;
        true
    };
    let end = read_samples(
        shard,
        0,
        &index,
        &wanted,
        &options(),
        &NoObserver,
        &stop,
        &mut visit,
    );
    end.expect("reads");
    assert_eq!(at, streamed.len());
}

/// Puts the checksums of tar headers right, so that what else is in them is looked at.
pub fn repair_tar(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + 512) {
        let is_end = header.iter().all(|&byte| byte == 0);
        if !is_end {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let digits = header[124..136]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let size = digits.fold(0usize, |size, digit| {
            size.saturating_mul(8)
                .saturating_add(usize::from(digit & 7))
        });
        let blocks = if is_end { 0 } else { size.div_ceil(512) };
        at = at
            .saturating_add(512)
            .saturating_add(blocks.saturating_mul(512));
    }
}

/// Numbers that depend on the input alone.
pub struct Draw(u32);

impl Draw {
    /// Those of these bytes.
    pub fn of(bytes: &[u8]) -> Draw {
        Draw(crc32fast::hash(bytes) | 1)
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        // xorshift32
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 4) % end
    }
}
