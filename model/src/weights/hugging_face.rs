//! `config.json` of transformers' `Blip2ForImageTextRetrieval`, in and out.

use std::path::Path;

use qf_config::model::{ModelConfig, QformerConfig, VisionConfig, VitConfig};
use serde_json::{json, Value};

use crate::error::ModelError;
use crate::tensor_file::io_error;
use crate::tensor_file::WeightsFile;

/// Bytes of a config.json; real ones have a few thousand.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Epsilon of the norms within a tower's blocks, the same in the EVA and the small tower.
const TOWER_EPS: f64 = 1e-6;

/// The shape of the model in a folder of transformers, from its config.json and `file`, its weights.
///
/// transformers has one epsilon for all norms of the tower, the last of which is our `ln_vision`:
/// `ln_vision_eps` becomes that one. `[DEC]` is the last word, `[PAD]` as the file says.
///
/// # Errors
/// [`ModelError::Io`] and [`ModelError::TensorFile`] for a file that cannot be read or is of another
/// model; [`ModelError::Config`] for sizes that do not fit together.
pub fn read_config(folder: &Path, file: &WeightsFile) -> Result<ModelConfig, ModelError> {
    let path = folder.join("config.json");
    let json = read_json(&path)?;
    let config = from_json(&json, file).map_err(|message| ModelError::TensorFile {
        path: path.clone(),
        message,
    })?;
    config.validate()?;
    Ok(config)
}

/// A JSON file of a size that a configuration may have.
///
/// # Errors
/// [`ModelError::Io`] for one that cannot be read, [`ModelError::TensorFile`] for one that is too long
/// or no JSON.
pub(super) fn read_json(path: &Path) -> Result<Value, ModelError> {
    let unusable = |message: String| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    };
    let length = std::fs::metadata(path).map_err(io_error(path))?.len();
    if length > MAX_CONFIG_BYTES {
        return Err(unusable(format!(
            "{length} bytes; at most {MAX_CONFIG_BYTES} are read"
        )));
    }
    let bytes = std::fs::read(path).map_err(io_error(path))?;
    serde_json::from_slice(&bytes).map_err(|error| unusable(format!("no JSON: {error}")))
}

fn from_json(json: &Value, file: &WeightsFile) -> Result<ModelConfig, String> {
    if json["model_type"] != "blip-2" {
        return Err(format!(
            "model_type is {}, expected \"blip-2\"",
            json["model_type"]
        ));
    }
    let section = |name: &'static str| Section {
        name,
        json: &json[name],
    };
    let (vision, text) = (section("vision_config"), section("qformer_config"));
    for (section, name, wanted) in [
        (&vision, "hidden_act", "gelu"),
        (&text, "hidden_act", "gelu"),
        (&text, "position_embedding_type", "absolute"),
    ] {
        section.wants(name, wanted)?;
    }
    let width = vision.int("hidden_size", 1408)?;
    let vit = VitConfig {
        image_size: vision.int("image_size", 224)?,
        patch_size: vision.int("patch_size", 14)?,
        width,
        depth: vision.int("num_hidden_layers", 39)?,
        heads: vision.int("num_attention_heads", 16)?,
        mlp: vision.int("intermediate_size", 6144)?,
        trainable: false,
        drop_path: 0.0,
        checkpoint_activations: false,
    };
    let vocab_size = text.int("vocab_size", 30_522)?;
    let top = Section {
        name: "config",
        json,
    };
    let qformer = QformerConfig {
        hidden: text.int("hidden_size", 768)?,
        layers: text.int("num_hidden_layers", 12)?,
        heads: text.int("num_attention_heads", 12)?,
        intermediate: text.int("intermediate_size", 3072)?,
        cross_attention_freq: text.int("cross_attention_frequency", 2)?,
        num_queries: top.int("num_query_tokens", 32)?,
        encoder_width: width,
        vocab_size,
        max_positions: text.int("max_position_embeddings", 512)?,
        dropout: text.float("hidden_dropout_prob", 0.1)?,
        embed_dim: top.int("image_text_hidden_size", 256)?,
        eps: text.float("layer_norm_eps", 1e-12)?,
        ln_vision_eps: vision.float("layer_norm_eps", TOWER_EPS)?,
        dec_token_id: vocab_size - 1,
        pad_token_id: text.int("pad_token_id", 0)?,
        ..ModelConfig::vit_g().qformer
    };
    let vision = if has_key_bias(file) {
        VisionConfig::Small(vit)
    } else {
        VisionConfig::Eva(vit)
    };
    Ok(ModelConfig { vision, qformer })
}

