//! Weights that a run starts from, and models that come as weights alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context};
use qf_model::run_dir::RunDir;
use qf_model::train::{TrainConfig, WeightsConfig};
use qf_model::weights::{load_into, read_config, Absent, FileDigest, Part, WeightsFile};
use qf_model::{Blip2Qformer, ModelConfig, ParamStore};
use qf_pipeline::source::local_path;
use qf_pipeline::text::CaptionTokenizer;
use serde::Serialize;
use tch::Device;

use crate::hub;
use crate::output::remark;
use crate::session::{load_config, load_tokenizer};

/// The tokenizer that may lie beside weights, the preferred first.
const TOKENIZERS: [&str; 2] = ["vocab.txt", "tokenizer.json"];

/// What a run started from, for `weights.json`.
#[derive(Serialize)]
pub(crate) struct Origin {
    /// `bert`, `vision` or `checkpoint`.
    part: &'static str,
    /// As it was given.
    given: String,
    files: Vec<FileDigest>,
}

/// The weights that a run starts from, found and their tables of contents read.
pub(crate) struct StartWeights {
    /// In the order in which they are loaded: later ones overwrite earlier ones.
    parts: Vec<(&'static str, String, Part, WeightsFile)>,
    tokenizer: Option<PathBuf>,
}

impl StartWeights {
    /// Finds what the configuration names, downloading `hf://` places.
    pub(crate) fn find(config: &WeightsConfig) -> anyhow::Result<StartWeights> {
        let absent = Absent {
            // A frozen tower that the checkpoint leaves out has just been loaded.
            tower: config.vision.is_some(),
            head: config.fresh_head,
        };
        let given = [
            ("bert", &config.bert, Part::Bert),
            ("vision", &config.vision, Part::Vision),
            ("checkpoint", &config.checkpoint, Part::Model(absent)),
        ];
        let mut start = StartWeights {
            parts: Vec::new(),
            tokenizer: None,
        };
        for (name, place, part) in given {
            let Some(place) = place else { continue };
            let path = located(place)?;
            let file = WeightsFile::open(&path).with_context(|| format!("weights.{name}"))?;
            if part != Part::Vision {
                // The checkpoint's vocabulary, which is the last, counts.
                start.tokenizer = tokenizer_beside(&path).or(start.tokenizer);
            }
            start.parts.push((name, place.clone(), part, file));
        }
        Ok(start)
    }

    /// The tokenizer that lies beside the weights, if any.
    pub(crate) fn tokenizer(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    /// Whether the tower's values are among the weights.
    pub(crate) fn give_tower(&self) -> bool {
        self.parts.iter().any(|(_, _, part, _)| *part != Part::Bert)
    }

    /// Loads all parts and says what they were taken for.
    pub(crate) fn load(&self, params: &mut ParamStore) -> anyhow::Result<Vec<Origin>> {
        let mut origins = Vec::new();
        for (name, given, part, file) in &self.parts {
            let report =
                load_into(params, file, *part).with_context(|| format!("weights.{name}"))?;
            remark(format_args!(
                "weights.{name}: {} in {}, {} parameters, {} tensors left out (RUST_LOG=info \
                 lists them)",
                report.layout,
                file.path().display(),
                report.loaded,
                report.left_out.len()
            ));
            origins.push(Origin {
                part: name,
                given: given.clone(),
                files: file.digests()?,
            });
        }
        Ok(origins)
    }
}

/// A path, of what `hf://` names the folder in the hub's cache.
pub(crate) fn located(place: &str) -> anyhow::Result<PathBuf> {
    if place.starts_with(hub::SCHEME) {
        hub::fetch(place)
    } else {
        local_path(place.into()).map_err(|message| anyhow::anyhow!("{place}: {message}"))
    }
}

fn tokenizer_beside(weights: &Path) -> Option<PathBuf> {
    let folder = if weights.is_dir() {
        weights
    } else {
        weights.parent()?
    };
    let paths = TOKENIZERS.iter().map(|name| folder.join(name));
    paths.into_iter().find(|path| path.exists())
}

/// A model that comes as weights alone, before its values are read.
pub(crate) struct WeightsModel {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Arc<CaptionTokenizer>,
    file: WeightsFile,
}

impl WeightsModel {
    /// The model at `place`: a run folder (its newest checkpoint), one of its checkpoints, a folder
    /// of `Blip2ForImageTextRetrieval`, a LAVIS checkpoint with its tower in it, or `hf://org/name`.
    ///
    /// The shape comes from the run's configuration or config.json; a LAVIS file has none and is
    /// taken for the published model with its width. The tokenizer is `tokenizer`, or lies beside
    /// the weights.
    pub(crate) fn open(place: &str, tokenizer: Option<&Path>) -> anyhow::Result<WeightsModel> {
        let path = located(place)?;
        let file = WeightsFile::open(&path)?;
        let run = run_of(&path);
        let tokenizer = match (tokenizer, &run) {
            (Some(path), _) => Arc::new(CaptionTokenizer::from_file(path)?),
            (None, Some(run)) => load_tokenizer(run)?,
            (None, None) => {
                let beside = tokenizer_beside(&path).with_context(|| {
                    format!("{place}: no vocab.txt or tokenizer.json beside it; give --tokenizer")
                })?;
                Arc::new(CaptionTokenizer::from_file(&beside)?)
            }
        };
        let mut config = match &run {
            Some(run) => load_config(run)?.resolve()?.model,
            None if path.join("config.json").exists() => read_config(&path, &file)?,
            None => published_shape(&file)?,
        };
        config.qformer.vocab_size = tokenizer.vocab_size() as i64;
        config.qformer.dec_token_id = tokenizer.dec_id();
        config.qformer.pad_token_id = tokenizer.pad_id();
        Ok(WeightsModel {
            config,
            tokenizer,
            file,
        })
    }

