//! A shard as a whole: its files in order, and what is odd about it.

use std::collections::BTreeMap;

use qf_pipeline::index::{Found, ShardIndex};
use qf_pipeline::printable::Printable;
use qf_pipeline::shard::entries::{Entry, FileEntry, SampleGrouper, ShardEntries};
use qf_pipeline::shard::group::split_key;
use qf_pipeline::shard::note::ShardNote;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;
use qf_pipeline::{EncodedSample, SampleError, ShardError};

use super::codes::{self, Code};
use super::finding::Finding;
use super::options::InspectOptions;

/// The end of a shard.
pub(crate) struct ShardEnd {
    /// What it is; nothing if that could not be told.
    pub(crate) format: Option<ShardFormat>,
    /// Samples in it, bad ones included.
    pub(crate) samples: u64,
    /// Whether it could be read to its end.
    pub(crate) is_whole: bool,
    pub(crate) findings: Vec<Finding>,
}

/// Findings about files of one shard and kind that are told one by one.
const MAX_OF_A_KIND: u64 = 1000;

/// Takes a sample, findings about files before its end, and whether it is a row of an Arrow shard; `false` if
/// no more is wanted.
type Take<'a> = &'a mut dyn FnMut(Result<EncodedSample, SampleError>, Vec<Finding>, bool) -> bool;

/// Reads a shard from beginning to end.
pub(super) fn read(
    location: &ShardLocation,
    index: u32,
    options: &InspectOptions,
    stop: &Stop,
    take: Take<'_>,
) -> ShardEnd {
    let read_options = ReadOptions {
        all_members: true,
        needs_captions: false,
        ..options.config.read_options()
    };
    let mut end = ShardEnd {
        format: None,
        samples: 0,
        is_whole: false,
        findings: Vec::new(),
    };
    let entries = match ShardEntries::open(location, &read_options, stop) {
        Ok(entries) => entries,
        Err(error) => {
            end.findings.push(of_error(location, None, &error));
            return end;
        }
    };
    end.format = Some(entries.format());
    check_ending(location, &mut end);
    let mut reading = Reading {
        location,
        grouper: Some(SampleGrouper::new(location, index, &read_options)),
        members: MemberCounts::default(),
        pending: Vec::new(),
        counts: BTreeMap::new(),
        samples: 0,
        take,
    };
    let mut visit = |entry: Entry| reading.visit(entry);
    let notes = entries.read(index, &|_| true, &mut visit);
    if notes.is_ok() && !stop.is_set() {
        reading.finish();
    }
    end.samples = reading.samples;
    end.findings.append(&mut reading.pending);
    let uneven = reading.members.uneven();
    match notes {
        Ok(notes) => {
            end.is_whole = true;
            end.findings
                .extend(notes.iter().map(|note| of_note(location, note)));
            if end.samples == 0 {
                let message = "no sample was found in it".to_string();
                let finding = Finding::of_shard(&codes::NO_SAMPLE, &location.name, message);
                end.findings.push(finding);
            }
        }
        Err(error) => end.findings.push(of_error(location, end.format, &error)),
    }
    if let Some(message) = uneven {
        let finding = Finding::of_shard(&codes::UNEVEN_MEMBERS, &location.name, message);
        end.findings.push(finding);
    }
    end
}

struct Reading<'a> {
    location: &'a ShardLocation,
    grouper: Option<SampleGrouper>,
    members: MemberCounts,
    /// Findings about files since the last sample.
    pending: Vec<Finding>,
    counts: BTreeMap<&'static str, u64>,
    samples: u64,
    take: Take<'a>,
}

