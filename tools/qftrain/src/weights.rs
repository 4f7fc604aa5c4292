//! Weights that a run starts from, and models that come as weights alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context};
use qf_model::train::{TrainConfig, WeightsConfig};
use qf_model::weights::{
    load_into, read_bert_config, read_config, Absent, BertSizes, FileDigest, Part, WeightsFile,
};
use qf_model::{Blip2Qformer, ModelConfig, Ranks};
use qf_pipeline::source::local_path;
use qf_pipeline::text::CaptionTokenizer;
use qftrain::run_config::load_config;
use qftrain::settings::Settings;
use serde::Serialize;
use tch::Device;

use crate::{hub, vocabulary};
use qf_cli::output::remark;

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
    parts: Vec<StartPart>,
}

struct StartPart {
    /// `bert`, `vision` or `checkpoint`.
    name: &'static str,
    /// As it was given.
    given: String,
    part: Part,
    file: WeightsFile,
    /// The one that belongs to it, if that is there.
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
        let bert = Part::Bert {
            fresh_head: config.fresh_head,
            fold_token_types: config.fold_token_types,
        };
        let given = [
            ("bert", &config.bert, bert),
            ("vision", &config.vision, Part::Vision),
            ("checkpoint", &config.checkpoint, Part::Model(absent)),
        ];
        let mut parts = Vec::new();
        for (name, place, part) in given {
            let Some(place) = place else { continue };
            let path = located(place)?;
            let file = WeightsFile::open(&path).with_context(|| format!("weights.{name}"))?;
            parts.push(StartPart {
                name,
                given: place.clone(),
                part,
                file,
                tokenizer: vocabulary::tokenizer_of(&path),
            });
        }
        Ok(StartWeights { parts })
    }

    /// The tokenizer of a run that starts from these weights: the one `given`, or else the one that
    /// belongs to them. `None` where none is given and no weights have words.
    ///
    /// # Errors
    /// Naming weights whose vocabulary is not known, or another than the tokenizer's.
    pub(crate) fn tokenizer(&self, given: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
        let parts = || self.parts.iter().filter(|part| part.part != Part::Vision);
        // The checkpoint's, which is loaded last, counts.
        let own = parts().rev().find_map(|part| part.tokenizer.as_deref());
        let Some(chosen) = given.or(own) else {
            return match parts().next() {
                Some(part) => Err(part.no_tokenizer()),
                None => Ok(None),
            };
        };
        let tokenizer = CaptionTokenizer::from_file(chosen)?;
        for part in parts() {
            let own = part.tokenizer.as_deref();
            if given.is_none() && own.is_none() && part.file.vocabulary()?.is_none() {
                return Err(part.no_tokenizer());
            }
            vocabulary::check(&part.file, own, chosen, &tokenizer)
                .with_context(|| format!("weights.{}", part.name))?;
        }
        Ok(Some(chosen.to_owned()))
    }

    /// Whether the tower's values are among the weights.
    pub(crate) fn give_tower(&self) -> bool {
        let is_bert = |part: &StartPart| matches!(part.part, Part::Bert { .. });
        !self.parts.iter().all(is_bert)
    }

    /// Loads all parts and says what they were taken for.
    pub(crate) fn load(&self, model: &mut Blip2Qformer) -> anyhow::Result<Vec<Origin>> {
        let mut origins = Vec::new();
        for StartPart {
            name,
            given,
            part,
            file,
            ..
        } in &self.parts
        {
            let report =
                load_into(model, file, *part).with_context(|| format!("weights.{name}"))?;
            remark(format_args!(
                "weights.{name}: {} in {}, {} parameters, {} tensors left out (RUST_LOG=info \
                 lists them){}",
                report.layout,
                file.path().display(),
                report.loaded,
                report.left_out.len(),
                taken_off(file)
            ));
            if let (Part::Bert { .. }, false) = (part, report.kept.is_empty()) {
                remark(format_args!(
                    "weights.{name}: it has no language-model head; that starts from random numbers"
                ));
            }
            origins.push(Origin {
                part: name,
                given: given.clone(),
                files: file.digests()?,
            });
        }
        Ok(origins)
    }
}

impl StartPart {
    fn no_tokenizer(&self) -> anyhow::Error {
        vocabulary::no_tokenizer(&self.given, &self.file).context(format!("weights.{}", self.name))
    }
}

/// A word on what wrappers had put into a file's names, if anything.
fn taken_off(file: &WeightsFile) -> String {
    match file.taken_off() {
        [] => String::new(),
        parts => format!(", {} taken off their names", parts.join(" and ")),
    }
}

