//! Rows of shards: WebDataset and Arrow, local and remote, in stored order.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use qf_pipeline::captions::names::caption_rank;
use qf_pipeline::captions::{one_line, raw_captions, CaptionLines, CaptionSource};
use qf_pipeline::printable::Printable;
use qf_pipeline::shard::arrow::{ChosenColumns, OtherColumns};
use qf_pipeline::shard::read::{read_shard, LeaveMembers, MemberMemory, ReadOptions, WatchReads};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::check_key;
use qf_pipeline::{EncodedSample, MemberData, SampleError, SkipReason};

use super::super::row::{CaptionRef, Give, ImageRef, Input, Name, Row, Skip, SkipCause};
use super::columns::Keep;
use super::fingerprint::Fingerprint;
use super::parquet_json::member_name;

/// Says which columns of Arrow shards have no place in a sample, once for all shards.
#[derive(Default)]
struct LeftOut(Mutex<BTreeSet<String>>);

impl WatchReads for LeftOut {
    fn chosen_columns(&self, columns: &ChosenColumns) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for column in &columns.left_out {
            if said.insert(column.clone()) {
                log::warn!(
                    "column {} is left out: it has no place in a sample",
                    Printable(column)
                );
            }
        }
    }
}

impl MemberMemory for LeftOut {}

impl LeaveMembers for LeftOut {}

/// Shards that are read as they pass.
pub(in super::super) struct Shards {
    shards: Vec<ShardLocation>,
    image_column: Option<String>,
    caption_column: Option<String>,
    lines: CaptionLines,
    options: ReadOptions,
    left_out: LeftOut,
    pub(super) notes: Vec<String>,
    pub(super) fingerprint: String,
}

impl Shards {
    pub(super) fn new(
        shards: Vec<ShardLocation>,
        image_column: Option<String>,
        caption_column: Option<String>,
        lines: Option<CaptionLines>,
        keep: &Keep,
        stop: &Stop,
    ) -> Shards {
        let mut fingerprint = Fingerprint::new();
        for shard in &shards {
            match shard.path() {
                Some(path) => fingerprint.path(&shard.name, path),
                None => {
                    let size = shard.size(stop).ok().flatten();
                    fingerprint.text(&format!("{}\0{size:?}\n", shard.name));
                }
            }
        }
        Shards {
            notes: vec![format!(
                "{} read",
                qf_pipeline::words::counted(shards.len() as u64, "shard is", "shards are")
            )],
            options: ReadOptions {
                all_members: true,
                image_column: image_column.clone(),
                caption_column: caption_column.clone(),
                other_columns: match keep {
                    Keep::All => OtherColumns::All,
                    Keep::None => OtherColumns::None,
                    Keep::Only(names) => OtherColumns::Named(names.clone()),
                },
                ..ReadOptions::default()
            },
            shards,
            image_column,
            caption_column,
            lines: lines.unwrap_or_default(),
            left_out: LeftOut::default(),
            fingerprint: fingerprint.finish(),
        }
    }

    pub(super) fn read(
        &self,
        range: Range<u64>,
        stop: &Stop,
        give: Give<'_>,
    ) -> anyhow::Result<()> {
        let mut position = 0;
        for (index, shard) in self.shards.iter().enumerate() {
            let mut result = Ok(true);
            let mut visit = |sample: Result<EncodedSample, SampleError>| {
                let at = position;
                position += 1;
                if at < range.start {
                    return true;
                }
                if at >= range.end {
                    result = Ok(false);
                    return false;
                }
                let row = match sample {
                    Ok(sample) => self.row(sample),
                    Err(error) => {
                        let what = error.id.to_string();
                        Err(Skip::new(what, cause_of(error.reason), error.message))
                    }
                };
                result = give(row);
                matches!(result, Ok(true))
            };
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let read = read_shard(
                shard,
                index,
                &self.options,
                &self.left_out,
                stop,
                &mut visit,
            );
            if !result? {
                return Ok(());
            }
            if let Err(error) = read {
                if stop.check().is_err() {
                    return Ok(());
                }
                // What comes behind the damage is lost, and said.
                let at = position;
                position += 1;
                let skip = Skip::new(
                    format!("{} at byte {}", error.shard, error.offset_bytes),
                    SkipCause::Unreadable,
                    format!("{}; the rest of the shard is left out", error.message),
                );
                if range.contains(&at) && !give(Err(skip))? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn row(&self, sample: EncodedSample) -> Input {
        let origin = sample.id.to_string();
        let source = CaptionSource {
            column: self.caption_column.as_deref(),
            lines: self.lines,
        };
        let captions: Vec<String> = match raw_captions(&sample, source) {
            // A caption that has line breaks stays one.
            Ok(captions) => captions
                .iter()
                .filter_map(|text| one_line(text).map(Cow::into_owned))
                .collect(),
            Err((reason, message)) => return Err(Skip::new(origin, cause_of(reason), message)),
        };
        let image = sample.image(self.image_column.as_deref());
        let Some(image_name) = image.map(|member| member.name.clone()) else {
            return Err(Skip::new(
                origin,
                SkipCause::BadRow,
                "it has no image, by the extensions of its members",
            ));
        };
        // GNU tar of a folder: `./KEY.jpg`.
        let stored = sample.id.key.as_str();
        let stored = stored.strip_prefix("./").unwrap_or(stored);
        let key = match check_key(stored) {
            Ok(()) => stored.to_owned(),
            Err(_) => {
                let named = format!("{stored}.x");
                match super::folder::natural_key(std::path::Path::new(&named)) {
                    Ok(key) => key,
                    Err(message) => return Err(Skip::new(origin, SkipCause::BadName, message)),
                }
            }
        };
        let carries_text = |name: &str, data: &MemberData| {
            matches!(data, MemberData::Text(_)) || (name != "json" && caption_rank(name).is_some())
        };
        let mut members = sample.members.iter();
        let has_text = members.any(|member| carries_text(&member.name, &member.data));
        let mut row = Row {
            name: Name {
                key,
                origin,
                url: None,
            },
            image: ImageRef::Bytes(Vec::new(), String::new()),
            captions: match has_text {
                true => CaptionRef::Inline(captions),
                false => CaptionRef::Json(captions),
            },
            json: None,
            members: Vec::new(),
        };
        for member in sample.members {
            let MemberData::Bytes(bytes) = member.data else {
                continue;
            };
            if member.name == image_name {
                let ending = image_name.rsplit('.').next().unwrap_or("").to_owned();
                row.image = ImageRef::Bytes(bytes, ending);
            } else if member.name == "json" {
                row.json = Some(bytes);
            } else if member.name != "txt" {
                // Names of columns may hold what an extension cannot.
                row.members.push((member_name(&member.name), bytes));
            }
        }
        Ok(row)
    }
}

fn cause_of(reason: SkipReason) -> SkipCause {
    match reason {
        SkipReason::NoCaption => SkipCause::NoCaption,
        SkipReason::EmptyCaption => SkipCause::EmptyCaption,
        SkipReason::BadCaption => SkipCause::BadCaption,
        SkipReason::BrokenImage => SkipCause::BrokenImage,
        SkipReason::ImageTooLarge => SkipCause::SampleTooLarge,
        _ => SkipCause::Unreadable,
    }
}
