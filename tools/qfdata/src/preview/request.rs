//! From options and a configuration to what is to be shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context};
use qf_pipeline::config::{CaptionChoice, OnBad, Processing};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer};
use qf_pipeline::LoaderConfig;
use serde::Deserialize;

use super::args::PreviewArgs;
use super::shown::TextStage;

/// Image files that make one batch where no size is given.
const MAX_FILES: usize = 64;

/// What is to be shown.
pub(super) struct Request {
    pub(super) config: LoaderConfig,
    pub(super) epoch: u64,
    pub(super) batch: u64,
    pub(super) text: TextStage,
    /// What the tokenizer was read from.
    pub(super) tokenizer: Option<PathBuf>,
}

/// Settings of the loader from a file and from options, checked.
pub(super) fn request(args: &PreviewArgs, files: Option<usize>) -> anyhow::Result<Request> {
    let mut config = match &args.config {
        Some(path) => data_settings(path)?,
        None => LoaderConfig::default(),
    };
    config = args.lines.over(args.data.over(config));
    if let Some(files) = files {
        config.batch_size = files.clamp(1, MAX_FILES);
    }
    let set = |setting: &mut usize, option: Option<usize>| *setting = option.unwrap_or(*setting);
    set(&mut config.batch_size, args.batch_size);
    set(&mut config.image_size, args.image_size);
    set(&mut config.text_len, args.text_len);
    config.seed = args.seed.unwrap_or(config.seed);
    config.decode_quality = args.decode_quality.unwrap_or(config.decode_quality);
    if args.eval {
        config.processing = Processing::Eval;
        config.captions = CaptionChoice::All;
        config.shuffle = ShuffleMode::None;
    }
    config.shuffle = args.shuffle.unwrap_or(config.shuffle);
    // One epoch, to its last image; a mixture goes on without end.
    (config.epochs, config.drop_last) = match args.data.is_mixture() {
        true => (0, true),
        false => (args.epoch + 1, false),
    };
    config.prefetch_batches = 1;
    // They are listed, where the loader would log them.
    config.on_bad_sample = OnBad::Skip;
    config.max_bad_share = 1.0;
    config.validate()?;
    check_size(&config)?;
    let tokenizer = match (&args.tokenizer, &args.config) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(config)) => tokenizer_beside(config),
        (None, None) => None,
    };
    let text = TextStage {
        processor: CaptionProcessor::new(config.max_words, config.prompt.as_str())?,
        tokenizer: match &tokenizer {
            Some(path) => Some(Arc::new(CaptionTokenizer::from_file(path)?)),
            None => None,
        },
        text_len: config.text_len,
    };
    Ok(Request {
        epoch: args.epoch,
        batch: args.batch,
        text,
        tokenizer,
        config,
    })
}

/// The `[data]` table of a configuration of training.
fn data_settings(path: &Path) -> anyhow::Result<LoaderConfig> {
    /// The rest is nothing that a batch depends on.
    #[derive(Deserialize)]
    struct Configuration {
        #[serde(default)]
        data: LoaderConfig,
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    let configuration: Configuration =
        toml::from_str(&text).with_context(|| format!("configuration {}", path.display()))?;
    Ok(configuration.data)
}

/// The tokenizer that a run keeps beside its configuration.
fn tokenizer_beside(config: &Path) -> Option<PathBuf> {
    let names = ["vocab.txt", "tokenizer.json"];
    let beside = names.map(|name| config.with_file_name(name));
    beside.into_iter().find(|path| path.is_file())
}

/// Refuses what no picture could hold, before anything is read.
fn check_size(config: &LoaderConfig) -> anyhow::Result<()> {
    let pixels = config.batch_size as u64 * (config.image_size as u64).pow(2);
    if pixels > MAX_PIXELS {
        bail!(
            "{} images of {2} × {2} pixels are more than the {1} million pixels of the largest grid: \
             take a smaller --batch-size or --image-size",
            config.batch_size,
            MAX_PIXELS / 1_000_000,
            config.image_size
        );
    }
    Ok(())
}

/// Greatest size of the picture, in pixels: 300 MB.
pub(super) const MAX_PIXELS: u64 = 100_000_000;
