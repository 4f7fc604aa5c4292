//! A look at the first samples of a data set: where its captions are, and what its texts hold.
//!
//! Texts (`.txt`) hold one caption, or one a line. Which of the two is decided for a data set as a
//! whole, at the start of a run, by at most 64 samples each of the first and the last shard. The
//! decision depends on nothing else, so it is the same on all ranks, and a
//! [`LoaderState`](crate::loader::LoaderState) keeps it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::captions::{caption_members, names, CaptionLines, CaptionSource};
use crate::captions::{captions_from_json, captions_from_text};
use crate::config::LoaderConfig;
use crate::error::{SampleError, SkipReason};
use crate::image_format::is_image_extension;
use crate::sample::EncodedSample;
use crate::shard::arrow::ChosenColumns;
use crate::shard::read::{read_shard, LeaveMembers, MemberMemory, ReadOptions, WatchReads};
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Samples of a shard that are looked at.
const SAMPLES: u64 = 64;
/// Bytes of a shard, after which no further sample is read.
const BYTES: usize = 4 << 20;

/// What texts show of the captions in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextEvidence {
    /// Texts that were seen.
    pub texts: u64,
    /// Those with several lines that are not blank.
    pub of_lines: u64,
    /// Of those, the ones beside JSON with the whole text as its caption.
    pub json_says_one: u64,
    /// Of those, the ones beside JSON with the lines as its captions.
    pub json_says_each: u64,
}

impl TextEvidence {
    /// Takes in a text, and the JSON beside it.
    pub fn add(&mut self, text: &[u8], json: Option<&[u8]>) {
        let Ok(lines) = captions_from_text(text, CaptionLines::Each) else {
            return;
        };
        self.texts += 1;
        if lines.len() < 2 {
            return;
        }
        self.of_lines += 1;
        let Some(captions) = json.and_then(|json| captions_from_json(json).ok()) else {
            return;
        };
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        match captions.as_slice() {
            [one] if words(one) == words(&lines.join(" ")) => self.json_says_one += 1,
            several if several == lines => self.json_says_each += 1,
            _ => {}
        }
    }

    /// What the texts hold: what JSON beside them says; else a caption a line, unless only some texts,
    /// less than half of them, have several lines: those are line breaks within a caption.
    pub fn lines(&self) -> CaptionLines {
        let is_exception = self.of_lines > 0 && self.of_lines * 2 < self.texts;
        match self.json_says_one.cmp(&self.json_says_each) {
            std::cmp::Ordering::Greater => CaptionLines::One,
            std::cmp::Ordering::Less => CaptionLines::Each,
            std::cmp::Ordering::Equal if is_exception => CaptionLines::One,
            std::cmp::Ordering::Equal => CaptionLines::Each,
        }
    }

    /// Why, as the end of a sentence; empty where it makes no difference.
    pub fn reason(&self, setting: &str) -> String {
        let TextEvidence {
            texts, of_lines, ..
        } = self;
        if *of_lines == 0 {
            return String::new();
        }
        let (holds, other) = match self.lines() {
            CaptionLines::Each => ("each line a caption", CaptionLines::One),
            CaptionLines::One => ("each text one caption", CaptionLines::Each),
        };
        let by_json = match self.json_says_one == self.json_says_each {
            true => "",
            false => ", and `json` beside them says so",
        };
        format!(
            ", {holds} ({of_lines} of {texts} looked at have several lines{by_json}; {setting} {} \
             reads them otherwise)",
            other.name()
        )
    }
}

/// What the first samples of a data set show.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    samples: u64,
    /// Good samples by the member or column that holds their image.
    images: BTreeMap<String, u64>,
    /// Good samples by the members or columns that hold their captions.
    captions: BTreeMap<String, u64>,
    texts: TextEvidence,
    /// Good samples of tar shards that have an image member of the name that is wanted, and that have none.
    of_that_name: u64,
    of_other_names: u64,
}