/// Gives the Q-Former the sizes of the BERT that it starts from, as its config.json has them. What the
/// configuration file or an option names stays; a preset's sizes are only a proposal.
pub(crate) fn fit_to_bert(settings: &mut Settings, ranks: &dyn Ranks) -> anyhow::Result<()> {
    let Some(place) = settings.text_of("weights.bert") else {
        return Ok(());
    };
    // The others may not have the file.
    let sizes = match ranks.is_first() {
        true => serde_json::to_vec(&bert_sizes(&place).context("weights.bert")?)?,
        false => Vec::new(),
    };
    let sizes: Option<BertSizes> = serde_json::from_slice(&ranks.broadcast_bytes(&sizes)?)?;
    let Some(BertSizes {
        hidden,
        layers,
        heads,
        intermediate,
        max_positions,
        eps,
    }) = sizes
    else {
        return Ok(());
    };
    let mut changed = Vec::new();
    for (name, value) in [
        ("hidden", toml::Value::from(hidden)),
        ("layers", layers.into()),
        ("heads", heads.into()),
        ("intermediate", intermediate.into()),
        ("max_positions", max_positions.into()),
        ("eps", eps.into()),
    ] {
        let shown = format!("{name} {value}");
        if settings.propose(&format!("model.qformer.{name}"), value)? {
            changed.push(shown);
        }
    }
    if ranks.is_first() && !changed.is_empty() {
        remark(format_args!(
            "model.qformer: {} (config.json of {place}; --set model.qformer.NAME=… overrides)",
            changed.join(", ")
        ));
    }
    Ok(())
}

/// The sizes in the config.json beside a BERT, if there is one.
fn bert_sizes(place: &str) -> anyhow::Result<Option<BertSizes>> {
    let path = located(place)?;
    let folder = match path.is_dir() {
        true => Some(path.as_path()),
        false => path.parent(),
    };
    let folder = folder.filter(|folder| folder.join("config.json").exists());
    Ok(folder.map(read_bert_config).transpose()?)
}

/// A path, of what `hf://` names the folder in the hub's cache.
pub(crate) fn located(place: &str) -> anyhow::Result<PathBuf> {
    if place.starts_with(hub::SCHEME) {
        hub::fetch(place)
    } else {
        local_path(place.into()).map_err(|message| anyhow::anyhow!("{place}: {message}"))
    }
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
        let run = vocabulary::run_of(&path);
        let own = vocabulary::tokenizer_of(&path);
        let chosen = tokenizer.or(own.as_deref());
        let chosen = chosen.ok_or_else(|| vocabulary::no_tokenizer(place, &file))?;
        let tokenizer = Arc::new(CaptionTokenizer::from_file(chosen)?);
        vocabulary::check(&file, own.as_deref(), chosen, &tokenizer)?;
        let mut config = match &run {
            Some(run) => load_config(run)?.resolve()?.model,
            None if path.join("config.json").exists() => read_config(&path, &file)?,
            None => published_shape(&file)?,
        };
        config.qformer.fit_to_tokenizer(&tokenizer);
        Ok(WeightsModel {
            config,
            tokenizer,
            file,
        })
    }

    /// Reads the values. Without a language-model head in the file, the model can match and
    /// retrieve, but not caption, and says so.
    pub(crate) fn load(&self, device: Device) -> anyhow::Result<Blip2Qformer> {
        let absent = Absent {
            tower: false,
            head: true,
        };
        let (model, report) = Blip2Qformer::loaded(&self.config, device, 0, |model| {
            load_into(model, &self.file, Part::Model(absent))
        })?;
        if !self.file.taken_off().is_empty() {
            let path = self.file.path().display();
            remark(format_args!("{path}{}", taken_off(&self.file)));
        }
        let path = self.file.path().display();
        let (temperature, head): (Vec<_>, Vec<_>) =
            report.kept.iter().partition(|name| *name == "temp");
        if !head.is_empty() {
            log::warn!(
                "{path} has no language-model head: it scores and retrieves, but its captions are noise"
            );
        }
        if !temperature.is_empty() {
            log::warn!(
                "{path} has no temperature, so what is divided by it is divided by that of a new model, 0.07: \
                 cosines and the order of results are those of the weights"
            );
        }
        Ok(model)
    }
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

/// Sets the tokenizer that belongs to the weights where the configuration has none, and refuses one that
/// does not.
pub(crate) fn adopt_tokenizer(
    config: &mut TrainConfig,
    start: &StartWeights,
) -> anyhow::Result<()> {
    let chosen = start.tokenizer(config.tokenizer.as_deref())?;
    if let (None, Some(path)) = (&config.tokenizer, &chosen) {
        remark(format_args!(
            "tokenizer: {} (beside the weights)",
            path.display()
        ));
        config.tokenizer = chosen;
    }
    Ok(())
}
