//! `qftrain embed`: features of images and texts, in files.

mod features;
mod npy;
mod parquet_file;
mod read;
mod rows;
mod sink;

use std::path::{Path, PathBuf};

use anyhow::Context;
use qf_model::host::{batch_allocator, upload, upload_pixels};
use qf_pipeline::config::OnBad;
use qf_pipeline::filter::Filters;
use qf_pipeline::loader::Loader;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;
use qftrain::args::{EmbedArgs, EmbedFormat};
use tch::Tensor;

pub(crate) use features::embed_texts;
pub(crate) use read::{Embeddings, ImageRow};

use self::rows::{values, Column, Table};
use self::sink::{Sink, Written};
use crate::data;
use crate::image_batches::FileBatches;
use crate::image_paths::image_paths;
use crate::model_source::{load, LoadedModel, ModelSource};
use crate::progress::Count;
use qf_cli::output::{say, InPart};

pub(crate) fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let format = args.format()?;
    let model = ModelSource::open(&args.model.model)?;
    if !args.shards.is_empty() {
        return embed_shards(args, format, model);
    }
    if let Some(path) = &args.texts {
        let texts = std::fs::read_to_string(path);
        let texts = texts.with_context(|| format!("--texts {}", path.display()))?;
        let loaded = embed_images(args, format, model)?;
        embed_lines(args, format, &texts, &loaded)
    } else {
        embed_images(args, format, model).map(|_| ())
    }
}

/// Of image files. Returns the model for what comes after them.
fn embed_images(
    args: &EmbedArgs,
    format: EmbedFormat,
    model: ModelSource<'_>,
) -> anyhow::Result<LoadedModel> {
    if args.images.is_empty() {
        return load(&args.model, model);
    }
    let paths = image_paths(&args.images)?;
    let mut files = FileBatches::new(paths, &model.config.data, args.batch_size.into())?;
    let mut batch = files.next()?;
    if batch.is_none() {
        files.end()?;
    }
    let loaded = load(&args.model, model)?;
    let mut sink = open_images(args, format, &loaded)?;
    let mut count = Count::new("embedding images", Some(files.total() as u64));
    while let Some(read) = batch {
        let images = upload_pixels(read.pixels.as_batch(), loaded.device)?;
        let keys = read.names.iter().map(|name| (String::new(), name.clone()));
        sink.append(&image_table(args, &loaded, &images, keys.collect())?)?;
        count.add(read.names.len() as u64);
        batch = files.next()?;
    }
    count.finish();
    report(&sink.finish()?)?;
    files.end()?;
    Ok(loaded)
}

/// Of the images and captions of shards.
fn embed_shards(
    args: &EmbedArgs,
    format: EmbedFormat,
    model: ModelSource<'_>,
) -> anyhow::Result<()> {
    let shards = data::resolve(&args.shards, &model.config.remote)?;
    let data = LoaderConfig {
        batch_size: args.batch_size.into(),
        filters: Filters::default(),
        on_bad_sample: OnBad::Warn,
        on_bad_shard: OnBad::Warn,
        ..args
            .columns
            .over(model.config.data.clone().for_evaluation())
    };
    let loaded = load(&args.model, model)?;
    let mut loader = Loader::builder(data)
        .shards(shards)
        .allocator(batch_allocator(loaded.device))
        .batches(loaded.tokenizer.clone())?;
    data::note(&loader);
    let mut images = open_images(args, format, &loaded)?;
    let mut texts = open_texts(args, format, &loaded)?;
    let mut count = Count::new("embedding images", None);
    while let Some(batch) = loader.next_batch()? {
        let input = upload(&batch, loaded.device)?;
        let ids = batch.ids.iter();
        let keys: Vec<_> = ids
            .map(|id| (id.shard.to_string(), id.key.clone()))
            .collect();
        let model = &loaded.model;
        let features = model.text_features(&input.token_ids, &input.attention_mask)?;
        let of = batch
            .caption_image
            .iter()
            .map(|&image| &keys[image as usize]);
        let of: Vec<_> = of.cloned().collect();
        texts.append(&text_table(&features, of, batch.captions.clone())?)?;
        images.append(&image_table(args, &loaded, &input.images, keys)?)?;
        count.add(batch.batch_size as u64);
    }
    count.finish();
    report(&images.finish()?)?;
    report(&texts.finish()?)?;
    let counters = &loader.state().counters;
    let (samples, shards) = (counters.skipped_total(), counters.bad_shards);
    match (samples, shards) {
        (0, 0) => Ok(()),
        _ => Err(InPart(format!(
            "{samples} samples and the rest of {shards} shards cannot be read, see the warnings above"
        ))
        .into()),
    }
}

