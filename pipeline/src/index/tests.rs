//! Random access against streaming, on every kind of shard; then damaged and outdated sidecars.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::format::Header;
use super::*;
use crate::error::{SampleError, ShardError};
use crate::sample::EncodedSample;
use crate::shard::read::{
    read_shard, LeaveMembers, MemberMemory, NoObserver, ReadObserver, ReadOptions, WatchReads,
};
use crate::shard::verify::Verify;
use crate::source::{ShardBytes, ShardLocation};
use crate::stop::Stop;
use crate::test_data;
use crate::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};

/// What a sample, or its error, looks like.
type Seen = Result<EncodedSample, String>;

fn seen(result: Result<EncodedSample, SampleError>) -> Seen {
    result.map_err(|error| format!("{error:?}"))
}

fn stream(shard: &ShardLocation, options: &ReadOptions) -> Result<Vec<Seen>, ShardError> {
    let mut samples = Vec::new();
    let mut visit = |sample| {
        samples.push(seen(sample));
        true
    };
    let stop = Stop::default();
    read_shard(shard, 5, options, &NoObserver, &stop, &mut visit).map(|_| samples)
}

fn pick(
    shard: &ShardLocation,
    index: &ShardIndex,
    wanted: &[u32],
    options: &ReadOptions,
) -> Result<Vec<Seen>, ShardError> {
    pick_observed(shard, index, wanted, options, &NoObserver)
}

fn pick_observed(
    shard: &ShardLocation,
    index: &ShardIndex,
    wanted: &[u32],
    options: &ReadOptions,
    observer: &dyn ReadObserver,
) -> Result<Vec<Seen>, ShardError> {
    let mut samples = Vec::new();
    let mut visit = |at: u32, sample| {
        assert_eq!(wanted[samples.len()], at);
        samples.push(seen(sample));
        true
    };
    let stop = Stop::default();
    read_samples(
        shard, 5, index, wanted, options, observer, &stop, &mut visit,
    )?;
    assert_eq!(samples.len(), wanted.len());
    Ok(samples)
}

fn build(shard: &ShardLocation) -> Result<EncodedIndex, ShardError> {
    build_with(shard, Checksums::Taken)
}

fn build_with(shard: &ShardLocation, checksums: Checksums) -> Result<EncodedIndex, ShardError> {
    let (options, stop) = (ReadOptions::default(), Stop::default());
    build_index(shard, &options, checksums, &stop, &|_| {})
}

fn open(shard: &ShardLocation) -> Result<Option<ShardIndex>, ShardError> {
    match ShardIndex::find(shard, &Stop::default())? {
        Found::Index(index) => Ok(Some(index)),
        Found::Absent => Ok(None),
        other => panic!("{other:?}"),
    }
}

fn verify(index: &ShardIndex, shard: &ShardLocation) -> Result<(), ShardError> {
    index.verify(shard, &ReadOptions::default(), &Stop::default())
}

fn option_sets() -> [ReadOptions; 2] {
    let tight = ReadOptions {
        max_sample_bytes: 600,
        extra_members: vec!["cls".into(), "seg.png".into()],
        ..ReadOptions::default()
    };
    [ReadOptions::default(), tight]
}