impl Survey {
    /// Looks at a data set as these settings read it. What cannot be read is left out: whoever reads
    /// the data set will meet it.
    pub fn of(shards: &[ShardLocation], config: &LoaderConfig, stop: &Stop) -> Survey {
        let mut survey = Survey::default();
        for shard in picked(shards) {
            let columns = Columns::default();
            let options = config.read_options();
            look(shard, &options, &columns, stop, &mut |sample| {
                if let Ok(sample) = sample {
                    survey.add(&sample, config, columns.0.borrow().as_ref());
                }
            });
        }
        survey
    }

    /// What the texts of the data set hold.
    pub fn caption_lines(&self) -> CaptionLines {
        self.texts.lines()
    }

    /// Whether no sample that was looked at has an image and a caption.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() || self.captions.is_empty()
    }

    /// What becomes of a name of images (`image_column`) that no sample has: it may be misspelt.
    pub fn warning(&self, image_column: Option<&str>) -> Option<String> {
        let wanted = image_column.filter(|_| self.of_that_name == 0 && self.of_other_names > 0)?;
        let taken: Vec<_> = self.images.keys().map(|name| format!("`{name}`")).collect();
        Some(format!(
            "none of the first {} samples has an image `{wanted}` (image_column): theirs are {}",
            self.samples,
            taken.join(", ")
        ))
    }

    /// In words; `setting` is what decides otherwise, e.g. `data.caption_lines =`.
    pub fn describe(&self, chosen: CaptionLines, setting: &str) -> String {
        let names = |counts: &BTreeMap<String, u64>| {
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let names = counts
                .iter()
                .take(4)
                .map(|(name, count)| match counts.len() {
                    1 => format!("`{name}`"),
                    _ => format!("`{name}` ({count})"),
                });
            names.collect::<Vec<_>>().join(", ")
        };
        let lines = match chosen == self.texts.lines() {
            true => self.texts.reason(setting),
            false => match chosen {
                CaptionLines::Each => ", each line a caption".to_string(),
                CaptionLines::One => ", each text one caption".to_string(),
            },
        };
        match (self.captions.is_empty(), self.images.is_empty()) {
            (true, _) => format!("no captions in the first {} samples", self.samples),
            (false, true) => format!("captions from {}{lines}", names(&self.captions)),
            (false, false) => format!(
                "captions from {}{lines}; images from {}",
                names(&self.captions),
                names(&self.images)
            ),
        }
    }

    fn add(
        &mut self,
        sample: &EncodedSample,
        config: &LoaderConfig,
        columns: Option<&ChosenColumns>,
    ) {
        self.samples += 1;
        if let Some(columns) = columns {
            let count = |counts: &mut BTreeMap<String, u64>, name: String| {
                if !name.is_empty() {
                    *counts.entry(name).or_default() += 1;
                }
            };
            count(&mut self.images, columns.image.clone());
            count(&mut self.captions, columns.captions.join(" + "));
            return;
        }
        if let Some(image) = sample.image(config.image_column.as_deref()) {
            if let Some(wanted) = &config.image_column {
                match image.name.eq_ignore_ascii_case(wanted) {
                    true => self.of_that_name += 1,
                    false => self.of_other_names += 1,
                }
            }
            *self.images.entry(image.name.clone()).or_default() += 1;
        }
        let source = CaptionSource {
            column: config.caption_column.as_deref(),
            ..CaptionSource::default()
        };
        let members = caption_members(sample, source);
        if members.is_empty() {
            return;
        }
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        *self.captions.entry(names.join(" + ")).or_default() += 1;
        let bytes = |name: &str| sample.member(name)?.bytes();
        for name in names.into_iter().filter(|name| *name != "json") {
            if let Some(text) = bytes(name) {
                self.texts.add(text, bytes("json"));
            }
        }
    }
}