/// Of the lines of a text file.
fn embed_lines(
    args: &EmbedArgs,
    format: EmbedFormat,
    texts: &str,
    loaded: &LoadedModel,
) -> anyhow::Result<()> {
    /// Texts at a time.
    const CHUNK: usize = 256;
    let lines: Vec<(String, String)> = (1..)
        .zip(texts.lines())
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line): (u64, &str)| (number.to_string(), line.to_string()))
        .collect();
    let mut sink = open_texts(args, format, loaded)?;
    for chunk in lines.chunks(CHUNK) {
        let (keys, texts): (Vec<String>, Vec<String>) = chunk.iter().cloned().unzip();
        let features = embed_texts(loaded, &texts)?;
        let keys = keys.into_iter().map(|key| (String::new(), key)).collect();
        sink.append(&text_table(&features, keys, texts)?)?;
    }
    report(&sink.finish()?)
}

fn report(written: &Written) -> anyhow::Result<()> {
    say(format_args!(
        "{}: {} with {}",
        written.path.display(),
        counted(written.rows, "row", "rows"),
        written.columns
    ))
}

/// The table of these images `[B, 3, S, S]`.
fn image_table(
    args: &EmbedArgs,
    loaded: &LoadedModel,
    images: &Tensor,
    keys: Vec<(String, String)>,
) -> anyhow::Result<Table> {
    let model = &loaded.model;
    let embeds = tch::no_grad(|| model.encode_image(images))?;
    let outputs = model.query_outputs(&embeds)?; // [B, Q, D]
    let mut vectors = vec![values(&model.project_outputs(&outputs)?)?];
    if args.query_outputs {
        vectors.push(values(&outputs)?);
    }
    let (shards, keys) = keys.into_iter().unzip();
    Ok(Table {
        strings: vec![shards, keys],
        vectors,
    })
}

fn text_table(
    features: &Tensor,
    keys: Vec<(String, String)>,
    texts: Vec<String>,
) -> anyhow::Result<Table> {
    let (shards, keys) = keys.into_iter().unzip();
    Ok(Table {
        strings: vec![shards, keys, texts],
        vectors: vec![values(features)?],
    })
}

fn open_images(
    args: &EmbedArgs,
    format: EmbedFormat,
    loaded: &LoadedModel,
) -> anyhow::Result<Sink> {
    let sizes = &loaded.model.config().qformer;
    let queries = usize::try_from(sizes.num_queries)?;
    let mut vectors = vec![Column {
        name: "image_embedding",
        shape: vec![queries, usize::try_from(sizes.embed_dim)?],
    }];
    if args.query_outputs {
        vectors.push(Column {
            name: "query_output",
            shape: vec![queries, usize::try_from(sizes.hidden)?],
        });
    }
    Sink::create(
        format,
        &args.out,
        "images",
        &["shard", "key"],
        vectors,
        &loaded.origin,
    )
}

fn open_texts(args: &EmbedArgs, format: EmbedFormat, loaded: &LoadedModel) -> anyhow::Result<Sink> {
    let path = match format {
        EmbedFormat::Parquet => texts_path(&args.out),
        EmbedFormat::Npy => args.out.clone(),
    };
    let vectors = vec![Column {
        name: "text_embedding",
        shape: vec![usize::try_from(loaded.model.config().qformer.embed_dim)?],
    }];
    Sink::create(
        format,
        &path,
        "texts",
        &["shard", "key", "text"],
        vectors,
        &loaded.origin,
    )
}

/// `NAME.texts.parquet` beside `NAME.parquet`.
fn texts_path(images: &Path) -> PathBuf {
    images.with_extension("texts.parquet")
}
