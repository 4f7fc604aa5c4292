//! `qfdata head`: the first samples of shards.

use clap::Args;
use qf_cli::output::{remark, say};
use qf_pipeline::captions::raw_captions;
use qf_pipeline::decode::{DecodeLimits, Decoder, OnTruncated};
use qf_pipeline::printable::Printable;
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::{EncodedSample, LoaderConfig, SampleError};
use serde::Serialize;

use crate::data::{CaptionLinesArg, ListedShards};
use crate::interrupt::Interrupt;
use crate::unreadable::Unreadable;

/// Show the first samples of shards: key, members, size of the picture, captions.
#[derive(Args)]
pub(crate) struct HeadArgs {
    #[command(flatten)]
    shards: ListedShards,

    #[command(flatten)]
    lines: CaptionLinesArg,

    /// Samples to show, of all shards together
    #[arg(long, short = 'n', default_value_t = 10, value_name = "SAMPLES")]
    count: u64,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What is shown of a sample.
#[derive(Serialize)]
struct Shown<'a> {
    shard: &'a str,
    key: &'a str,
    offset_bytes: u64,
    members: Vec<Member<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Image<'a>>,
    captions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Member<'a> {
    name: &'a str,
    bytes: usize,
}

/// By its header.
#[derive(Serialize)]
struct Image<'a> {
    member: &'a str,
    format: &'static str,
    width: u32,
    height: u32,
}

pub(crate) fn run(args: &HeadArgs) -> anyhow::Result<()> {
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    let config = args.lines.over(args.shards.config());
    let options = ReadOptions {
        all_members: true,
        needs_captions: false,
        ..config.read_options()
    };
    let mut unreadable = Unreadable::default();
    let mut left = args.count;
    let mut failure = None;
    for shard in &shards {
        if left == 0 {
            break;
        }
        let mut visit = |sample: Result<EncodedSample, SampleError>| {
            let shown = match &sample {
                Ok(sample) => show(sample, &config, args.json),
                Err(error) => {
                    remark(format_args!("{error}"));
                    Ok(())
                }
            };
            failure = shown.err();
            left = left.saturating_sub(1);
            left > 0 && failure.is_none()
        };
        let stop = interrupt.stop();
        let read = read_shard(shard, 0, &options, &NoObserver, &stop, &mut visit);
        interrupt.check()?;
        if let Some(error) = failure {
            return Err(error);
        }
        match read {
            Ok(notes) => unreadable.note(shard, &notes),
            Err(error) => unreadable.shard(&error),
        }
    }
    unreadable.finish(shards.len())
}

fn show(sample: &EncodedSample, config: &LoaderConfig, json: bool) -> anyhow::Result<()> {
    let decoder = Decoder::new(DecodeLimits::default(), OnTruncated::Error);
    let mut problems = Vec::new();
    let image = sample.image(config.image_column.as_deref());
    let image = match image.and_then(|member| Some((member, member.bytes()?))) {
        None => {
            problems.push("no image".to_string());
            None
        }
        Some((member, bytes)) => match decoder.open(bytes) {
            Ok(opened) => Some(Image {
                member: &member.name,
                format: opened.format().name(),
                width: opened.width(),
                height: opened.height(),
            }),
            Err(error) => {
                problems.push(error.to_string());
                None
            }
        },
    };
    let source = config.caption_source(config.caption_lines.unwrap_or_default());
    let captions = match raw_captions(sample, source) {
        Ok(captions) => captions.into_iter().map(Into::into).collect(),
        Err((_, message)) => {
            problems.push(message);
            Vec::new()
        }
    };
    let members = sample.members.iter().map(|member| Member {
        name: &member.name,
        bytes: member.data.len_bytes(),
    });
    let shown = Shown {
        shard: &sample.id.shard,
        key: &sample.id.key,
        offset_bytes: sample.id.offset_bytes,
        members: members.collect(),
        image,
        captions,
        problems,
    };
    match json {
        true => say(format_args!("{}", serde_json::to_string(&shown)?)),
        false => print(&shown),
    }
}

fn print(shown: &Shown<'_>) -> anyhow::Result<()> {
    let (shard, key) = (Printable(shown.shard), Printable(shown.key));
    say(format_args!("{shard}#{key}@{}", shown.offset_bytes))?;
    let members: Vec<String> = (shown.members.iter())
        .map(|member| {
            format!(
                "{} {}",
                Printable(member.name),
                crate::size::display(member.bytes as u64)
            )
        })
        .collect();
    say(format_args!("  {}", members.join(", ")))?;
    if let Some(image) = &shown.image {
        let Image {
            format,
            width,
            height,
            ..
        } = image;
        say(format_args!("  {format}, {width}×{height} pixels"))?;
    }
    for caption in &shown.captions {
        say(format_args!("  {}", Printable(caption)))?;
    }
    for problem in &shown.problems {
        say(format_args!("  ! {}", Printable(problem)))?;
    }
    Ok(())
}
