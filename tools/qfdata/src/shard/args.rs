//! The command line of `qfdata shard`.

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::bail;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};
use qf_pipeline::captions::CaptionLines;
use qf_pipeline::decode::ImageFormat;
use qf_pipeline::source::scheme;
use qf_pipeline::write::ShardFormat;

use super::geometry::ResizeMode;
use super::held_out::{share, HeldOut};
use super::kind::Kind;
use super::record::Settings;
use crate::size;

/// Pack captioned images into shards.
///
/// INPUT is one of these, told by its name and content (or --from):
///   a folder of images with captions in files of the same stem: .txt (one caption a line) or .json;
///   .csv, .tsv, .jsonl, .parquet: an image (path, URL, or bytes) and captions a row;
///   .json: COCO captions, Karpathy's splits, LAVIS's lists, LLaVA's conversations, any list of objects;
///   .token, .txt: Flickr's captions, or a list of paths or URLs;
///   a folder that `datasets` saved, or one of .parquet files;
///   WebDataset or Arrow shards (files, globs, {000..012}, s3://, https://): filtered, merged, reshaped;
///   a .zip of images and captions; - for a list on standard input.
///
/// Images are stored as they are unless --resize or --image-format asks for others; those that are
/// written again stand upright. Keys are relative paths without extension (dots become `_`), or row
/// numbers. Several rows of one image in a list are several captions. Beside each shard NAME.tar go its
/// index and NAME.tar.parquet, a row for each row of the input: what became of it, and why.
///
/// Equal input and options give equal shards, whatever the number of threads. One run at a time writes
/// to a prefix. Where one was killed, the same command again goes on after the last whole shard.
///
/// Exit codes: 0 all done, 1 nothing usable or failed, 2 wrong usage, 3 done, with samples skipped,
/// 130 interrupted. A part of a plan whose rows were all treated ends with 0.
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct ShardArgs {
    /// Make one part of the job that `qfdata plan` wrote to this file or object
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["input", "out", "overwrite"])]
    pub(super) plan: Option<String>,

    /// Only part I (from 0) of N of the rows, under PREFIX-IIIII: parts share nothing, and may be made by
    /// as many machines. Of a plan: I alone, or none where $SLURM_ARRAY_TASK_ID, $JOB_COMPLETION_INDEX or
    /// $RANK says it
    #[arg(long, value_name = "I/N", value_parser = part)]
    pub(super) part: Option<PartArg>,

    #[command(flatten)]
    pub(super) job: JobArgs,
}

// Input, target and options. (A comment: its documentation would be that of the command.)
#[derive(Args, Clone, Debug)]
pub(crate) struct JobArgs {
    /// Folder, list, shards, or - (see above); several of one kind are joined
    #[arg(required_unless_present = "plan", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub(super) input: Vec<String>,

    /// Path (or s3://, gs://, az://) and start of the name of the shards: photos gives
    /// photos-000000.tar and so on
    #[arg(
        long,
        value_name = "PREFIX",
        value_hint = ValueHint::AnyPath,
        value_parser = destination,
        required_unless_present = "plan"
    )]
    pub(super) out: Option<String>,

    /// Format of the shards
    #[arg(
        long,
        default_value = "tar",
        value_parser = PossibleValuesParser::new(ShardFormat::ALL.map(ShardFormat::extension))
            .try_map(|name| name.parse::<ShardFormat>())
    )]
    pub(super) format: ShardFormat,

    /// Most samples in a shard
    #[arg(
        long,
        visible_alias = "samples-per-shard",
        value_name = "N",
        default_value = "10000"
    )]
    pub(super) max_count: NonZeroU64,

    /// Largest shard, before compression: 500MB, 1GiB. Only a sample that is larger by itself goes
    /// over it
    #[arg(
        long,
        visible_alias = "bytes-per-shard",
        value_name = "SIZE",
        default_value = "1GB",
        value_parser = size::parse
    )]
    pub(super) max_bytes: u64,

    /// Threads that check, decode and encode [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,

    /// Compression level: 0 to 9 for tar.gz [default: 1], 1 to 22 for tar.zst [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=22))]
    pub(super) level: Option<i32>,

    /// Mix the samples in an order drawn from this seed [default: order of the input]
    #[arg(long, value_name = "SEED")]
    pub(super) shuffle_seed: Option<u64>,

    /// From the command's own option.
    #[arg(skip)]
    pub(super) part: Option<Part>,

    /// What to do about inputs that cannot become a sample
    #[arg(long, value_enum, default_value_t = OnBad::Warn)]
    pub(super) on_bad: OnBad,

    /// Leave out images that an earlier sample has already: the same bytes, or also what looks alike
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) drop_doubles: Option<Doubles>,

    /// How many of 64 bits of the perceptual hash may differ between images that look alike
    #[arg(long, value_name = "BITS", default_value = "3", requires = "drop_doubles",
        value_parser = clap::value_parser!(u8).range(0..=16))]
    pub(super) near_distance: u8,

    /// Share of the images that go to shards of their own, for validation: PREFIX-val-..., the others to
    /// PREFIX-train-.... Drawn by the bytes of each image, so that all its captions and exact doubles are on one
    /// side, and stay there when the input grows
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(super) held_out: Option<f64>,

    /// Another draw of --held-out
    #[arg(long, value_name = "SEED", default_value = "0", requires = "held_out")]
    pub(super) held_out_seed: u64,

    /// Write no index beside the shards; `qfdata index` can do so later
    #[arg(long)]
    pub(super) no_index: bool,

    /// Write the index of NVIDIA DALI beside each shard, too: NAME.idx, as wds2idx does; for --format tar into a
    /// folder
    #[arg(long)]
    pub(super) dali_index: bool,

    /// Replace existing shards of this prefix and format, and remove those that are left over
    #[arg(long)]
    pub(super) overwrite: bool,

    /// Print the summary as one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Say nothing but errors
    #[arg(long, short, conflicts_with = "json")]
    pub(super) quiet: bool,

    // Last, for their headings are those of all that follows.
    #[command(flatten)]
    pub(super) reading: InputArgs,

    #[command(flatten)]
    pub(super) images: ImageArgs,

    #[command(flatten)]
    pub(super) downloads: DownloadArgs,
}

