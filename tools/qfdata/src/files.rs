//! The files of shards, one by one: those of archives as they are stored, those of Arrow rows as an archive
//! would hold them.

use std::cell::RefCell;

use anyhow::Context;
use qf_pipeline::captions::names::CAPTION_MEMBER;
use qf_pipeline::decode::is_image_extension;
use qf_pipeline::shard::entries::{Entry, ShardEntries};
use qf_pipeline::shard::note::ShardNote;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::{NamePattern, ShardLocation};
use qf_pipeline::stop::Stop;
use qf_pipeline::{EncodedSample, MemberData, SampleError, ShardError};

/// A file of a shard.
pub(crate) struct StoredFile<'a> {
    pub(crate) path: &'a str,
    /// Where it begins in the uncompressed shard; of an Arrow row, where its record batch does.
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) content: Content<'a>,
}

/// What a [`StoredFile`] holds.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// It was not asked for.
    PassedOver,
    /// It is longer than the limit.
    TooLarge,
}

/// Which files of shards a command is about.
pub(crate) struct Selection(Vec<NamePattern>);

impl Selection {
    /// Those whose path, or base name, one of the patterns matches; all, if there is none.
    pub(crate) fn new(patterns: &[String]) -> anyhow::Result<Selection> {
        let parsed = patterns.iter().map(|pattern| {
            NamePattern::new(pattern)
                .with_context(|| format!("the pattern `{pattern}` does not parse"))
        });
        Ok(Selection(parsed.collect::<Result<_, _>>()?))
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        let base = path.rsplit('/').next().unwrap_or(path);
        let matches = |pattern: &NamePattern| pattern.matches(path) || pattern.matches(base);
        self.0.is_empty() || self.0.iter().any(matches)
    }
}

/// What is told of each file; `Ok(false)` ends the reading.
pub(crate) trait FileVisitor {
    fn file(&mut self, file: &StoredFile<'_>) -> anyhow::Result<bool>;
    /// A row that cannot be used.
    fn bad_row(&mut self, error: &SampleError) -> anyhow::Result<bool>;
}

/// Hands over the selected files of a shard; their content where it is asked for. `None` if the visitor
/// ended the reading.
pub(crate) fn for_each_file(
    shard: &ShardLocation,
    (options, stop): (&ReadOptions, &Stop),
    selection: &Selection,
    with_content: bool,
    visitor: &mut dyn FileVisitor,
) -> anyhow::Result<Result<Option<Vec<ShardNote>>, ShardError>> {
    let wanted = |path: &str| with_content && selection.has(path);
    let failure = RefCell::new(None);
    let mut is_ended = false;
    let mut visit = |entry: Entry| {
        let visited = match entry {
            Entry::File(file) if !selection.has(file.path()) => Ok(true),
            Entry::File(file) => visitor.file(&StoredFile {
                path: file.path(),
                offset_bytes: file.offset_bytes(),
                size_bytes: file.size_bytes(),
                content: match file.bytes() {
                    Some(bytes) => Content::Bytes(bytes),
                    None if file.is_too_large() => Content::TooLarge,
                    None => Content::PassedOver,
                },
            }),
            Entry::Row(Ok(row)) => visit_row(&row, selection, visitor),
            Entry::Row(Err(error)) => visitor.bad_row(&error),
        };
        let goes_on = visited.unwrap_or_else(|error| {
            failure.replace(Some(error));
            false
        });
        is_ended |= !goes_on;
        goes_on
    };
    let read = ShardEntries::open(shard, options, stop)
        .and_then(|entries| entries.read(0, &wanted, &mut visit));
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(read.map(|notes| (!is_ended).then_some(notes))),
    }
}

fn visit_row(
    row: &EncodedSample,
    selection: &Selection,
    visitor: &mut dyn FileVisitor,
) -> anyhow::Result<bool> {
    for (path, bytes) in files_of_row(row) {
        if !selection.has(&path) {
            continue;
        }
        let file = StoredFile {
            path: &path,
            offset_bytes: row.id.offset_bytes,
            size_bytes: bytes.len() as u64,
            content: Content::Bytes(&bytes),
        };
        if !visitor.file(&file)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The members of an Arrow row as the files of an archive: the image, `KEY.txt` with a caption a line, and
/// every other column as `KEY.COLUMN`, a list as JSON.
pub(crate) fn files_of_row(row: &EncodedSample) -> Vec<(String, Vec<u8>)> {
    let key = &row.id.key;
    let files = row.members.iter().map(|member| match &member.data {
        MemberData::Bytes(bytes) => (format!("{key}.{}", member.name), bytes.clone()),
        MemberData::Text(texts) if member.name == CAPTION_MEMBER => {
            let lines: Vec<String> = texts
                .iter()
                .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            (format!("{key}.txt"), lines.join("\n").into_bytes())
        }
        MemberData::Text(texts) => match texts.as_slice() {
            [text] => (format!("{key}.{}", member.name), text.clone().into_bytes()),
            texts => {
                let json = serde_json::to_vec(texts).unwrap_or_default();
                (format!("{key}.{}.json", member.name), json)
            }
        },
    });
    // The image first, as in archives that are written.
    let mut files: Vec<_> = files.collect();
    files.sort_by_key(|(path, _)| !is_image_extension(path));
    files
}
