//! Writes shards: atomic files in every format the reader knows.
//!
//! A tar shard holds, for each sample, `KEY.jpg` (the image as it is, with its own extension), then
//! `KEY.txt` (one caption a line) and, where the input had one, `KEY.json` byte for byte. Headers
//! carry no time, user or machine, so equal input gives equal bytes. An Arrow shard holds the rows
//! `image: {bytes, path: "KEY.jpg"}` and `caption`; it has no place for other JSON.
//!
//! A `tar.zst` shard consists of independent zstd frames, cut between samples once they hold 256 KiB,
//! and ends with the seek table of the [seekable format], which other decoders pass over.
//!
//! Beside each shard goes its index ([`crate::index`]), after the shard has its name: a crash leaves
//! a shard without index, never an index without its shard.
//!
//! [seekable format]: https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

mod content;
mod files;
mod options;
mod target;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic_file::AtomicFile;
use crate::error::PipelineError;
use crate::index::{IndexBuilder, Layout, MemberPlace, ShardIdentity};
use crate::shard::arrow::{ArrowShardWriter, ArrowWriteError, CaptionType};
use crate::shard::group::{key_hash, split_key};
use crate::source::ShardLocation;
use crate::stop::Stop;
use content::{
    append_member, finish, ChecksumWriter, Compressor, ShardFile, TarStream, TAR_BLOCK_BYTES,
};
pub use files::{FileWriter, WrittenFiles};
pub use options::ShardOptions;
use target::{io_error, remove_index, unwritable};

pub use crate::shard::shard_format::{ShardFormat, UnknownShardFormat};

/// The longest key in bytes: with an extension it stays below the 4,096 of Linux paths.
pub const MAX_KEY_BYTES: usize = 3072;

/// A sample on its way into a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSample {
    /// Key, unique in the data set; see [`check_key`].
    pub key: String,
    /// Extension of the image: lower case, no dot, e.g. `jpg`.
    pub extension: String,
    /// The encoded image.
    pub image: Vec<u8>,
    /// Captions, each on one line.
    pub captions: Vec<String>,
    /// Whether the captions go into a `.txt` member; if not they are those of `json`.
    pub text_member: bool,
    /// A `.json` member, passed through as it is (tar formats only).
    pub json: Option<Vec<u8>>,
    /// Further members by extension, passed through as they are (tar formats only).
    pub members: Vec<(String, Vec<u8>)>,
}

/// A shard that is complete and under its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenShard {
    /// The file.
    pub path: PathBuf,
    /// Samples in it.
    pub samples: u64,
    /// Captions in it.
    pub captions: u64,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// The index beside it, if there is one.
    pub index: Option<PathBuf>,
}

/// Writes one shard. Dropped before [`finish`](ShardWriter::finish), it leaves no file.
#[derive(Debug)]
pub struct ShardWriter {
    target: PathBuf,
    body: Body,
    samples: u64,
    captions: u64,
    /// Hashes of the keys so far; 16 bytes a sample.
    keys: HashSet<[u64; 2]>,
    /// `None` if no index is wanted.
    index: Option<IndexBuilder>,
}

enum Body {
    Tar(Box<tar::Builder<TarStream>>),
    Arrow(Box<ArrowShardWriter<ShardFile>>, CaptionType),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Body::Tar(_) => "Tar",
            Body::Arrow(..) => "Arrow",
        })
    }
}