/// What the beginning of the first shard holds, and what may be wrong with it: for the error that
/// nothing in the data set can be used.
pub fn explain_contents(shards: &[ShardLocation], config: &LoaderConfig, stop: &Stop) -> String {
    let options = ReadOptions {
        all_members: true,
        needs_captions: false,
        ..config.read_options()
    };
    let mut contents = Contents::default();
    for shard in shards.iter().take(1) {
        let columns = Columns::default();
        look(shard, &options, &columns, stop, &mut |sample| {
            contents.add(sample);
        });
        if columns.0.borrow().is_some() {
            contents.hint_of_names = false;
        }
    }
    contents.explain()
}

struct Contents {
    samples: u64,
    members: BTreeMap<String, u64>,
    repeated: u64,
    /// A key and an extension of several parts.
    dotted: Option<(String, String)>,
    has_caption: bool,
    hint_of_names: bool,
}

impl Default for Contents {
    fn default() -> Self {
        Contents {
            samples: 0,
            members: BTreeMap::new(),
            repeated: 0,
            dotted: None,
            has_caption: false,
            hint_of_names: true,
        }
    }
}

impl Contents {
    fn add(&mut self, sample: Result<EncodedSample, SampleError>) {
        self.samples += 1;
        let sample = match sample {
            Ok(sample) => sample,
            Err(error) => {
                self.repeated += u64::from(error.reason == SkipReason::RepeatedKey);
                return;
            }
        };
        for member in &sample.members {
            *self.members.entry(member.name.clone()).or_default() += 1;
            let last = member.name.rsplit('.').next().unwrap_or_default();
            let means_caption = names::caption_rank(last).is_some() || last == "json";
            if !member.name.contains('.') {
                self.has_caption |= means_caption;
            } else if self.dotted.is_none() && (means_caption || is_image_extension(last)) {
                self.dotted = Some((sample.id.key.clone(), member.name.clone()));
            }
        }
    }

    fn explain(&self) -> String {
        let members: Vec<_> = self
            .members
            .iter()
            .take(12)
            .map(|(name, count)| format!("{name} ({count})"))
            .collect();
        let held = match members.is_empty() {
            true => "nothing that can be read".to_string(),
            false => members.join(", "),
        };
        let mut text = format!("the first {} samples hold {held}", self.samples);
        if !self.hint_of_names {
            return text;
        }
        if self.repeated > 0 {
            text.push_str(&format!(
                "; {} keys come back after others, so that the members of a sample are not adjacent: \
                 sort the archive by name (tar --sort=name)",
                self.repeated
            ));
        } else if let (Some((key, extension)), false) = (&self.dotted, self.has_caption) {
            text.push_str(&format!(
                "; a key ends at the first dot of the name (WebDataset's rule), so `{key}.{extension}` \
                 is member `{extension}` of `{key}`: name the files without further dots, or pack them \
                 with `qfdata shard`"
            ));
        }
        text
    }
}

/// The first and the last.
fn picked(shards: &[ShardLocation]) -> impl Iterator<Item = &ShardLocation> {
    let last = shards.get(1..).and_then(<[_]>::last);
    shards.first().into_iter().chain(last)
}

/// Visits the first samples of a shard.
fn look(
    shard: &ShardLocation,
    options: &ReadOptions,
    columns: &Columns,
    stop: &Stop,
    visit: &mut dyn FnMut(Result<EncodedSample, SampleError>),
) {
    let (mut samples, mut bytes) = (0, 0);
    let mut limited = |sample: Result<EncodedSample, SampleError>| {
        samples += 1;
        bytes += sample.as_ref().map_or(0, EncodedSample::payload_bytes);
        visit(sample);
        samples < SAMPLES && bytes < BYTES
    };
    if let Err(error) = read_shard(shard, 0, options, columns, stop, &mut limited) {
        log::debug!("looking at the first samples: {error}");
    }
}

/// Notes the columns of an Arrow shard.
#[derive(Default)]
struct Columns(RefCell<Option<ChosenColumns>>);

impl WatchReads for Columns {
    fn chosen_columns(&self, columns: &ChosenColumns) {
        *self.0.borrow_mut() = Some(columns.clone());
    }
}