// How the input is read. (A comment: its documentation would be that of the command.)
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input")]
pub(super) struct InputArgs {
    /// What INPUT is [default: told by its name and content]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) from: Option<Kind>,

    /// Folder that relative paths start from [default: that of the list]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) images: Option<PathBuf>,

    /// Only rows whose `split` says this; of a data set with splits, only this one; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) split: Vec<String>,

    /// Character between the fields of a table [default: comma for .csv, tab for .tsv]
    #[arg(long, value_name = "CHAR", value_parser = delimiter)]
    pub(super) delimiter: Option<u8>,

    /// Column with the images: paths, URLs, or bytes (base64 in text) [default: found by name: path,
    /// file_name, url, image, ...]
    #[arg(long, visible_aliases = ["url-column", "image-column"], value_name = "NAME")]
    pub(super) path_column: Option<String>,

    /// Column with captions; may be repeated [default: found by name: caption, text, ...]
    #[arg(long, value_name = "NAME")]
    pub(super) caption_column: Vec<String>,

    /// Further columns that go into a .json member: all, none, or names with commas between
    #[arg(long, value_name = "NAMES", default_value = "all")]
    pub(super) keep_columns: String,

    /// What a .txt holds: each (line is a caption) or one [default: each, or one where the .json
    /// beside it says so]
    #[arg(long, value_name = "each|one")]
    pub(super) caption_lines: Option<CaptionLines>,
}

// What is done to images. (A comment: its documentation would be that of the command.)
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Images")]
pub(super) struct ImageArgs {
    /// How images are checked
    #[arg(long, value_enum, default_value_t = CheckImages::Header)]
    pub(super) check_images: CheckImages,

    /// How images are resized, to --image-size: img2dataset's modes
    #[arg(long, value_enum, default_value_t = ResizeMode::No, value_name = "MODE")]
    pub(super) resize: ResizeMode,

    /// Side that --resize brings images to, in pixels
    #[arg(long, value_name = "PIXELS", default_value = "256",
        value_parser = clap::value_parser!(u32).range(1..=16_383))]
    pub(super) image_size: u32,

    /// Resize no image whose side is not above --image-size
    #[arg(long)]
    pub(super) only_if_bigger: bool,

    /// Format that images are stored in [default: as they come; jpeg where they are resized]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) image_format: Option<ImageKind>,

    /// Quality of JPEG and WebP images that are written
    #[arg(long, value_name = "1-100", default_value = "95",
        value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(super) quality: u8,

    /// Leave out images whose shorter side has fewer pixels
    #[arg(long, value_name = "PIXELS", default_value = "0")]
    pub(super) min_size: u32,

    /// Leave out images whose longer side has more pixels [default: any]
    #[arg(
        long,
        value_name = "PIXELS",
        default_value = "0",
        hide_default_value = true
    )]
    pub(super) max_size: u32,

    /// Leave out images whose longer side is more than this many times the shorter [default: any]
    #[arg(
        long,
        value_name = "RATIO",
        default_value = "0",
        hide_default_value = true
    )]
    pub(super) max_aspect: f64,

    /// Put a perceptual hash of each image into the metadata
    #[arg(long)]
    pub(super) phash: bool,
}