impl ShardWriter {
    /// Opens a shard that will be named `target`.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the target.
    pub fn create(
        target: impl Into<PathBuf>,
        options: &ShardOptions,
    ) -> Result<Self, PipelineError> {
        let target = target.into();
        let file = ChecksumWriter::new(AtomicFile::create(&target)?);
        let body = match options.format {
            ShardFormat::Arrow => {
                let written = file.written();
                let writer = ArrowShardWriter::noting(file, options.caption_type, written)
                    .map_err(|error| arrow_error(&target, "", error))?;
                Body::Arrow(Box::new(writer), options.caption_type)
            }
            ShardFormat::Tar | ShardFormat::TarGz | ShardFormat::TarZst => {
                let compressor = Compressor::new(file, options).map_err(io_error(&target))?;
                Body::Tar(Box::new(tar::Builder::new(TarStream::new(compressor))))
            }
        };
        Ok(Self {
            target,
            body,
            samples: 0,
            captions: 0,
            keys: HashSet::new(),
            index: options.index.then(IndexBuilder::default),
        })
    }

    /// Appends a sample.
    ///
    /// # Errors
    /// [`PipelineError::Unwritable`] for a key that readers would split elsewhere or that the shard
    /// has already, [`PipelineError::Io`] when the disk says no. The shard cannot be finished after
    /// an error of the second kind.
    pub fn write(&mut self, sample: &ShardSample) -> Result<(), PipelineError> {
        let refused = |m: String| unwritable(&self.target, &sample.key, m);
        check_key(&sample.key).map_err(refused)?;
        let name = format!("{}.{}", sample.key, sample.extension);
        if split_key(&name).is_none_or(|(key, _)| key != sample.key) {
            let extension = &sample.extension;
            return Err(refused(format!(
                "`{extension}` is no extension of an image"
            )));
        }
        if self.keys.contains(&key_hash(&sample.key)) {
            return Err(refused("the shard has this key already".to_owned()));
        }
        let mut members = Vec::new();
        let mut captions = sample.captions.len() as u64;
        let written = match &mut self.body {
            Body::Tar(tar) => append(tar, &name, sample, &mut members),
            Body::Arrow(arrow, caption_type) => {
                let kept = match caption_type {
                    CaptionType::One => &sample.captions[..sample.captions.len().min(1)],
                    CaptionType::List => &sample.captions[..],
                };
                captions = kept.len() as u64;
                arrow
                    .write(&name, &sample.image, kept)
                    .map_err(|error| arrow_error(&self.target, &sample.key, error))?;
                // The index learns at the end in which batch the row is.
                Ok((0..0, 0))
            }
        };
        let content = written.map_err(io_error(&self.target))?;
        self.captions += captions;
        self.samples += 1;
        self.keys.insert(key_hash(&sample.key));
        if let Some(index) = &mut self.index {
            index
                .add(sample.key.clone(), false, content, members)
                .map_err(|m| unwritable(&self.target, &sample.key, m))?;
        }
        Ok(())
    }

    /// Writes the end of the shard, gives it its name, and writes its index.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the shard, of which nothing is left then, or its index.
    pub fn finish(self) -> Result<WrittenShard, PipelineError> {
        let Self {
            target,
            body,
            samples,
            captions,
            keys: _,
            index,
        } = self;
        let written = match body {
            Body::Tar(tar) => finish(*tar),
            Body::Arrow(arrow, _) => {
                let (file, batches) = arrow
                    .finish_with_batches()
                    .map_err(|error| arrow_error(&target, "", error))?;
                Ok((file, Layout::ArrowBatches(batches)))
            }
        };
        let (file, layout) = written.map_err(io_error(&target))?;
        let (file, file_bytes, sha256) = file.finish();
        let location = ShardLocation::local(&target);
        remove_index(&location)?;
        file.commit()?;
        let index = index
            .map(|index| {
                let identity =
                    ShardIdentity::new(&location, file_bytes, Some(sha256), &Stop::default());
                let identity = identity.map_err(io_error(&target))?;
                index.finish(&layout, identity).write_beside(&location)
            })
            .transpose()?;
        Ok(WrittenShard {
            path: target,
            samples,
            captions,
            file_bytes,
            index,
        })
    }
}

