//! `qftrain eval`: retrieval on held-out shards or an annotation file.

use std::path::PathBuf;

use anyhow::Context;
use qf_model::eval::{
    read_annotations, AnnotationSource, EvalSource, FeatureBank, RecallPair, RetrievalReport,
};
use qf_model::host::batch_allocator;
use qf_pipeline::filter::Filters;
use qf_pipeline::loader::Loader;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;
use qftrain::args::EvalArgs;

use crate::data;
use crate::model_source::{check_text_len, load, LoadedModel, ModelSource};
use crate::progress::Count;
use qf_cli::output::{say, InPart};

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let model = ModelSource::open(&args.model.model)?;
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
    let loaded = load(&args.model, model)?;
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
        say(format_args!("{json}"))?;
    } else {
        print_report(&report, &loaded.origin)?;
    }
    match report.skipped {
        0 => Ok(()),
        // As they are meant to be.
        _ if args.filters => Ok(()),
        skipped => Err(InPart(format!(
            "the figures are without {}, see the warnings above",
            counted(skipped, "sample", "samples")
        ))
        .into()),
    }
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