// How URLs are downloaded. (A comment: its documentation would be that of the command.)
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Downloads")]
pub(super) struct DownloadArgs {
    /// Most requests at a time
    #[arg(long, value_name = "N", default_value = "256",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) parallel_downloads: u16,

    /// Most requests at a time to one host
    #[arg(long, value_name = "N", default_value = "32",
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) per_host: u16,

    /// Longest wait for an image, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "20",
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(super) timeout: u32,

    /// How often a request that failed in passing is made again
    #[arg(long, value_name = "N", default_value = "2",
        value_parser = clap::value_parser!(u32).range(0..=20))]
    pub(super) retries: u32,

    /// Largest image that is downloaded
    #[arg(long, value_name = "SIZE", default_value = "20MB", value_parser = size::parse)]
    pub(super) max_download: u64,

    /// Name that opt-outs may address (X-Robots-Tag: NAME: noai)
    #[arg(long, value_name = "NAME")]
    pub(super) user_agent_token: Option<String>,

    /// Download images whose servers say, by X-Robots-Tag, that they are not for training
    #[arg(long)]
    pub(super) ignore_opt_out: bool,

    /// Download from addresses of this machine and of private networks
    #[arg(long)]
    pub(super) allow_private_addresses: bool,
}

impl JobArgs {
    /// What `--held-out` asks for.
    pub(super) fn held_out(&self) -> Option<HeldOut> {
        let seed = self.held_out_seed;
        self.held_out.map(|share| HeldOut { share, seed })
    }
}

/// The name that an option's value has on the command line.
fn named<T: ValueEnum>(value: &T) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn set(settings: &mut Settings, option: &str, value: Option<String>) {
    if let Some(value) = value {
        settings.insert(option.to_owned(), value);
    }
}

impl InputArgs {
    /// What decides the bytes of shards.
    pub(super) fn settings(&self, settings: &mut Settings) {
        let InputArgs {
            from,
            images,
            split,
            delimiter,
            path_column,
            caption_column,
            keep_columns,
            caption_lines,
        } = self;
        let several = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
        let images = images.as_ref().map(|folder| {
            let whole = std::fs::canonicalize(folder);
            whole
                .unwrap_or_else(|_| folder.clone())
                .display()
                .to_string()
        });
        set(settings, "--from", from.as_ref().map(named));
        set(settings, "--images", images);
        set(settings, "--split", several(split));
        let delimiter = delimiter.map(|byte| char::from(byte).to_string());
        set(settings, "--delimiter", delimiter);
        set(settings, "--path-column", path_column.clone());
        set(settings, "--caption-column", several(caption_column));
        set(settings, "--keep-columns", Some(keep_columns.clone()));
        let lines = caption_lines.map(|lines| lines.name().to_owned());
        set(settings, "--caption-lines", lines);
    }
}

impl ImageArgs {
    /// What decides the bytes of shards.
    pub(super) fn settings(&self, settings: &mut Settings) {
        let ImageArgs {
            check_images,
            resize,
            image_size,
            only_if_bigger,
            image_format,
            quality,
            min_size,
            max_size,
            max_aspect,
            phash,
        } = self;
        for (option, value) in [
            ("--check-images", named(check_images)),
            ("--resize", named(resize)),
            ("--image-size", image_size.to_string()),
            ("--only-if-bigger", only_if_bigger.to_string()),
            ("--quality", quality.to_string()),
            ("--min-size", min_size.to_string()),
            ("--max-size", max_size.to_string()),
            ("--max-aspect", max_aspect.to_string()),
            ("--phash", phash.to_string()),
        ] {
            set(settings, option, Some(value));
        }
        set(settings, "--image-format", image_format.as_ref().map(named));
    }
}

impl DownloadArgs {
    /// What may differ between machines that make parts of one job, from the command line of one.
    pub(super) fn take_rates(&mut self, given: &DownloadArgs) {
        self.parallel_downloads = given.parallel_downloads;
        self.per_host = given.per_host;
        self.timeout = given.timeout;
        self.retries = given.retries;
    }

    /// What decides the bytes of shards, as far as servers do not.
    pub(super) fn settings(&self, settings: &mut Settings) {
        let DownloadArgs {
            parallel_downloads: _,
            per_host: _,
            timeout: _,
            retries: _,
            max_download,
            user_agent_token,
            ignore_opt_out,
            allow_private_addresses,
        } = self;
        for (option, value) in [
            ("--max-download", max_download.to_string()),
            ("--ignore-opt-out", ignore_opt_out.to_string()),
            (
                "--allow-private-addresses",
                allow_private_addresses.to_string(),
            ),
        ] {
            set(settings, option, Some(value));
        }
        set(settings, "--user-agent-token", user_agent_token.clone());
    }
}