/// Whether `KEY.jpg` is read back as the key `KEY` by every reader of the format.
///
/// # Errors
/// What is wrong with it: it is empty or too long, has a dot in its base name, an empty, `.` or
/// `..` part, a control character, or a first folder of the form `__NAME__`, which webdataset skips.
pub fn check_key(key: &str) -> Result<(), String> {
    let base = key.rsplit('/').next().unwrap_or(key);
    let reserved = |part: &str| part.len() >= 4 && part.starts_with("__") && part.ends_with("__");
    let complaint = if key.is_empty() {
        "the key is empty"
    } else if key.len() > MAX_KEY_BYTES {
        "the key is longer than 3072 bytes"
    } else if base.contains('.') {
        "the key has a dot in its base name; readers take the rest for an extension"
    } else if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "the key has an empty, `.` or `..` part"
    } else if key.chars().any(char::is_control) {
        "the key has a control character"
    } else if key
        .split_once('/')
        .is_some_and(|(first, _)| reserved(first))
    {
        "the key starts with a folder of the form `__NAME__`, which webdataset passes over"
    } else {
        return Ok(());
    };
    Err(complaint.to_owned())
}

/// Bytes that a sample takes in an uncompressed tar shard (exact for names of up to 100 bytes), given
/// the sizes of its members' contents.
pub fn tar_sample_bytes(member_bytes: &[u64]) -> u64 {
    member_bytes.iter().fold(0, |sum: u64, &bytes| {
        sum.saturating_add(TAR_BLOCK_BYTES).saturating_add(
            bytes
                .div_ceil(TAR_BLOCK_BYTES)
                .saturating_mul(TAR_BLOCK_BYTES),
        )
    })
}

/// Bytes that end a tar shard: two empty blocks.
pub const TAR_END_BYTES: u64 = 2 * TAR_BLOCK_BYTES;

/// Image first: a reader that only wants images can stop there. Returns where the sample lies in the
/// uncompressed stream, and the CRC-32C of its bytes.
fn append(
    tar: &mut tar::Builder<TarStream>,
    image_name: &str,
    sample: &ShardSample,
    members: &mut Vec<MemberPlace>,
) -> io::Result<(std::ops::Range<u64>, u32)> {
    tar.get_ref().written().begin_sum();
    let start = tar.get_ref().written().bytes();
    members.push(append_member(tar, image_name, &sample.image)?);
    if sample.text_member {
        let text = sample.captions.join("\n");
        let name = format!("{}.txt", sample.key);
        members.push(append_member(tar, &name, text.as_bytes())?);
    }
    if let Some(json) = &sample.json {
        let name = format!("{}.json", sample.key);
        members.push(append_member(tar, &name, json)?);
    }
    for (extension, content) in &sample.members {
        let name = format!("{}.{extension}", sample.key);
        members.push(append_member(tar, &name, content)?);
    }
    let written = tar.get_ref().written();
    let (end, crc32c) = (written.bytes(), written.crc32c());
    tar.get_mut().end_sample()?;
    Ok((start..end, crc32c))
}