/// Whether K has a bias, as in the small tower; EVA's has none, which files show as zeros.
fn has_key_bias(file: &WeightsFile) -> bool {
    let bias = file.tensor("vision_model.encoder.layers.0.self_attn.qkv.bias");
    let Ok(bias) = bias else { return false };
    let third = bias.size().first().map_or(0, |rows| rows / 3);
    let count = bias
        .f_narrow(0, third, third)
        .and_then(|key| key.f_count_nonzero(None::<i64>));
    count.is_ok_and(|count| count.int64_value(&[]) > 0)
}

/// An object of a configuration.
pub(super) struct Section<'a> {
    /// For messages.
    pub(super) name: &'static str,
    pub(super) json: &'a Value,
}

impl Section<'_> {
    /// Refuses another value than `wanted`; none at all is fine.
    pub(super) fn wants(&self, key: &str, wanted: &str) -> Result<(), String> {
        match &self.json[key] {
            Value::Null => Ok(()),
            value if value == wanted => Ok(()),
            value => Err(format!(
                "{}.{key} is {value}, expected \"{wanted}\"",
                self.name
            )),
        }
    }

    fn get<T>(
        &self,
        key: &str,
        default: T,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, String> {
        match &self.json[key] {
            Value::Null => Ok(default),
            value => read(value)
                .ok_or_else(|| format!("{}.{key} is {value}, expected a number", self.name)),
        }
    }

    pub(super) fn int(&self, key: &str, default: i64) -> Result<i64, String> {
        self.get(key, default, Value::as_i64)
    }

    pub(super) fn float(&self, key: &str, default: f64) -> Result<f64, String> {
        self.get(key, default, Value::as_f64)
    }
}

/// config.json of a model with this tower.
pub(super) fn config_json(config: &ModelConfig, vit: &VitConfig) -> Value {
    let qformer = &config.qformer;
    json!({
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "dtype": "float32",
        "image_text_hidden_size": qformer.embed_dim,
        "image_token_index": null,
        "initializer_factor": 1.0,
        "initializer_range": qformer.init_std,
        "num_query_tokens": qformer.num_queries,
        "use_decoder_only_language_model": true,
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "attention_probs_dropout_prob": qformer.dropout,
            "cross_attention_frequency": qformer.cross_attention_freq,
            "encoder_hidden_size": qformer.encoder_width,
            "hidden_act": "gelu",
            "hidden_dropout_prob": qformer.dropout,
            "hidden_size": qformer.hidden,
            "initializer_range": qformer.init_std,
            "intermediate_size": qformer.intermediate,
            "layer_norm_eps": qformer.eps,
            "max_position_embeddings": qformer.max_positions,
            "num_attention_heads": qformer.heads,
            "num_hidden_layers": qformer.layers,
            "pad_token_id": qformer.pad_token_id,
            "position_embedding_type": "absolute",
            "use_qformer_text_input": true,
            "vocab_size": qformer.vocab_size,
        },
        // The class asks for a language model's configuration and makes none.
        "text_config": {"model_type": "opt"},
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "attention_dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": vit.width,
            "image_size": vit.image_size,
            "initializer_range": 1e-10,
            "intermediate_size": vit.mlp,
            "layer_norm_eps": TOWER_EPS,
            "num_attention_heads": vit.heads,
            "num_hidden_layers": vit.depth,
            "patch_size": vit.patch_size,
            "qkv_bias": true,
        },
    })
}

/// Whether `ln_vision` has the epsilon that transformers gives it.
pub(super) fn same_ln_vision(config: &ModelConfig) -> bool {
    config.qformer.ln_vision_eps == TOWER_EPS
}

/// preprocessor_config.json: a square of `side` pixels, CLIP's mean and deviation.
pub(super) fn preprocessor_json(side: i64) -> Value {
    json!({
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor",
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"height": side, "width": side},
    })
}

/// tokenizer_config.json beside a vocab.txt: BERT's uncased tokenizer, `[DEC]` opening captions that
/// are generated.
pub(super) fn tokenizer_json() -> Value {
    json!({
        "tokenizer_class": "BertTokenizer",
        "processor_class": "Blip2Processor",
        "do_lower_case": true,
        "strip_accents": null,
        "tokenize_chinese_chars": true,
        "model_max_length": 512,
        "bos_token": "[DEC]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    })
}