impl Reading<'_> {
    fn visit(&mut self, entry: Entry) -> bool {
        let (sample, is_row) = match entry {
            Entry::Row(row) => (Some(row), true),
            Entry::File(file) => {
                self.check(&file);
                let grouper = self.grouper.as_mut();
                (grouper.and_then(|grouper| grouper.push(file)), false)
            }
        };
        sample.is_none_or(|sample| self.hand_over(sample, is_row))
    }

    fn finish(&mut self) {
        let last = self.grouper.take().and_then(|mut grouper| grouper.finish());
        if let Some(sample) = last {
            self.hand_over(sample, false);
        }
    }

    fn hand_over(&mut self, sample: Result<EncodedSample, SampleError>, is_row: bool) -> bool {
        self.samples += 1;
        if let Ok(sample) = &sample {
            self.members.add(sample);
        }
        (self.take)(sample, std::mem::take(&mut self.pending), is_row)
    }

    /// What can be said of a file by its header.
    fn check(&mut self, file: &FileEntry) {
        let path = file.path();
        let is_unsafe = path.starts_with('/') || path.split('/').any(|part| part == "..");
        let has_controls = Printable(path).to_string() != path;
        let checks: [(bool, &'static Code, &str); 6] = [
            (
                split_key(path).is_none(),
                &codes::NO_KEY,
                "readers pass over it",
            ),
            (
                is_unsafe,
                &codes::UNSAFE_PATH,
                "its path is absolute or has `..` in it",
            ),
            (
                has_controls,
                &codes::CONTROL_CHARACTERS,
                "its name holds control characters",
            ),
            (
                !file.is_utf8(),
                &codes::NOT_UTF8_NAME,
                "bytes that are not UTF-8 are shown as \\xNN",
            ),
            (
                file.size_bytes() == 0,
                &codes::EMPTY_MEMBER,
                "it has 0 bytes",
            ),
            (
                file.is_sparse(),
                &codes::SPARSE,
                "it is stored without its holes",
            ),
        ];
        for (holds, code, message) in checks {
            if !holds {
                continue;
            }
            let count = self.counts.entry(code.id).or_default();
            *count += 1;
            let message = match (*count).cmp(&MAX_OF_A_KIND) {
                std::cmp::Ordering::Less => message.to_string(),
                std::cmp::Ordering::Equal => format!("{message}; further ones are not told"),
                std::cmp::Ordering::Greater => continue,
            };
            let finding = Finding::of_shard(code, &self.location.name, message);
            self.pending.push(finding.at(path, file.offset_bytes()));
        }
    }
}

/// How many samples have each member.
#[derive(Default)]
struct MemberCounts {
    samples: u64,
    counts: BTreeMap<String, u64>,
}

/// Different members of a shard that are counted.
const MAX_MEMBER_NAMES: usize = 256;

impl MemberCounts {
    fn add(&mut self, sample: &EncodedSample) {
        self.samples += 1;
        for member in &sample.members {
            if let Some(count) = self.counts.get_mut(&member.name) {
                *count += 1;
            } else if self.counts.len() < MAX_MEMBER_NAMES {
                self.counts.insert(member.name.clone(), 1);
            }
        }
    }

    /// The members that most samples have and some lack.
    fn uneven(&self) -> Option<String> {
        let lacking = self.counts.iter().filter(|(name, count)| {
            // Pictures have extensions of many kinds.
            let is_image = qf_pipeline::decode::is_image_extension(name);
            !is_image && **count < self.samples && **count * 2 > self.samples
        });
        let named: Vec<String> = lacking
            .map(|(name, count)| {
                let missing = self.samples - count;
                format!(
                    "{missing} of {} samples lack `{}`",
                    self.samples,
                    Printable(name)
                )
            })
            .take(8)
            .collect();
        (!named.is_empty()).then(|| named.join(", "))
    }
}

fn of_note(location: &ShardLocation, note: &ShardNote) -> Finding {
    let (code, offset) = match note {
        ShardNote::NoEndMarker => (&codes::NO_END_MARKER, None),
        ShardNote::Concatenated { offset } => (&codes::CONCATENATED, Some(*offset)),
        ShardNote::NoArchive { offset } => (&codes::TRAILING, Some(*offset)),
        ShardNote::NotCompressed { offset } => (&codes::NOT_COMPRESSED, Some(*offset)),
    };
    Finding {
        offset_bytes: offset,
        ..Finding::of_shard(code, &location.name, format!("it {note}"))
    }
}