    /// Reads the values. Without a language-model head in the file, the model can match and
    /// retrieve, but not caption, and says so.
    pub(crate) fn load(&self, device: Device) -> anyhow::Result<Blip2Qformer> {
        let mut model = Blip2Qformer::new(&self.config, device, 0)?;
        let absent = Absent {
            tower: false,
            head: true,
        };
        let report = load_into(model.params_mut(), &self.file, Part::Model(absent))?;
        if !report.kept.is_empty() {
            log::warn!(
                "{} has no language-model head: it scores and retrieves, but its captions are noise",
                self.file.path().display()
            );
        }
        Ok(model)
    }
}

/// The run that a folder is, or of which it is a checkpoint.
fn run_of(path: &Path) -> Option<RunDir> {
    let candidates = [Some(path), path.parent().and_then(Path::parent)];
    let runs = candidates.into_iter().flatten().map(RunDir::new);
    runs.into_iter().find(|run| run.config().exists())
}

/// The published model that is as wide as the file's.
fn published_shape(file: &WeightsFile) -> anyhow::Result<ModelConfig> {
    let width = file
        .info("ln_vision.weight")
        .and_then(|(shape, _)| shape.first());
    let mut config = match width {
        Some(1408) => ModelConfig::vit_g(),
        Some(1024) => ModelConfig::vit_l(),
        _ => bail!(
            "{}: no config.json beside it, and its shape is of no published model",
            file.path().display()
        ),
    };
    // Checkpoints fine-tuned at 364 pixels have more positions.
    let tokens = [
        "visual_encoder.pos_embed",
        "visual_encoder.positional_embedding",
    ]
    .into_iter()
    .find_map(|name| file.info(name))
    .and_then(|(shape, _)| shape.iter().rev().nth(1));
    if let (Some(&tokens), qf_model::VisionConfig::Eva(vit) | qf_model::VisionConfig::Clip(vit)) =
        (tokens, &mut config.vision)
    {
        let grid = ((tokens - 1).max(1) as f64).sqrt().round() as i64;
        vit.image_size = grid * vit.patch_size;
    }
    Ok(config)
}

/// Sets the tokenizer that lies beside the weights where the configuration has none.
pub(crate) fn adopt_tokenizer(config: &mut TrainConfig, start: &StartWeights) {
    if let (None, Some(path)) = (&config.tokenizer, start.tokenizer()) {
        remark(format_args!(
            "tokenizer: {} (beside the weights)",
            path.display()
        ));
        config.tokenizer = Some(path.to_owned());
    }
}
