//! `qftrain caption`: captions of images from the generation head.

use qf_model::generate::{generate, GenerateConfig, Generated, Strategy};
use qf_model::host::{batch_allocator, upload, upload_pixels};
use qf_pipeline::config::{CaptionChoice, OnBad};
use qf_pipeline::filter::Filters;
use qf_pipeline::loader::Loader;
use qf_pipeline::LoaderConfig;
use qftrain::args::CaptionArgs;
use serde_json::json;
use tch::Tensor;

use crate::data;
use crate::image_batches::FileBatches;
use crate::image_paths::image_paths;
use crate::model_source::{load, LoadedModel, ModelSource};
use qf_cli::output::{say, InPart};

/// How captions are generated.
fn generate_config(args: &CaptionArgs) -> GenerateConfig {
    let strategy = match args.top_p {
        Some(top_p) => Strategy::Sample {
            top_p,
            top_k: args.top_k,
            temperature: args.temperature,
            seed: args.seed,
        },
        None => Strategy::Beam {
            num_beams: args.beams,
            length_penalty: args.length_penalty,
        },
    };
    GenerateConfig {
        strategy,
        num_captions: args.num_captions,
        max_length: args.max_length,
        min_length: args.min_length,
        repetition_penalty: args.repetition_penalty,
    }
}

pub(crate) fn run(args: &CaptionArgs) -> anyhow::Result<()> {
    let model = ModelSource::open(&args.model.model)?;
    generate_config(args).validate(model.config.model.qformer.max_positions)?;
    match args.shards.is_empty() {
        true => caption_files(args, model),
        false => caption_shards(args, model),
    }
}

/// Captions files; one that cannot be read is named and costs no other.
fn caption_files(args: &CaptionArgs, model: ModelSource<'_>) -> anyhow::Result<()> {
    let mut paths = image_paths(&args.images)?;
    paths.truncate(args.limit.unwrap_or(usize::MAX));
    let mut files = FileBatches::new(paths, &model.config.data, args.batch_size.into())?;
    // Loaded for the first image that can be read: a mistyped name shows before.
    let (mut model, mut captioner) = (Some(model), None);
    loop {
        let done = files.done() as u64;
        let Some(batch) = files.next()? else {
            return files.end();
        };
        if let Some(model) = model.take() {
            captioner = Some(Captioner::new(args, load(&args.model, model)?));
        }
        if let Some(captioner) = &captioner {
            let images = upload_pixels(batch.pixels.as_batch(), captioner.loaded.device)?;
            captioner.caption(&images, &batch.names, done)?;
        }
    }
}

/// Captions the images of shards, whose own captions nobody looks at.
fn caption_shards(args: &CaptionArgs, model: ModelSource<'_>) -> anyhow::Result<()> {
    let shards = data::resolve(&args.shards, &model.config.remote)?;
    let data = LoaderConfig {
        batch_size: args.batch_size.into(),
        captions: CaptionChoice::Ignore,
        caption_column: None,
        // Those of the run say which pairs are good to learn from.
        filters: Filters::default(),
        on_bad_sample: OnBad::Warn,
        on_bad_shard: OnBad::Warn,
        ..args
            .columns
            .over(model.config.data.clone().for_evaluation())
    };
    let captioner = Captioner::new(args, load(&args.model, model)?);
    let LoadedModel {
        tokenizer, device, ..
    } = &captioner.loaded;
    let mut loader = Loader::builder(data)
        .shards(shards)
        .allocator(batch_allocator(*device))
        .batches(tokenizer.clone())?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut done = 0;
    while left > 0 {
        let Some(batch) = loader.next_batch()? else {
            break;
        };
        let count = batch.batch_size.min(left);
        let images = upload(&batch, *device)?.images.narrow(0, 0, count as i64);
        let names: Vec<_> = batch.ids[..count].iter().map(|id| id.to_string()).collect();
        captioner.caption(&images, &names, done)?;
        done += count as u64;
        left -= count;
    }
    let counters = &loader.state().counters;
    let (samples, shards) = (counters.skipped_total(), counters.bad_shards);
    if samples == 0 && shards == 0 {
        return Ok(());
    }
    Err(InPart(format!(
        "{done} images have captions; {samples} samples and the rest of {shards} shards cannot be \
         read, see the warnings above"
    ))
    .into())
}

struct Captioner {
    config: GenerateConfig,
    json: bool,
    loaded: LoadedModel,
}

impl Captioner {
    fn new(args: &CaptionArgs, loaded: LoadedModel) -> Captioner {
        Captioner {
            config: generate_config(args),
            json: args.json,
            loaded,
        }
    }

    /// Captions `images`, which `done` others came before, and prints the captions.
    fn caption(&self, images: &Tensor, names: &[String], done: u64) -> anyhow::Result<()> {
        let LoadedModel {
            model, tokenizer, ..
        } = &self.loaded;
        let embeds = tch::no_grad(|| model.encode_image(images))?;
        let captions = generate(model, &embeds, &self.config, tokenizer.sep_id(), done)?;
        for (name, captions) in names.iter().zip(&captions) {
            self.print(name, captions)?;
        }
        Ok(())
    }

    fn print(&self, name: &str, captions: &[Generated]) -> anyhow::Result<()> {
        let text = |caption: &Generated| self.loaded.tokenizer.decode(&caption.token_ids);
        if self.json {
            let captions: Vec<_> = captions
                .iter()
                .map(|caption| {
                    json!({
                        "text": text(caption),
                        "score": caption.score,
                        "tokens": caption.token_ids,
                    })
                })
                .collect();
            return say(format_args!(
                "{}",
                json!({"image": name, "captions": captions})
            ));
        }
        for caption in captions {
            say(format_args!("{name}: {}", text(caption)))?;
        }
        Ok(())
    }
}