/// Indexes a shard and compares both ways of reading it; `None` for what is no sound shard.
fn check(path: &Path, subsets: &[Vec<u32>]) -> Option<ShardIndex> {
    let shard = ShardLocation::local(path);
    let encoded = match (build(&shard), stream(&shard, &ReadOptions::default())) {
        (Ok(encoded), Ok(_)) => encoded,
        (Err(error), Err(streamed)) => {
            assert_eq!(error.to_string(), streamed.to_string());
            assert!(build_with(&shard, Checksums::LeftOut).is_err());
            return None;
        }
        (built, streamed) => panic!("{}: {built:?} but {streamed:?}", path.display()),
    };
    encoded.write_beside(&shard).unwrap();
    let index = open(&shard).unwrap().unwrap();
    verify(&index, &shard).unwrap();
    check_without_checksums(&shard, &index);
    encoded.write_beside(&shard).unwrap();
    for options in option_sets() {
        let streamed = stream(&shard, &options).unwrap();
        let keys: Vec<String> = streamed
            .iter()
            .map(|sample| match sample {
                Ok(sample) => sample.id.key.clone(),
                Err(message) => {
                    let key = message.split("key: \"").nth(1).unwrap();
                    key.split("\", offset_bytes").next().unwrap().to_owned()
                }
            })
            .collect();
        let stop = Stop::default();
        assert_eq!(index.len() as usize, streamed.len());
        let read = index.keys(&shard, 0..index.len(), &stop).unwrap();
        let unescaped = keys.iter().map(|key| key.replace("\\\\", "\\"));
        let plain = read.iter().zip(unescaped).zip(&keys);
        assert!(
            plain.clone().all(|((a, b), c)| *a == b || a == c),
            "{keys:?}"
        );
        let all: Vec<u32> = (0..index.len()).collect();
        if index.access().is_none() {
            let error = pick(&shard, &index, &all, &options).unwrap_err();
            assert!(error.message.contains("no random access"), "{error}");
            continue;
        }
        assert_eq!(pick(&shard, &index, &all, &options).unwrap(), streamed);
        let singles = all.iter().map(|&sample| vec![sample]);
        for wanted in subsets.iter().cloned().chain(singles.take(50)) {
            let wanted: Vec<u32> = wanted.into_iter().filter(|&at| at < index.len()).collect();
            let expected: Vec<Seen> = wanted
                .iter()
                .map(|&at| streamed[at as usize].clone())
                .collect();
            let read = pick(&shard, &index, &wanted, &options).unwrap();
            assert_eq!(read, expected, "{wanted:?} of {}", path.display());
        }
    }
    Some(index)
}

/// An index without checksums finds the same samples at the same places.
fn check_without_checksums(shard: &ShardLocation, index: &ShardIndex) {
    let stop = Stop::default();
    let all: Vec<u32> = (0..index.len()).collect();
    let entries = index.entries(shard, 0..index.len(), &stop).unwrap();
    let encoded = build_with(shard, Checksums::LeftOut).unwrap();
    assert_eq!(encoded.samples(), index.len());
    encoded.write_beside(shard).unwrap();
    let bare = open(shard).unwrap().unwrap();
    assert!(!bare.has_checksums() && bare.shard_sha256().is_none() && index.has_checksums());
    assert_eq!(bare.access(), index.access());
    assert_eq!(bare.entries(shard, 0..index.len(), &stop).unwrap(), entries);
    verify(&bare, shard).unwrap();
    if bare.access().is_some() {
        let options = ReadOptions::default();
        let read = pick(shard, &bare, &all, &options).unwrap();
        assert_eq!(read, stream(shard, &options).unwrap());
    }
}

