//! `qfdata verify`: everything that is wrong or odd about a data set, with a code for each kind of it.

mod repair;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use qf_cli::output::{remark, InPart, Lines};
use qf_pipeline::printable::Printable;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::words::counted;
use serde::Serialize;

use crate::data::{settings, CaptionLinesArg, ListedShards};
use crate::inspect::codes::{self, Code, Severity};
use crate::inspect::doubles::{Double, Doubles};
use crate::inspect::{inspect, shard, Event, Facts, Finding, InspectOptions, ShardEnd};
use crate::interrupt::Interrupt;
use crate::progress;

/// Check shards: structure, every image, captions, doubles, indices.
///
/// Every image is decoded by the loader's decoder. Each finding has a code, explained by --explain and in
/// docs/reference/findings.md. Errors cost a sample or a shard, warnings are probably not as meant, notes are worth knowing.
/// Exit codes: 0 no error and no warning, 1 no shard can be read, 3 errors or warnings.
#[derive(Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    shards: ListedShards,

    #[command(flatten)]
    lines: CaptionLinesArg,

    /// Say what a code means, e.g. QF-T03, and end
    #[arg(long, value_name = "CODE", exclusive = true, value_parser = parse_code)]
    explain: Option<&'static Code>,

    /// Read headers of images only
    #[arg(long)]
    no_decode: bool,

    /// Do not compare shards with the checksums in their indices
    #[arg(long)]
    no_checksum: bool,

    /// Find near doubles: perceptual hashes (64 bits) that differ in at most this many
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(0..=16))]
    near: Option<u32>,

    /// Images whose shorter side is below this are small, pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS")]
    min_side: u32,

    /// Images whose sides differ by more than this factor are extreme
    #[arg(long, default_value_t = 4.0, value_name = "FACTOR")]
    max_aspect: f64,

    /// Write a clean copy into this folder: shards of the same names without bad samples and exact doubles
    #[arg(long, value_name = "FOLDER")]
    repair: Option<PathBuf>,

    /// Findings of a kind that are printed one by one; 0 for none
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    max_findings: u64,

    /// Print notes one by one, too
    #[arg(long)]
    notes: bool,

    /// Threads that decode [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print findings as JSON, one object a line, and a summary as the last line
    #[arg(long)]
    json: bool,

    /// Print the summary only
    #[arg(long, short)]
    quiet: bool,
}

fn parse_code(id: &str) -> Result<&'static Code, String> {
    let unknown = || "unknown code; docs/reference/findings.md lists them".to_string();
    codes::find(id).ok_or_else(unknown)
}

/// What is printed last.
#[derive(Default, Serialize)]
struct Summary {
    shards: usize,
    unreadable_shards: usize,
    samples: u64,
    /// Samples that the loader would deliver.
    good_samples: u64,
    captions: u64,
    /// Bytes of images, as stored.
    image_bytes: u64,
    errors: u64,
    warnings: u64,
    notes: u64,
    /// Findings by code.
    findings: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<repair::Repaired>,
}

pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    if let Some(code) = args.explain {
        return explain(code);
    }
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    if let Some(out) = &args.repair {
        repair::check_target(out, &shards)?;
    }
    let config = settings(
        args.lines.over(args.shards.config()),
        &shards,
        &interrupt.stop(),
    );
    let options = InspectOptions {
        decode: !args.no_decode,
        perceptual: args.near.is_some(),
        min_side: args.min_side,
        max_aspect: args.max_aspect,
        ..InspectOptions::new(config, args.threads)
    };
    let mut verification = Verification {
        args,
        shards: &shards,
        lines: Lines::new(),
        summary: Summary {
            shards: shards.len(),
            ..Summary::default()
        },
        doubles: Doubles::new(args.near)?,
        left_out: HashSet::new(),
    };
    let bar = progress::bar("verifying", shards.len());
    let stop = interrupt.stop();
    inspect(&shards, &options, &stop, &mut |event| {
        if matches!(event, Event::ShardEnd(_)) {
            bar.inc(1);
        }
        interrupt.check()?;
        verification.take(event)?;
        Ok(true)
    })?;
    interrupt.check()?;
    bar.finish_and_clear();
    verification.check_indices(&options, &interrupt)?;
    verification.tell_doubles()?;
    if let Some(out) = &args.repair {
        let left_out = std::mem::take(&mut verification.left_out);
        let repaired = repair::repair(out, &shards, &options, &left_out, &interrupt)?;
        verification.summary.repair = Some(repaired);
    }
    verification.finish()
}

fn explain(code: &Code) -> anyhow::Result<()> {
    let Code {
        id,
        severity,
        title,
        cause,
        remedy,
    } = code;
    let severity = severity.name();
    qf_cli::output::say(format_args!(
        "{id} ({severity}): {title}\ncause: {cause}\nremedy: {remedy}"
    ))
}

struct Verification<'a> {
    args: &'a VerifyArgs,
    shards: &'a [ShardLocation],
    lines: Lines,
    summary: Summary,
    doubles: Doubles,
    /// Shard and position of samples that a clean copy lacks; kept for `--repair` alone.
    left_out: HashSet<(u32, u32)>,
}

