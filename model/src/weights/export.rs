//! A model as files of other programs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use qf_config::model::VisionConfig;
use qf_pipeline::atomic_file::AtomicFile;
use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};

use super::hugging_face::{config_json, preprocessor_json, same_ln_vision, tokenizer_json};
use super::names::{hugging_face, Source};
use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
use crate::tensor_file::io_error;
use crate::tensor_file::vocabulary;
use crate::tensor_file::{write_safetensors, Metadata};

/// Writes the model as one safetensors file with LAVIS's names: every parameter, the second names
/// of tied tensors and the table of position ids, so that LAVIS's `load_state_dict` is content.
///
/// # Errors
/// [`ModelError::TensorFile`] for a file that cannot be written.
pub fn export_lavis(model: &Blip2Qformer, path: &Path) -> Result<(), ModelError> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for param in model.params().named_parameters() {
        tensors.push((param.name.clone(), param.tensor.shallow_clone()));
    }
    for (alias, name) in [
        (
            "Qformer.cls.predictions.decoder.weight",
            "Qformer.bert.embeddings.word_embeddings.weight",
        ),
        (
            "Qformer.cls.predictions.decoder.bias",
            "Qformer.cls.predictions.bias",
        ),
    ] {
        if let Some(param) = model.params().get(name) {
            tensors.push((alias.to_owned(), param.tensor.shallow_clone()));
        }
    }
    let positions = model.config().qformer.max_positions;
    let ids = Tensor::f_arange(positions, (Kind::Int64, Device::Cpu))?.f_unsqueeze(0)?;
    tensors.push(("Qformer.bert.embeddings.position_ids".to_owned(), ids));
    write_safetensors(path, &tensors, &metadata(model))
}

/// What readers of PyTorch look for, and which vocabulary the weights belong to.
fn metadata(model: &Blip2Qformer) -> Metadata {
    let mut metadata = vocabulary::metadata(&model.config().qformer);
    metadata.insert("format", "pt".to_owned());
    metadata
}

/// Writes the model into the folder `out`, which must exist, as transformers'
/// `Blip2ForImageTextRetrieval`: weights (in shards with an index where they exceed
/// `max_shard_bytes`), config.json, preprocessor_config.json, and for a `vocabulary` (the text of a
/// vocab.txt, `[DEC]` included) the tokenizer, so that `AutoProcessor` and `AutoModel` read it.
///
/// That class has no temperature and no language-model head; they are left out. Its norm over image
/// features has the tower's epsilon, 1e-6: with another `ln_vision_eps` the scores differ slightly,
/// which is logged as a warning.
///
/// # Errors
/// [`ModelError::Config`] for a tower that the class cannot express: the CLIP tower, whose patches
/// pass a norm before the first block, and none at all. [`ModelError::Io`] and
/// [`ModelError::TensorFile`] for what cannot be written.
pub fn export_hugging_face(
    model: &Blip2Qformer,
    vocabulary: Option<&str>,
    out: &Path,
    max_shard_bytes: u64,
) -> Result<(), ModelError> {
    let config = model.config();
    let vit = match &config.vision {
        VisionConfig::Eva(vit) | VisionConfig::Small(vit) => vit,
        VisionConfig::Clip(_) | VisionConfig::Features(_) => {
            return Err(ModelError::Config {
                setting: "model.vision",
                message: "Blip2ForImageTextRetrieval has the EVA tower's shape: no norm before \
                          the blocks, exact GELU; take the LAVIS format"
                    .to_owned(),
            });
        }
    };
    if !same_ln_vision(config) {
        log::warn!(
            "model.qformer.ln_vision_eps is {}, and transformers uses 1e-6: scores differ by some \
             1e-5; train with ln_vision_eps = 1e-6 for equal ones",
            config.qformer.ln_vision_eps
        );
    }
    write_shards(&tensors(model)?, &metadata(model), out, max_shard_bytes)?;
    write_json(&out.join("config.json"), &config_json(config, vit))?;
    let preprocessor = preprocessor_json(vit.image_size);
    write_json(&out.join("preprocessor_config.json"), &preprocessor)?;
    if let Some(vocabulary) = vocabulary {
        let path = out.join("vocab.txt");
        write_text(&path, vocabulary)?;
        write_json(&out.join("tokenizer_config.json"), &tokenizer_json())?;
        let processor = json!({"processor_class": "Blip2Processor"});
        write_json(&out.join("processor_config.json"), &processor)?;
    }
    Ok(())
}

/// The model's tensors by transformers' names, sorted.
fn tensors(model: &Blip2Qformer) -> Result<Vec<(String, Tensor)>, ModelError> {
    let mut tensors = BTreeMap::new();
    let mut thirds = BTreeMap::<String, [Option<Tensor>; 3]>::new();
    for param in model.params().named_parameters() {
        let values = param.tensor.f_detach()?;
        match hugging_face(&param.name) {
            Some(Source::Whole(name)) => {
                tensors.insert(name, values);
            }
            Some(Source::Third(name, index)) => {
                if let Some(third) = thirds.entry(name).or_default().get_mut(index as usize) {
                    *third = Some(values);
                }
            }
            Some(Source::Stacked(_)) | None => {}
        }
    }
    for (name, parts) in thirds {
        // Where there is no bias, K in the EVA tower, the file has zeros.
        let Some(zeros) = parts.iter().flatten().next().map(Tensor::f_zeros_like) else {
            continue;
        };
        let zeros = zeros?;
        let parts = parts.map(|part| part.unwrap_or_else(|| zeros.shallow_clone()));
        tensors.insert(name, Tensor::f_cat(&parts, 0)?);
    }
    Ok(tensors.into_iter().collect())
}