/// A tar of these members; `dir/` paths are folders.
fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        if path.len() % 7 == 3 {
            tar.append_pax_extensions([("comment", path.as_bytes())])
                .unwrap();
        }
        tar.append_data(&mut header, path, &data[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

/// Frames cut anywhere.
fn zstd_frames(content: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (content.len() + 1)).collect();
    cuts.extend([0, content.len()]);
    cuts.sort_unstable();
    let frames = cuts
        .windows(2)
        .map(|cut| zstd::encode_all(&content[cut[0]..cut[1]], 1).unwrap());
    frames.collect::<Vec<_>>().concat()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn awkward_members() -> Vec<(String, Vec<u8>)> {
    let long = format!("{}/{}", "folder".repeat(40), "k".repeat(200));
    [
        ("readme", 10),
        ("dir/", 0),
        ("a.jpg", 700),
        ("a.txt", 20),
        (".hidden", 600),
        ("a.cls", 1),
        ("__meta__/x.jpg", 30),
        ("dir/b.jpg", 0),
        ("dir/", 0),
        ("dir/b.JPG", 5),
        ("dir/__b__/c.txt", 5),
        (&format!("{long}.jpg"), 300_000),
        (&format!("{long}.seg.png"), 513),
        ("a.json", 9),
        ("notes", 5000),
        ("z.png", 400),
        ("z.txt", 400),
        ("end", 1),
    ]
    .map(|(path, size)| (path.to_owned(), vec![b'x'; size]))
    .to_vec()
}

#[test]
fn random_access_gives_what_streaming_gives() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| write(folder.path(), name, bytes);
    let tar = tar_of(&awkward_members());
    let subsets = [vec![0, 5], vec![1, 2, 4], vec![]];
    let access = |path: &Path| check(path, &subsets).unwrap().access();
    assert_eq!(access(&write("s.tar", &tar)), Some(Access::Tar));
    assert_eq!(access(&write("s.tar.gz", &gzip(&tar))), None);
    let frames = zstd_frames(&tar, &[1, 512, 700, 5000, 5000, 100_000]);
    let zst = write("s.tar.zst", &frames);
    assert_eq!(access(&zst), Some(Access::ZstdFrames));
    assert_eq!(check(&zst, &[]).unwrap().len(), 6);
    let empty = write("e.tar", &tar_of(&[]));
    assert_eq!(check(&empty, &[]).unwrap().len(), 0);
    // What follows the end-of-archive marker belongs to the checksum alone.
    let padded = [&tar[..], &[0; 10240], b"junk"].concat();
    assert_eq!(access(&write("p.tar", &padded)), Some(Access::Tar));
    assert_eq!(
        access(&write("p.tar.zst", &zstd_frames(&padded, &[9000]))),
        Some(Access::ZstdFrames)
    );
    for cut in [tar.len() - 1024, 2000, 700, 100, 0] {
        check(&write("cut.tar", &tar[..cut]), &[]);
    }
    // A sample too deep in its frame.
    let mut deep = awkward_members();
    deep.insert(2, ("0.jpg".into(), vec![0; 17 << 20]));
    let deep = tar_of(&deep);
    assert_eq!(access(&write("d.tar.zst", &zstd_frames(&deep, &[]))), None);
    let cut = 17 << 20;
    assert_eq!(
        access(&write("c.tar.zst", &zstd_frames(&deep, &[cut]))),
        Some(Access::ZstdFrames)
    );
}

fn pair(number: usize) -> ShardSample {
    ShardSample {
        key: format!(
            "{}k{number:05}",
            if number.is_multiple_of(5) {
                "d.v2/"
            } else {
                ""
            }
        ),
        extension: ["jpg", "png"][number % 2].to_owned(),
        image: (0..number * 997 % 70_001)
            .map(|at| (at * at) as u8)
            .collect(),
        captions: (0..number % 3).map(|n| format!("caption {n}")).collect(),
        text_member: number % 4 != 3,
        json: (number % 4 > 1).then(|| br#"{"caption": "x"}"#.to_vec()),
        members: Vec::new(),
    }
}

fn write_shard(path: &Path, format: ShardFormat, samples: usize) -> ShardLocation {
    let mut writer = ShardWriter::create(path, &ShardOptions::new(format)).unwrap();
    for number in 0..samples {
        writer.write(&pair(number)).unwrap();
    }
    let written = writer.finish().unwrap();
    let shard = ShardLocation::local(path);
    assert_eq!(written.index.as_deref(), shard.sidecar(INDEX_ENDING).path());
    shard
}

#[test]
fn writing_a_shard_and_reading_it_give_the_same_index() {
    let folder = tempfile::tempdir().unwrap();
    for format in ShardFormat::ALL {
        for samples in [0, 1, 230] {
            let path = folder.path().join(format!("{samples}.{format}"));
            let shard = write_shard(&path, format, samples);
            let sidecar = shard.sidecar(INDEX_ENDING);
            let written = fs::read(sidecar.path().unwrap()).unwrap();
            let built = build(&shard).unwrap();
            assert_eq!(built.bytes(), written, "{samples} {format}");
            let index = check(&path, &[vec![3, 99, 100, 200], vec![229]]).unwrap();
            let expected = match format {
                ShardFormat::Tar => Some(Access::Tar),
                ShardFormat::TarGz => None,
                ShardFormat::TarZst => Some(Access::ZstdFrames),
                ShardFormat::Arrow => Some(Access::ArrowBatches),
            };
            assert_eq!((index.len() as usize, index.access()), (samples, expected));
        }
    }
    // The file format: the same messages after eight bytes more.
    let stream = fs::read(folder.path().join("230.arrow")).unwrap();
    let file = write(
        folder.path(),
        "file",
        &[b"ARROW1\0\0", &stream[..]].concat(),
    );
    let index = check(&file, &[vec![100], vec![5, 229]]).unwrap();
    assert_eq!(index.access(), Some(Access::ArrowBatches));
    let zst = write(folder.path(), "a.zst", &zstd_frames(&stream, &[100, 9999]));
    assert_eq!(check(&zst, &[]).unwrap().access(), None);
}

#[test]
fn arrow_dictionaries_before_the_first_batch_are_read_with_the_schema() {
    use arrow_array::builder::StringDictionaryBuilder;
    use arrow_array::types::Int32Type;
    use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
    let batch = |captions: [&str; 3]| {
        let mut caption = StringDictionaryBuilder::<Int32Type>::new();
        captions.iter().for_each(|text| caption.append_value(text));
        let columns: [(&str, ArrayRef); 2] = [
            (
                "image",
                Arc::new(BinaryArray::from_vec(vec![b"x", b"GIF8", b""])),
            ),
            ("caption", Arc::new(caption.finish())),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    for (name, second, expected) in [
        ("same", ["b", "a", "b"], Some(Access::ArrowBatches)),
        ("late", ["c", "c", "d"], None),
    ] {
        let first = batch(["a", "b", "a"]);
        let mut bytes = Vec::new();
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(&mut bytes, &first.schema());
        let writer = writer.as_mut().unwrap();
        writer.write(&first).unwrap();
        let second = match expected {
            // The same dictionary is not written again.
            Some(_) => first.slice(1, 2),
            None => batch(second),
        };
        writer.write(&second).unwrap();
        writer.finish().unwrap();
        let path = write(folder.path(), name, &bytes);
        let index = check(&path, &[vec![4], vec![0, 3]]).unwrap();
        assert_eq!(index.access(), expected, "{name}");
    }
}

#[test]
fn every_shard_of_the_test_data() {
    let mut folders: Vec<PathBuf> = ["data/wds", "data/hostile", "data/arrow"]
        .into_iter()
        .filter_map(|folder| test_data::find("every_shard_of_the_test_data", folder))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (mut files, mut indexed, mut samples) = (0, 0, 0);
    let is_present = !folders.is_empty();
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // A copy: no sidecar goes into the test data.
            let bytes = fs::read(&path).unwrap();
            let copy = write(folder.path(), &format!("{files}"), &bytes);
            files += 1;
            if let Some(index) = check(&copy, &[vec![0, 2], vec![1, 3, 4]]) {
                indexed += 1;
                samples += index.len();
            }
        }
    }
    println!("{indexed} of {files} files are sound shards, with {samples} samples");
    assert!(!is_present || (indexed > 30 && samples > 100));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_subset_of_any_tar(
        members in vec((0..6u8, 0..5u8, 0..2000usize), 0..40),
        cuts in vec(any::<usize>(), 0..8),
        subsets in vec(proptest::collection::btree_set(0..40u32, 0..20), 4),
    ) {
        let members: Vec<_> = members.into_iter().map(|(key, extension, size)| {
            let extension = ["jpg", "txt", "JPG", "json", "seg.png"][extension as usize];
            (format!("k{key}.{extension}"), vec![key; size])
        }).collect();
        let tar = tar_of(&members);
        let folder = tempfile::tempdir().unwrap();
        let subsets: Vec<Vec<u32>> = subsets.into_iter().map(Vec::from_iter).collect();
        for (name, bytes) in [("a", tar.clone()), ("b", zstd_frames(&tar, &cuts))] {
            let index = check(&write(folder.path(), name, &bytes), &subsets).unwrap();
            prop_assert!(index.access().is_some());
        }
    }
}

/// Counts openings and what is read and decompressed.
#[derive(Default)]
struct Counting {
    opened: Cell<usize>,
    bytes: Arc<std::sync::atomic::AtomicU64>,
}

struct CountedRead(Box<dyn Read>, Arc<std::sync::atomic::AtomicU64>);

impl Read for CountedRead {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        let order = std::sync::atomic::Ordering::Relaxed;
        self.1.fetch_add(count as u64, order);
        Ok(count)
    }
}

impl WatchReads for Counting {
    fn watch_file(&self, file: ShardBytes) -> Box<dyn Read> {
        self.opened.set(self.opened.get() + 1);
        file
    }
    fn watch_decompressor(&self, decompressor: Box<dyn Read>) -> Box<dyn Read> {
        Box::new(CountedRead(decompressor, self.bytes.clone()))
    }
}

impl MemberMemory for Counting {}

impl LeaveMembers for Counting {}

#[test]
fn neighbours_share_a_read_and_a_frame_is_decompressed_once() {
    let folder = tempfile::tempdir().unwrap();
    for format in [ShardFormat::Tar, ShardFormat::TarZst, ShardFormat::Arrow] {
        let path = folder.path().join(format!("s.{format}"));
        let shard = write_shard(&path, format, 230);
        let index = open(&shard).unwrap().unwrap();
        let count = |wanted: &[u32]| {
            let observer = Counting::default();
            let options = ReadOptions::default();
            pick_observed(&shard, &index, wanted, &options, &observer).unwrap();
            (
                observer.opened.get(),
                observer.bytes.load(std::sync::atomic::Ordering::Relaxed),
            )
        };
        let all: Vec<u32> = (0..230).collect();
        let (opened, decompressed) = count(&all);
        assert_eq!(opened, 1, "{format}");
        if format == ShardFormat::TarZst {
            let content = zstd::decode_all(&fs::read(&path).unwrap()[..]).unwrap();
            assert!(decompressed <= content.len() as u64);
            let one = count(&[120]).1;
            assert!(one < 400_000, "{one} bytes decompressed for one sample");
        }
        if format == ShardFormat::Tar {
            assert_eq!(count(&[0, 1, 3]).0, 1);
            assert_eq!(count(&[0, 100, 200]).0, 3);
        }
    }
}

#[test]
fn damaged_sidecars_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for format in [ShardFormat::Tar, ShardFormat::TarZst, ShardFormat::Arrow] {
        let shard = write_shard(&folder.path().join(format!("s.{format}")), format, 4);
        let sidecar = shard.sidecar(INDEX_ENDING);
        let path = sidecar.path().unwrap();
        let bytes = fs::read(path).unwrap();
        let stop = Stop::default();
        // Whatever is done with what opens: an error or the right answer, no panic.
        let exercise = |index: &ShardIndex| {
            let wanted = [0, 1, 2, 3];
            let keys = index.keys(&shard, 0..4, &stop);
            let picked = pick(&shard, index, &wanted, &ReadOptions::default());
            (keys, picked)
        };
        for length in 0..bytes.len() {
            fs::write(path, &bytes[..length]).unwrap();
            let message = open(&shard).unwrap_err().message;
            assert!(message.contains("qfdata index"), "{length}: {message}");
        }
        // Cut short after it was opened, as a remote one is found to be.
        fs::write(path, &bytes).unwrap();
        let opened = open(&shard).unwrap().unwrap();
        for length in (0..bytes.len()).step_by(3) {
            fs::write(path, &bytes[..length]).unwrap();
            let (keys, _) = exercise(&opened);
            assert!(keys.unwrap_err().message.contains("qfdata index"));
            assert!(verify(&opened, &shard).is_err());
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(path, &flipped).unwrap();
            match open(&shard) {
                Err(error) => assert!(at < 176 && error.message.contains(".qfidx"), "{error}"),
                Ok(index) => {
                    assert!(at >= 176);
                    let index = index.unwrap();
                    let error = verify(&index, &shard).unwrap_err();
                    assert!(error.message.contains("is damaged"), "{error}");
                    let _ = exercise(&index);
                }
            }
        }
    }
}