fn arrow_error(shard: &Path, key: &str, error: ArrowWriteError) -> PipelineError {
    match error {
        ArrowWriteError::Io(source) => io_error(shard)(source),
        other => unwritable(shard, key, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;

    fn sample(key: &str) -> ShardSample {
        ShardSample {
            key: key.to_owned(),
            extension: "jpg".to_owned(),
            image: b"\xff\xd8\xff image bytes".to_vec(),
            captions: vec!["a dog".to_owned(), "the dog runs".to_owned()],
            text_member: true,
            json: None,
            members: Vec::new(),
        }
    }

    fn write_to(target: &Path, format: ShardFormat, samples: &[ShardSample]) -> WrittenShard {
        let mut writer = ShardWriter::create(target, &ShardOptions::new(format)).unwrap();
        for sample in samples {
            writer.write(sample).unwrap();
        }
        writer.finish().unwrap()
    }

    fn members(tar: impl Read) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 0);
                assert_eq!(entry.header().uid().unwrap(), 0);
                assert_eq!(entry.header().mode().unwrap(), 0o644);
                let name = entry.path().unwrap().to_str().unwrap().to_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (name, content)
            })
            .collect()
    }

    #[test]
    fn tar_members_in_order_in_every_compression() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "folder".repeat(40), "k".repeat(200));
        let mut with_json = sample("dir.v2/b");
        with_json.json = Some(br#"{"caption": "x"}"#.to_vec());
        with_json.text_member = false;
        let samples = [sample("a"), with_json, sample(&long)];
        let captions = b"a dog\nthe dog runs".to_vec();
        let expected = [
            ("a.jpg".to_owned(), samples[0].image.clone()),
            ("a.txt".to_owned(), captions.clone()),
            ("dir.v2/b.jpg".to_owned(), samples[1].image.clone()),
            ("dir.v2/b.json".to_owned(), br#"{"caption": "x"}"#.to_vec()),
            (format!("{long}.jpg"), samples[2].image.clone()),
            (format!("{long}.txt"), captions),
        ];
        for format in [ShardFormat::Tar, ShardFormat::TarGz, ShardFormat::TarZst] {
            let target = folder.path().join(format!("s.{format}"));
            let written = write_to(&target, format, &samples);
            assert_eq!((written.samples, written.captions), (3, 6));
            let bytes = fs::read(&target).unwrap();
            assert_eq!(written.file_bytes, bytes.len() as u64);
            let found = match format {
                ShardFormat::TarGz => members(flate2::read::GzDecoder::new(&bytes[..])),
                ShardFormat::TarZst => members(zstd::Decoder::new(&bytes[..]).unwrap()),
                _ => members(&bytes[..]),
            };
            assert_eq!(found, expected, "{format}");
            write_to(&target, format, &samples);
            assert_eq!(
                fs::read(&target).unwrap(),
                bytes,
                "equal input, equal bytes"
            );
        }
    }

    #[test]
    fn planned_size_of_a_tar_is_exact() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("s.tar");
        let mut empty = sample("b");
        empty.image = vec![0; 1024];
        let written = write_to(&target, ShardFormat::Tar, &[sample("a"), empty]);
        let text = "a dog\nthe dog runs".len() as u64;
        let planned = tar_sample_bytes(&[15, text]) + tar_sample_bytes(&[1024, text]);
        assert_eq!(written.file_bytes, planned + TAR_END_BYTES);
        assert_eq!(tar_sample_bytes(&[u64::MAX]), u64::MAX);
    }

    #[test]
    fn arrow_rows_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("s.arrow");
        let written = write_to(&target, ShardFormat::Arrow, &[sample("a"), sample("b")]);
        assert_eq!((written.samples, written.captions), (2, 4));
        assert!(written.file_bytes > 2 * 15);
    }

    #[test]
    fn an_unfinished_shard_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for format in ShardFormat::ALL {
            let target = folder.path().join(format!("s.{format}"));
            let mut writer = ShardWriter::create(&target, &ShardOptions::new(format)).unwrap();
            writer.write(&sample("a")).unwrap();
            let message = writer.write(&sample("a.b")).unwrap_err().to_string();
            assert!(message.contains("`a.b`"), "{message}");
            drop(writer);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn keys() {
        let long = "k".repeat(MAX_KEY_BYTES);
        for good in [
            "a",
            "000000001",
            "dir/a",
            "dir.v2/a b",
            "__a",
            "日本",
            "x/__y__/a",
            &long,
        ] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        let longer = "k".repeat(MAX_KEY_BYTES + 1);
        for bad in [
            "", "a.b", ".a", "/a", "a/", "a//b", "../a", "./a", "a\nb", "__x__/a", &longer,
        ] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn format_names() {
        for format in ShardFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "zip".parse::<ShardFormat>().unwrap_err().to_string();
        assert!(
            error.contains("`zip`") && error.contains("tar.zst"),
            "{error}"
        );
    }
}