/// Writes model.safetensors, or shards and their index.
fn write_shards(
    tensors: &[(String, Tensor)],
    metadata: &Metadata,
    out: &Path,
    max_shard_bytes: u64,
) -> Result<(), ModelError> {
    let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let mut shards: Vec<&[(String, Tensor)]> = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, (_, tensor)) in tensors.iter().enumerate() {
        if index > start && size + bytes(tensor) > max_shard_bytes {
            shards.push(&tensors[start..index]);
            (start, size) = (index, 0);
        }
        size += bytes(tensor);
    }
    shards.push(&tensors[start..]);
    if shards.len() == 1 {
        return write_safetensors(&out.join("model.safetensors"), tensors, metadata);
    }
    let mut places = serde_json::Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        write_safetensors(&out.join(&file), shard, metadata)?;
        for (name, _) in *shard {
            places.insert(name.clone(), file.clone().into());
        }
    }
    let total: u64 = tensors.iter().map(|(_, tensor)| bytes(tensor)).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": places});
    write_json(&out.join("model.safetensors.index.json"), &index)
}

fn write_json(path: &Path, json: &Value) -> Result<(), ModelError> {
    write_text(path, &format!("{json:#}\n"))
}

fn write_text(path: &Path, text: &str) -> Result<(), ModelError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(text.as_bytes()).map_err(io_error(path))?;
    Ok(file.commit()?)
}

#[cfg(test)]
mod tests {
    use qf_config::model::{ModelConfig, VitConfig};

    use super::*;
    use crate::weights::{load_into, read_config, Absent, Part, WeightsFile};

    fn config(tower: fn(VitConfig) -> VisionConfig, ln_vision_eps: f64) -> ModelConfig {
        let mut config = ModelConfig::tiny();
        config.vision = tower(VitConfig {
            image_size: 28,
            patch_size: 14,
            width: 16,
            depth: 2,
            heads: 2,
            mlp: 24,
            trainable: false,
            drop_path: 0.0,
            checkpoint_activations: false,
        });
        let qformer = &mut config.qformer;
        (qformer.encoder_width, qformer.hidden, qformer.intermediate) = (16, 16, 24);
        (qformer.vocab_size, qformer.dec_token_id) = (40, 39);
        qformer.ln_vision_eps = ln_vision_eps;
        config
    }

    /// Every parameter different from its start.
    fn model(config: &ModelConfig) -> Blip2Qformer {
        let model = Blip2Qformer::new(config, Device::Cpu, 5).unwrap();
        for param in model.params().named_parameters() {
            let _ = tch::no_grad(|| param.tensor.shallow_clone().normal_(0.0, 1.0));
        }
        model
    }

    fn same(a: &Blip2Qformer, b: &Blip2Qformer, but: &[&str]) {
        for param in a.params().named_parameters() {
            let other = b.params().get(&param.name).unwrap();
            let skipped = but.iter().any(|start| param.name.starts_with(start));
            assert_eq!(param.tensor == other.tensor, !skipped, "{}", param.name);
        }
    }

    #[test]
    fn hugging_face_folders_come_back() {
        for tower in [VisionConfig::Eva, VisionConfig::Small] {
            for max_shard_bytes in [u64::MAX, 4000] {
                let config = config(tower, 1e-6);
                let model = model(&config);
                let dir = tempfile::tempdir().unwrap();
                export_hugging_face(&model, None, dir.path(), max_shard_bytes).unwrap();
                let file = WeightsFile::open(dir.path()).unwrap();
                let read = read_config(dir.path(), &file).unwrap();
                assert_eq!(
                    (&read.vision, read.qformer.ln_vision_eps),
                    (&config.vision, 1e-6)
                );
                let mut other = Blip2Qformer::new(&read, Device::Cpu, 6).unwrap();
                let absent = Absent {
                    tower: false,
                    head: true,
                };
                let _ = load_into(&mut other, &file, Part::Model(absent)).unwrap();
                same(&model, &other, &["temp", "Qformer.cls."]);
            }
        }
    }

    #[test]
    fn lavis_files_come_back() {
        for tower in [VisionConfig::Eva, VisionConfig::Clip, VisionConfig::Small] {
            let config = config(tower, 1e-5);
            let model = model(&config);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.safetensors");
            export_lavis(&model, &path).unwrap();
            let file = WeightsFile::open(&path).unwrap();
            let mut other = Blip2Qformer::new(&config, Device::Cpu, 6).unwrap();
            let part = Part::Model(Absent::default());
            let report = load_into(&mut other, &file, part).unwrap();
            assert_eq!(report.left_out.len(), 3);
            same(&model, &other, &[]);
        }
    }

    #[test]
    fn towers_that_the_class_cannot_express() {
        let dir = tempfile::tempdir().unwrap();
        let model = model(&config(VisionConfig::Clip, 1e-6));
        let error = export_hugging_face(&model, None, dir.path(), u64::MAX).unwrap_err();
        assert!(
            error.to_string().contains("take the LAVIS format"),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
