//! `qftrain eval`: retrieval on held-out shards.

use std::path::PathBuf;

use anyhow::{bail, Context};
use clap::Args;
use indicatif::ProgressBar;
use qf_model::checkpoint;
use qf_model::device::{open_device, DeviceChoice};
use qf_model::eval::{FeatureBank, RecallPair, RetrievalReport};
use qf_model::host::batch_allocator;
use qf_model::run_dir::RunDir;
use qf_model::Blip2Qformer;
use qf_pipeline::loader::Loader;
use qf_pipeline::source::resolve_shards;
use qf_pipeline::LoaderConfig;

use crate::output::say;
use crate::session::{load_config, load_tokenizer};

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Folder of the run whose newest checkpoint is evaluated
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,

    /// Held-out shards: files, globs, {000..012} ranges; several allowed
    #[arg(long, num_args = 1.., required = true, value_name = "SHARDS")]
    shards: Vec<String>,

    /// Evaluate the checkpoint of this step instead of the newest
    #[arg(long)]
    step: Option<u64>,

    /// Candidates per query that the matching head ranks again; 0 for none
    #[arg(long, default_value_t = 128)]
    rerank: usize,

    /// Images encoded at a time
    #[arg(long, default_value_t = 32)]
    batch_size: usize,

    /// Token ids per caption, padding included
    #[arg(long, default_value_t = 35)]
    text_len: usize,

    /// Threads that decode and tokenise [default: one per core]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let device = open_device(args.device)?;
    let run_dir = RunDir::new(&args.run_dir);
    let config = load_config(&run_dir)?.resolve()?;
    let checkpoints = checkpoint::list(&run_dir.checkpoints())?;
    let steps = || {
        checkpoints
            .iter()
            .map(|(step, _)| step.to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = match args.step {
        None => checkpoints.last(),
        Some(wanted) => checkpoints.iter().find(|(step, _)| *step == wanted),
    };
    let Some((step, folder)) = found else {
        let path = args.run_dir.display();
        match args.step {
            Some(wanted) if !checkpoints.is_empty() => {
                bail!(
                    "{path} holds no checkpoint of step {wanted}, but of {}",
                    steps()
                )
            }
            _ => bail!("{path} holds no checkpoint yet; train it, or let it reach its first save"),
        }
    };
    let positions = config.model.qformer.max_positions;
    if args.text_len as i64 > positions {
        bail!(
            "--text-len {}: the model has {positions} positions",
            args.text_len
        );
    }
    let shards = resolve_shards(&args.shards)?;
    let tokenizer = load_tokenizer(&run_dir)?;
    let mut model = Blip2Qformer::new(&config.model, device, config.seed)?;
    checkpoint::load_model(folder, &mut model)?;
    let data = LoaderConfig {
        batch_size: args.batch_size,
        text_len: args.text_len,
        threads: args.threads,
        ..config.data.clone()
    };
    let data = data.for_evaluation();
    let mut loader = Loader::start_in(data, shards, tokenizer, None, batch_allocator(device))?;

    let bar = ProgressBar::new_spinner().with_message("encoding images");
    let bank = FeatureBank::encode(&model, &mut loader, &mut |images| bar.inc(images as u64))?;
    bar.finish_and_clear();
    let rows = (bank.num_images() + bank.num_captions()) as u64;
    let bar = ProgressBar::new(rows).with_message("re-ranking");
    let skipped = loader.state().counters.skipped_total();
    let report = bank.evaluate(&model, args.rerank, skipped, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    if args.json {
        let mut json = serde_json::to_value(&report)?;
        let fields = json.as_object_mut().context("a report is an object")?;
        fields.insert("step".into(), (*step).into());
        return say(format_args!("{json}"));
    }
    print_report(&report, *step)
}

fn print_report(report: &RetrievalReport, step: u64) -> anyhow::Result<()> {
    say(format_args!(
        "retrieval at step {step}: {} images, {} captions, {} samples skipped",
        report.images, report.captions, report.skipped
    ))?;
    say(format_args!(
        "{:<22} {:>7} {:>7} {:>7}   {:>7} {:>7} {:>7}",
        "recall, %", "TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10"
    ))?;
    let row = |name: &str, pair: &RecallPair| {
        let RecallPair { text, image } = pair;
        say(format_args!(
            "{name:<22} {:>7.1} {:>7.1} {:>7.1}   {:>7.1} {:>7.1} {:>7.1}",
            text.r1, text.r5, text.r10, image.r1, image.r5, image.r10
        ))
    };
    row("ITC", &report.itc)?;
    if let Some(itm) = &report.itm {
        row(&format!("ITM, best {} ranked", report.rerank), itm)?;
    }
    row("chance", &report.chance)
}
