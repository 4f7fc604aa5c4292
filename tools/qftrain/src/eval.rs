//! `qftrain eval`: retrieval on held-out shards or an annotation file.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use qf_model::eval::{
    read_annotations, AnnotationSource, EvalSource, FeatureBank, RecallPair, RetrievalReport,
};
use qf_model::host::batch_allocator;
use qf_pipeline::filter::Filters;
use qf_pipeline::loader::Loader;
use qf_pipeline::source::ShardSpec;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;

use crate::data::{self, ColumnArgs};
use crate::model_source::{check_text_len, InferenceArgs, LoadedModel};
use crate::progress::Count;
use qf_cli::output::say;

#[derive(Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: InferenceArgs,

    /// Held-out shards: files, globs, {000..012} ranges; several allowed
    #[arg(
        long,
        num_args = 1..,
        required_unless_present = "annotations",
        conflicts_with = "annotations",
        value_name = "SHARDS"
    )]
    shards: Vec<ShardSpec>,

    #[command(flatten)]
    columns: ColumnArgs,

    /// Leave out the samples that the run's data.filters leave out, as its validation does [default:
    /// filters choose what a model learns from; all samples are evaluated]
    #[arg(long, conflicts_with = "annotations")]
    filters: bool,

    /// Annotation file instead of shards: a JSON list of objects with `image` and `caption`, as
    /// LAVIS's coco_karpathy_test.json
    #[arg(long, value_name = "FILE", requires = "images")]
    annotations: Option<PathBuf>,

    /// Folder that the image paths of --annotations begin at
    #[arg(long, value_name = "DIR", requires = "annotations")]
    images: Option<PathBuf>,

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

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let model = args.model.open()?;
    check_text_len(args.text_len, &model.config)?;
    let data = LoaderConfig {
        batch_size: args.batch_size,
        text_len: args.text_len,
        threads: args.threads,
        ..model.config.data.clone()
    };
    let mut data = args.columns.over(data).for_evaluation();
    if !args.filters {
        // Figures of models that learned from different samples are to be those of the same ones.
        data.filters = Filters::default();
    }
    data.validate()?;
    let input = match (&args.annotations, &args.images) {
        (Some(file), Some(images)) => Input::Files(read_annotations(file)?, images.clone()),
        _ => Input::Shards(data::resolve(&args.shards, &model.config.remote)?),
    };
    let loaded = args.model.load(model)?;
    let LoadedModel { model, .. } = &loaded;
    let mut source = input.start(data, &loaded)?;

    let mut encoded = Count::new("encoding images", None);
    let bank = FeatureBank::encode(model, &mut *source, &mut |n| encoded.add(n as u64))?;
    encoded.finish();
    let rows = (bank.num_images() + bank.num_captions()) as u64;
    let mut ranked = Count::new("re-ranking images and captions", Some(rows));
    let report = bank.evaluate(model, args.rerank, source.skipped(), &mut || {
        ranked.add(1);
        Ok(())
    })?;
    ranked.finish();
    if args.json {
        let mut json = serde_json::to_value(&report)?;
        let fields = json.as_object_mut().context("a report is an object")?;
        fields.insert("step".into(), loaded.step.into());
        return say(format_args!("{json}"));
    }
    print_report(&report, &loaded.origin)
}

enum Input {
    Shards(Vec<qf_pipeline::source::ShardLocation>),
    Files(Vec<qf_model::eval::Annotation>, PathBuf),
}

impl Input {
    fn start(
        self,
        data: LoaderConfig,
        loaded: &LoadedModel,
    ) -> anyhow::Result<Box<dyn EvalSource>> {
        let tokenizer = loaded.tokenizer.clone();
        Ok(match self {
            Input::Shards(shards) => {
                let allocator = batch_allocator(loaded.device);
                let loader = Loader::builder(data)
                    .shards(shards)
                    .allocator(allocator)
                    .batches(tokenizer)?;
                data::note(&loader);
                Box::new(loader)
            }
            Input::Files(annotations, root) => {
                Box::new(AnnotationSource::start(annotations, root, data, tokenizer)?)
            }
        })
    }
}

fn print_report(report: &RetrievalReport, origin: &str) -> anyhow::Result<()> {
    say(format_args!(
        "retrieval of {origin}: {}, {}, {} skipped",
        counted(report.images as u64, "image", "images"),
        counted(report.captions as u64, "caption", "captions"),
        counted(report.skipped, "sample", "samples")
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