/// What to do about inputs that cannot become a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnBad {
    /// Count them
    Skip,
    /// Count and name them
    Warn,
    /// Write nothing (of URLs: stop at the first)
    Error,
}

/// How images are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CheckImages {
    /// By their first bytes, which also decide the extension they get
    Header,
    /// By decoding them
    Decode,
    /// Not at all: the extension counts
    None,
}

/// Which images are doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Doubles {
    /// Those of the same bytes
    Exact,
    /// Those that look alike, too
    Near,
}

/// A format that images are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ImageKind {
    /// JPEG
    #[value(alias = "jpg")]
    Jpeg,
    /// PNG
    Png,
    /// WebP, lossy
    Webp,
}

impl ImageKind {
    pub(super) fn is(self, format: ImageFormat) -> bool {
        matches!(
            (self, format),
            (ImageKind::Jpeg, ImageFormat::Jpeg)
                | (ImageKind::Png, ImageFormat::Png)
                | (ImageKind::Webp, ImageFormat::WebP)
        )
    }

    /// Of members in this format.
    pub(super) fn extension(self) -> &'static str {
        match self {
            ImageKind::Jpeg => "jpg",
            ImageKind::Png => "png",
            ImageKind::Webp => "webp",
        }
    }
}

/// Part `index` of `count` of the rows of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) index: u64,
    pub(super) count: u64,
}

impl Part {
    /// Which of so many rows: parts differ by one row at most.
    pub(super) fn rows(self, rows: u64) -> Range<u64> {
        let start = |part: u64| {
            let start = u128::from(rows) * u128::from(part) / u128::from(self.count);
            u64::try_from(start).unwrap_or(rows)
        };
        start(self.index)..start(self.index + 1)
    }

    /// The prefix of its shards.
    pub(super) fn prefix(self, prefix: &str) -> String {
        format!("{prefix}-{:05}", self.index)
    }
}

/// What `--part` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartArg {
    pub(super) index: u64,
    pub(super) count: Option<u64>,
}

impl PartArg {
    /// The part, without a plan to say how many there are.
    pub(super) fn of_count(self) -> anyhow::Result<Part> {
        let PartArg { index, count } = self;
        match count {
            Some(count) => Ok(Part { index, count }),
            None => bail!("--part {index}: of how many? Give I/N, such as {index}/8, or --plan"),
        }
    }
}

/// `I` or `I/N`.
pub(super) fn part(text: &str) -> Result<PartArg, String> {
    const HELP: &str = "give I/N with I from 0 to N-1, such as 0/8";
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| HELP.to_owned());
    let (index, count) = match text.split_once('/') {
        Some((index, count)) => (number(index)?, Some(number(count)?)),
        None => (number(text)?, None),
    };
    match count.is_none_or(|count| index < count) {
        true => Ok(PartArg { index, count }),
        false => Err(HELP.to_owned()),
    }
}

/// A path, or the URL of an object store.
fn destination(text: &str) -> Result<String, String> {
    match scheme(text) {
        None | Some("s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" | "adl") => {
            Ok(text.to_owned())
        }
        Some(_) => Err("shards are written to a path, s3://, gs:// or az://".to_owned()),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text {
        "\\t" | "tab" => Ok(b'\t'),
        _ => match text.as_bytes() {
            [byte]
                if byte.is_ascii()
                    && !byte.is_ascii_alphanumeric()
                    && !b"\"\r\n".contains(byte) =>
            {
                Ok(*byte)
            }
            _ => Err("give one character, such as ; or | or tab".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_rows_once() {
        for rows in [0, 1, 7, 100, u64::MAX] {
            for count in [1, 2, 3, 8, 1000] {
                let mut next = 0;
                for index in 0..count {
                    let part = Part { index, count }.rows(rows);
                    assert_eq!(part.start, next);
                    assert!(part.end - part.start <= (rows / count).saturating_add(1));
                    next = part.end;
                }
                assert_eq!(next, rows);
            }
        }
        let (index, count) = (3, 8);
        let parsed = part("3/8").unwrap();
        assert_eq!(parsed.of_count().unwrap(), Part { index, count });
        assert!(part("3").unwrap().of_count().is_err());
        for bad in ["", "x", "8/8", "-1/3", "0/0", "1/x"] {
            assert!(part(bad).is_err(), "{bad}");
        }
    }
}