impl MemberMemory for Columns {}

impl LeaveMembers for Columns {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Member, MemberData, SampleId};

    fn evidence(texts: &[(&str, Option<&str>)]) -> TextEvidence {
        let mut evidence = TextEvidence::default();
        for (text, json) in texts {
            evidence.add(text.as_bytes(), json.map(str::as_bytes));
        }
        evidence
    }

    #[test]
    fn texts_of_lines_are_several_captions_where_most_are() {
        let lines = |texts: &[(&str, Option<&str>)]| evidence(texts).lines();
        let (several, single) = (("a\nb", None), ("a", None));
        assert_eq!(lines(&[several; 4]), CaptionLines::Each);
        assert_eq!(lines(&[several, single]), CaptionLines::Each);
        assert_eq!(lines(&[several, single, single]), CaptionLines::One);
        assert_eq!(lines(&[single; 4]), CaptionLines::Each);
        assert_eq!(lines(&[]), CaptionLines::Each);
        // JSON knows: img2dataset's caption is the whole text.
        let img2dataset = (
            "a\r\n b",
            Some(r#"{"caption": "a\r\n b", "similarity": NaN}"#),
        );
        assert_eq!(lines(&[img2dataset, several]), CaptionLines::One);
        let list = ("a\nb", Some(r#"{"captions": ["a", "b"]}"#));
        assert_eq!(lines(&[list, single, single]), CaptionLines::Each);
        let other = ("a\nb", Some(r#"{"caption": "x"}"#));
        assert_eq!(lines(&[other, single]), CaptionLines::Each);
        assert_eq!(evidence(&[("\u{fffd}", None)]).texts, 1);
    }

    #[test]
    fn the_decision_is_explained_where_it_matters() {
        assert_eq!(evidence(&[("a", None)]).reason("--x"), "");
        let one = evidence(&[("a\nb", None), ("a", None), ("a", None)]).reason("--x");
        assert!(one.contains("1 of 3") && one.contains("--x each"), "{one}");
    }

    #[test]
    fn shards_that_are_looked_at() {
        let shards: Vec<_> = (0..10)
            .map(|number| ShardLocation::local(format!("{number}")))
            .collect();
        let names = |count: usize| -> Vec<String> {
            let shards = picked(&shards[..count]);
            shards.map(|shard| shard.name.to_string()).collect()
        };
        assert_eq!(names(0), [""; 0]);
        assert_eq!(names(1), ["0"]);
        assert_eq!(names(2), ["0", "1"]);
        assert_eq!(names(10), ["0", "9"]);
    }

    #[test]
    fn a_name_that_no_image_has_is_noticed() {
        let sample = |names: &[&str]| EncodedSample {
            id: SampleId {
                shard: "s.tar".into(),
                shard_index: 0,
                sample_index: 0,
                key: "a".into(),
                offset_bytes: 0,
            },
            members: names
                .iter()
                .map(|name| Member {
                    name: (*name).to_owned(),
                    data: MemberData::Bytes(b"x".to_vec()),
                    in_file: None,
                })
                .collect(),
        };
        let warning = |wanted: &str, samples: &[&[&str]]| {
            let config = LoaderConfig {
                image_column: Some(wanted.to_owned()),
                ..LoaderConfig::default()
            };
            let mut survey = Survey::default();
            for names in samples {
                survey.add(&sample(names), &config, None);
            }
            survey.warning(config.image_column.as_deref())
        };
        let both: &[&str] = &["jpg", "seg.png", "txt"];
        let warned = warning("sge.png", &[both, both]).unwrap();
        assert!(
            warned.contains("first 2 samples has an image `sge.png`") && warned.ends_with("`jpg`"),
            "{warned}"
        );
        assert_eq!(warning("seg.png", &[both]), None);
        assert_eq!(warning("SEG.png", &[both, &["jpg", "txt"]]), None);
        assert_eq!(warning("jpg", &[&["txt"]]), None);
    }
}