/// A byte of a shard that changed after it was indexed: what is read are the samples as they were, or errors.
#[test]
fn no_flipped_byte_of_a_shard_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let options = ReadOptions {
        all_members: true,
        ..ReadOptions::default()
    };
    let unverified = ReadOptions {
        verify: Verify::Index,
        ..options.clone()
    };
    let wanted: Vec<u32> = (0..12).collect();
    for format in [ShardFormat::Tar, ShardFormat::TarZst, ShardFormat::Arrow] {
        let path = folder.path().join(format!("s.{format}"));
        let shard = write_shard(&path, format, 12);
        let index = open(&shard).unwrap().unwrap();
        let sound = pick(&shard, &index, &wanted, &options).unwrap();
        let bytes = fs::read(&path).unwrap();
        let (mut mismatches, mut unnoticed) = (0, 0);
        for at in (0..bytes.len()).step_by(97) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, flipped).unwrap();
            for sample in &wanted {
                let one = [*sample];
                let expected = &sound[*sample as usize];
                match pick(&shard, &index, &one, &options).as_deref() {
                    Ok([found]) if found == expected => {}
                    Ok([Err(error)]) => {
                        assert!(error.contains("ChecksumMismatch"), "{error}");
                        mismatches += 1;
                    }
                    Ok(found) => panic!("{format}, byte {at}: {found:?}"),
                    Err(error) => assert!(!error.message.is_empty()),
                }
                if let Ok(found) = pick(&shard, &index, &one, &unverified) {
                    unnoticed += usize::from(found[0] != *expected);
                }
            }
        }
        // Those of zstd frames are noticed by the frames' own checksums.
        let needed = format != ShardFormat::TarZst;
        assert_eq!(mismatches > 100, needed, "{format}: {mismatches}");
        assert_eq!(unnoticed > 100, needed, "{format}: {unnoticed}");
    }
}