/// What kind of error ended the reading, by what the readers say.
fn of_error(location: &ShardLocation, format: Option<ShardFormat>, error: &ShardError) -> Finding {
    let has = |words: &[&str]| words.iter().any(|word| error.message.contains(word));
    let arrow = format == Some(ShardFormat::Arrow);
    let code =
        if has(&["cannot be read (", "cannot be read:"]) && !has(&["zstd", "gzip", "deflate"]) {
            &codes::UNREADABLE
        } else if has(&["is empty"]) {
            &codes::EMPTY_SHARD
        } else if has(&["not a shard", "not a tar archive", "not an Arrow"]) {
            &codes::NOT_A_SHARD
        } else if has(&["window"]) {
            &codes::WINDOW
        } else if arrow
            && has(&[
                "--image-column",
                "--caption-column",
                "image_column",
                "caption_column",
                "no column",
            ])
        {
            &codes::ARROW_COLUMNS
        } else if arrow && has(&["write the shard again"]) {
            &codes::ARROW_UNSUPPORTED
        } else if arrow {
            &codes::ARROW_DAMAGED
        } else if has(&[
            "truncated",
            "unexpected EOF",
            "unexpected end",
            "incomplete frame",
            "ends early",
        ]) {
            &codes::TRUNCATED
        } else if matches!(format, Some(ShardFormat::TarGz | ShardFormat::TarZst))
            && has(&[
                "checksum",
                "corrupt",
                "zstd",
                "gzip",
                "deflate",
                "decompress",
            ])
            && !has(&["checksum of a header"])
        {
            &codes::DAMAGED_COMPRESSION
        } else {
            &codes::DAMAGED
        };
    Finding {
        offset_bytes: Some(error.offset_bytes),
        ..Finding::of_shard(code, &location.name, error.message.clone())
    }
}

/// Readers that go by the name must not be led astray.
fn check_ending(location: &ShardLocation, end: &mut ShardEnd) {
    const ENDINGS: [(&str, ShardFormat); 7] = [
        (".tar.gz", ShardFormat::TarGz),
        (".tgz", ShardFormat::TarGz),
        (".tar.zst", ShardFormat::TarZst),
        (".tzst", ShardFormat::TarZst),
        (".tar", ShardFormat::Tar),
        (".arrow", ShardFormat::Arrow),
        (".feather", ShardFormat::Arrow),
    ];
    let name = location.base_name().to_ascii_lowercase();
    let promised = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending));
    if let (Some((ending, promised)), Some(format)) = (promised, end.format) {
        if *promised != format {
            let message = format!("the name ends in {ending}, and the content is {format}");
            let finding = Finding::of_shard(&codes::WRONG_ENDING, &location.name, message);
            end.findings.push(finding);
        }
    }
}

/// What the index beside a shard says; nothing if it has none. Its checksum is compared with that of the
/// shard where `deep` is asked for, which reads the shard once more.
pub(crate) fn check_index(
    location: &ShardLocation,
    options: &InspectOptions,
    stop: &Stop,
    deep: bool,
) -> (bool, Option<Finding>) {
    let of_shard = |code, message| Some(Finding::of_shard(code, &location.name, message));
    let found = match ShardIndex::find(location, stop) {
        Ok(found) => found,
        Err(error) => {
            let is_other = ["is for", "has changed", "another shard"];
            let code = match is_other.iter().any(|words| error.message.contains(words)) {
                true => &codes::WRONG_INDEX,
                false => &codes::DAMAGED_INDEX,
            };
            return (true, of_shard(code, error.message));
        }
    };
    match found {
        // Servers answer anything for what they do not have, and an index is optional.
        Found::Absent | Found::Unusable(_) => (false, None),
        Found::Outdated(version) => {
            let message = format!("its index is of version {version}, which is not used any more");
            (true, of_shard(&codes::OUTDATED_INDEX, message))
        }
        Found::Index(index) => {
            let read_options = ReadOptions {
                needs_captions: false,
                ..options.config.read_options()
            };
            if let Err(error) = index.verify_tables(location, stop) {
                return (true, of_shard(&codes::DAMAGED_INDEX, error.message));
            }
            if deep {
                if let Err(error) = index.verify(location, &read_options, stop) {
                    return (true, of_shard(&codes::WRONG_INDEX, error.message));
                }
            }
            match index.access() {
                Some(_) if !index.has_checksums() => {
                    let message = "changed bytes of its samples would not be noticed".to_string();
                    (true, of_shard(&codes::NO_CHECKSUMS, message))
                }
                Some(_) => (true, None),
                None => {
                    let message = "it can only be read in order".to_string();
                    (true, of_shard(&codes::NO_ACCESS, message))
                }
            }
        }
    }
}