impl Verification<'_> {
    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Sample(facts) => self.sample(*facts),
            Event::ShardEnd(end) => self.shard_end(end),
        }
    }

    fn sample(&mut self, facts: Facts) -> anyhow::Result<()> {
        self.summary.samples += 1;
        self.summary.captions += facts.captions.len() as u64;
        self.summary.image_bytes += facts.picture.as_ref().map_or(0, |picture| picture.bytes);
        match facts.is_bad() {
            true => self.leave_out(facts.id.shard_index, facts.id.sample_index),
            false => self.summary.good_samples += 1,
        }
        self.doubles.add(&facts)?;
        facts
            .findings
            .iter()
            .try_for_each(|finding| self.tell(finding))
    }

    fn leave_out(&mut self, shard: u32, sample: u32) {
        if self.args.repair.is_some() {
            self.left_out.insert((shard, sample));
        }
    }

    fn shard_end(&mut self, end: ShardEnd) -> anyhow::Result<()> {
        if !end.is_whole && end.samples == 0 {
            self.summary.unreadable_shards += 1;
        }
        end.findings
            .iter()
            .try_for_each(|finding| self.tell(finding))
    }

    fn check_indices(
        &mut self,
        options: &InspectOptions,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let (mut with, mut without) = (0, Vec::new());
        for location in self.shards {
            interrupt.check()?;
            let deep = !self.args.no_checksum;
            let (has_index, finding) =
                shard::check_index(location, options, &interrupt.stop(), deep);
            match has_index {
                true => with += 1,
                false => without.push(location),
            }
            if let Some(finding) = finding {
                self.tell(&finding)?;
            }
        }
        // A data set without any is as it is.
        if with > 0 {
            for location in without {
                let message = "others of the data set have one".to_string();
                self.tell(&Finding::of_shard(
                    &codes::NO_INDEX,
                    &location.name,
                    message,
                ))?;
            }
        }
        Ok(())
    }

    fn tell_doubles(&mut self) -> anyhow::Result<()> {
        let doubles = std::mem::replace(&mut self.doubles, Doubles::new(None)?);
        doubles.for_each(&mut |double: Double| {
            let name = |shard: u32| match self.shards.get(shard as usize) {
                Some(location) => location.name.clone(),
                None => "".into(),
            };
            let first = &double.first;
            let twin = format!(
                "{}; the first is {}#{}@{}",
                double.what,
                Printable(&name(first.shard)),
                Printable(&first.key),
                first.offset_bytes
            );
            if double.code == &codes::DOUBLE_SAMPLE {
                self.leave_out(double.later.shard, double.later.sample);
            }
            let finding = Finding::of_shard(double.code, &name(double.later.shard), twin);
            let finding = finding.at(&double.later.key, double.later.offset_bytes);
            self.tell(&finding)
        })
    }

    fn tell(&mut self, finding: &Finding) -> anyhow::Result<()> {
        let counter = match finding.severity {
            Severity::Error => &mut self.summary.errors,
            Severity::Warning => &mut self.summary.warnings,
            Severity::Note => &mut self.summary.notes,
        };
        *counter += 1;
        let count = self.summary.findings.entry(finding.code.id).or_default();
        *count += 1;
        if self.args.quiet {
            return Ok(());
        }
        if self.args.json {
            self.lines
                .say(format_args!("{}", serde_json::to_string(finding)?))?;
            return Ok(());
        }
        let is_told = self.args.notes || finding.severity != Severity::Note;
        if !is_told || *count > self.args.max_findings {
            return Ok(());
        }
        let mut place = Printable(&finding.shard).to_string();
        if let Some(key) = &finding.key {
            place += &format!("#{}", Printable(key));
        }
        if let Some(offset) = finding.offset_bytes {
            place += &format!("@{offset}");
        }
        let (id, severity, title) = (finding.code.id, finding.severity.name(), finding.code.title);
        let message = Printable(&finding.message);
        self.lines
            .say(format_args!("{id} {severity}: {place}: {title}: {message}"))?;
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let summary = &self.summary;
        if self.args.json {
            self.lines
                .say(format_args!("{}", serde_json::to_string(summary)?))?;
        } else {
            for line in table(summary) {
                self.lines.say(format_args!("{line}"))?;
            }
        }
        self.lines.finish()?;
        if summary.unreadable_shards == summary.shards {
            bail!("no shard holds a sample that can be read");
        }
        if summary.errors + summary.warnings == 0 {
            return Ok(());
        }
        let errors = counted(summary.errors, "error", "errors");
        let warnings = counted(summary.warnings, "warning", "warnings");
        if !self.args.json && !self.args.quiet {
            remark(format_args!(
                "`qfdata verify --explain CODE` says what to do"
            ));
        }
        Err(InPart(format!("{errors} and {warnings} found")).into())
    }
}

/// The summary for people.
fn table(summary: &Summary) -> Vec<String> {
    let mut lines = vec![format!(
        "{}, {}, {} good, {}",
        counted(summary.shards as u64, "shard", "shards"),
        counted(summary.samples, "sample", "samples"),
        summary.good_samples,
        counted(summary.captions, "caption", "captions")
    )];
    for (id, count) in &summary.findings {
        if let Some(code) = codes::find(id) {
            let severity = code.severity.name();
            lines.push(format!("{count:>9}  {id}  {severity:<7}  {}", code.title));
        }
    }
    if summary.findings.is_empty() {
        lines.push("nothing was found".to_string());
    }
    if let Some(repaired) = &summary.repair {
        lines.extend(repaired.lines());
    }
    lines
}