#[test]
fn forged_counts_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shard = write_shard(&folder.path().join("s.tar"), ShardFormat::Tar, 4);
    let index = open(&shard).unwrap().unwrap();
    let forged = ShardIndex {
        header: Header {
            samples: u32::MAX,
            names_bytes: 1 << 60,
            ..index.header.clone()
        },
    };
    // As it would be for a remote shard, whose sidecar's length is not asked for.
    let stop = Stop::default();
    assert_eq!(forged.len(), u32::MAX);
    let error = forged.keys(&shard, 0..u32::MAX, &stop).unwrap_err();
    assert!(error.message.contains("ends after"), "{error}");
    let wanted = [0, 5000, u32::MAX - 1];
    let error = pick(&shard, &forged, &wanted, &ReadOptions::default()).unwrap_err();
    assert!(error.message.contains("ends after"), "{error}");
    let sidecar = shard.sidecar(INDEX_ENDING);
    fs::write(sidecar.path().unwrap(), forged.header.to_bytes()).unwrap();
    let error = open(&shard).unwrap_err();
    assert!(error.message.contains("by its header"), "{error}");
}

#[test]
fn an_outdated_index_names_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let options = ReadOptions::default();
    let members = |keys: [&str; 3]| {
        let member = |key: &str| (format!("{key}.jpg"), vec![1; 2000]);
        keys.map(member).to_vec()
    };
    type Pack = fn(&[u8]) -> Vec<u8>;
    let packs: [(&str, Pack); 2] = [
        ("s.tar", |tar| tar.to_vec()),
        ("s.tar.zst", |tar| {
            let mut bytes = zstd_frames(tar, &[2560]);
            bytes.extend([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
            bytes
        }),
    ];
    for (name, pack) in packs {
        let path = write(
            folder.path(),
            name,
            &pack(&tar_of(&members(["aa", "bb", "cc"]))),
        );
        let shard = ShardLocation::local(&path);
        assert!(open(&shard).unwrap().is_none());
        build(&shard).unwrap().write_beside(&shard).unwrap();
        let index = open(&shard).unwrap().unwrap();
        let size = fs::metadata(&path).unwrap().len();

        let swapped = pack(&tar_of(&members(["aa", "xx", "cc"])));
        if swapped.len() as u64 == size {
            fs::write(&path, swapped).unwrap();
            let error = pick(&shard, &index, &[0, 1], &options).unwrap_err().message;
            assert!(error.contains("`bb`") && error.contains("`xx`"), "{error}");
            let error = verify(&index, &shard).unwrap_err().message;
            assert!(error.contains("SHA-256"), "{error}");
        }
        fs::write(&path, vec![7; size as usize]).unwrap();
        let error = pick(&shard, &index, &[1], &options).unwrap_err().message;
        assert!(error.contains("sample 1 (`bb`)"), "{error}");

        fs::write(&path, b"short").unwrap();
        let error = open(&shard).unwrap_err().message;
        let sides = [format!("shard of {size} bytes"), "shard has 5".into()];
        assert!(sides.iter().all(|side| error.contains(side)), "{error}");
        let error = pick(&shard, &index, &[1], &options).unwrap_err().message;
        assert!(error.contains("qfdata index"), "{error}");

        fs::remove_file(&path).unwrap();
        assert!(open(&shard).unwrap_err().message.contains("cannot be read"));
    }
    let path = folder.path().join("s.arrow");
    let shard = write_shard(&path, ShardFormat::Arrow, 4);
    let index = open(&shard).unwrap().unwrap();
    let bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(6)
        .position(|bytes| bytes == b"k00002")
        .unwrap();
    let mut changed = bytes.clone();
    changed[at] = b'K';
    fs::write(&path, changed).unwrap();
    let error = pick(&shard, &index, &[1, 2], &options).unwrap_err().message;
    assert!(
        error.contains("`k00002`") && error.contains("`K00002`"),
        "{error}"
    );
}

#[test]
fn wrong_questions_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let shard = write_shard(&folder.path().join("s.tar"), ShardFormat::Tar, 4);
    let index = open(&shard).unwrap().unwrap();
    let options = ReadOptions::default();
    for (wanted, expected) in [
        (&[2, 1][..], "not in rising order"),
        (&[1, 1], "not in rising order"),
        (&[4], "samples 0 to 3 of 4"),
    ] {
        let error = pick(&shard, &index, wanted, &options).unwrap_err().message;
        assert!(error.contains(expected), "{error}");
    }
    let stop = Stop::default();
    assert_eq!(index.key(&shard, 3, &stop).unwrap(), "k00003");
    assert!(index.key(&shard, u32::MAX, &stop).is_err());
    let entry = &index.entries(&shard, 1..2, &stop).unwrap()[0];
    let members: Vec<_> = entry
        .members
        .iter()
        .map(|m| (&*m.name, m.size_bytes))
        .collect();
    assert_eq!(members, [("png", 997), ("txt", 9)]);
    let bytes = fs::read(shard.path().unwrap()).unwrap();
    let text = &entry.members[1];
    let at = text.offset_bytes as usize;
    assert_eq!(&bytes[at..at + text.size_bytes as usize], b"caption 0");

    let mut visited = 0;
    let mut visit = |_, _| {
        visited += 1;
        visited < 2
    };
    let wanted = [0, 1, 2, 3];
    read_samples(
        &shard,
        0,
        &index,
        &wanted,
        &options,
        &NoObserver,
        &stop,
        &mut visit,
    )
    .unwrap();
    assert_eq!(visited, 2);
    stop.set();
    let mut visit = |_, _| panic!("nothing is read after the stop");
    let end = read_samples(
        &shard,
        0,
        &index,
        &wanted,
        &options,
        &NoObserver,
        &stop,
        &mut visit,
    );
    assert!(end.unwrap_err().message.contains("stopped"));
    for checksums in [Checksums::Taken, Checksums::LeftOut] {
        assert!(build_index(&shard, &options, checksums, &stop, &|_| {}).is_err());
    }
}

#[test]
fn writing_over_a_shard_leaves_no_stale_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tar");
    let shard = write_shard(&path, ShardFormat::Tar, 4);
    write_shard(&path, ShardFormat::Tar, 3);
    assert_eq!(open(&shard).unwrap().unwrap().len(), 3);
    let options = ShardOptions {
        index: false,
        ..ShardOptions::new(ShardFormat::Tar)
    };
    let mut writer = ShardWriter::create(&path, &options).unwrap();
    writer.write(&pair(1)).unwrap();
    let error = writer.write(&pair(1)).unwrap_err().to_string();
    assert!(error.contains("has this key already"), "{error}");
    assert_eq!(
        open(&shard).unwrap().unwrap().len(),
        3,
        "until the new one is there"
    );
    assert_eq!(writer.finish().unwrap().index, None);
    assert!(open(&shard).unwrap().is_none());
    assert!(size_of::<ShardIndex>() <= 200);
}
