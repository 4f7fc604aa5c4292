//! What a model is made of, as written in TOML, and the presets.
//!
//! ```toml
//! [vision]
//! type = "small"
//! image_size = 224
//! # …
//! [qformer]
//! hidden = 128
//! # …
//! ```

use qf_pipeline::text::{CaptionTokenizer, VocabularyDigest};
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The whole network: a vision tower and the Q-Former that reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What turns pixels into image features.
    pub vision: VisionConfig,
    /// The Q-Former, its projections and heads.
    pub qformer: QformerConfig,
}

/// Element type of matrix products. Parameters, moments, norms, softmax and losses stay
/// in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// float16, with a loss scale.
    F16,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Precision, String> {
        match text {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            "f16" => Ok(Precision::F16),
            _ => Err("expected f32, bf16 or f16".into()),
        }
    }
}

/// What turns pixels into image features `[B, M, E]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum VisionConfig {
    /// The EVA-CLIP shape: class token, biases on Q and V only, no final norm.
    Eva(VitConfig),
    /// The CLIP shape: patch convolution without bias, `ln_pre`, QuickGELU, no final norm.
    Clip(VitConfig),
    /// A small pre-norm ViT for training from scratch.
    Small(VitConfig),
    /// No tower: batches carry image features `[B, M, E]` that were computed before.
    Features(FeaturesConfig),
}

/// Sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input, pixels. A multiple of `patch_size`.
    pub image_size: i64,
    /// Side of a patch, pixels.
    pub patch_size: i64,
    /// Channels of a token (E).
    pub width: i64,
    /// Number of blocks that are run. The published towers drop their last one.
    pub depth: i64,
    /// Attention heads; divides `width`.
    pub heads: i64,
    /// Width of the hidden layer of the MLP.
    pub mlp: i64,
    /// Whether the tower is trained. A published tower stays frozen in stage 1; a small tower that
    /// starts from random numbers has to learn.
    pub trainable: bool,
    /// Stochastic depth of a trained tower: probability with which the last block's branches are
    /// left out, falling linearly to 0 at the first, 0 to below 1. Default 0.
    #[serde(default)]
    pub drop_path: f64,
    /// Compute the blocks of a trained tower once more in the backward pass instead of keeping
    /// what is inside them. Default false.
    #[serde(default)]
    pub checkpoint_activations: bool,
}

impl VitConfig {
    /// Patches along one side.
    pub fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    /// Tokens that the tower puts out (M): the patches and the class token.
    pub fn tokens(&self) -> i64 {
        self.grid() * self.grid() + 1
    }

    fn validate(&self) -> Result<(), ConfigError> {
        positive("vision.image_size", self.image_size)?;
        positive("vision.patch_size", self.patch_size)?;
        positive("vision.width", self.width)?;
        positive("vision.depth", self.depth)?;
        positive("vision.heads", self.heads)?;
        positive("vision.mlp", self.mlp)?;
        if self.image_size % self.patch_size != 0 {
            return Err(ConfigError::Setting {
                setting: "vision.image_size",
                message: format!(
                    "{} is no multiple of patch_size {}",
                    self.image_size, self.patch_size
                ),
            });
        }
        share("vision.drop_path", self.drop_path)?;
        divides("vision.heads", self.heads, "width", self.width)
    }
}

/// Image features that come with the batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturesConfig {
    /// Channels of a feature (E).
    pub width: i64,
}

impl VisionConfig {
    /// Channels of an image feature (E): what cross attention reads.
    pub fn width(&self) -> i64 {
        match self {
            VisionConfig::Eva(vit) | VisionConfig::Clip(vit) | VisionConfig::Small(vit) => {
                vit.width
            }
            VisionConfig::Features(features) => features.width,
        }
    }

    /// The tower's sizes, if there is a tower.
    pub fn vit(&self) -> Option<&VitConfig> {
        match self {
            VisionConfig::Eva(vit) | VisionConfig::Clip(vit) | VisionConfig::Small(vit) => {
                Some(vit)
            }
            VisionConfig::Features(_) => None,
        }
    }
}

/// Sizes of the Q-Former, its projections and heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QformerConfig {
    /// Channels of a row (D).
    pub hidden: i64,
    /// Number of layers.
    pub layers: i64,
    /// Attention heads; divides `hidden`.
    pub heads: i64,
    /// Width of the hidden layer of both feed-forward networks.
    pub intermediate: i64,
    /// Layer `i` attends to the image if `i % cross_attention_freq == 0`.
    pub cross_attention_freq: i64,
    /// Learned queries per image (Q).
    pub num_queries: i64,
    /// Channels of an image feature (E); equal to the vision tower's width.
    pub encoder_width: i64,
    /// Entries of the word embedding and of the language-model head (V), `[DEC]` included.
    pub vocab_size: i64,
    /// Learned positions: the longest text in tokens.
    pub max_positions: i64,
    /// Dropout probability of hidden states and attention weights while training, 0 to below 1.
    /// BERT's 0.1 is the default.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
    /// Channels of the space in which images and texts are compared (d).
    pub embed_dim: i64,
    /// Epsilon of the Q-Former's layer norms. BERT's 1e-12 is the default.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Epsilon of the layer norm over image features. LAVIS's 1e-5 is the default; files of the
    /// Hugging Face port assume 1e-6.
    #[serde(default = "default_ln_vision_eps")]
    pub ln_vision_eps: f64,
    /// Standard deviation of the normal distribution that fresh weights start from. BERT's 0.02 is
    /// the default; a narrow network trained from scratch learns faster from a larger one.
    #[serde(default = "default_init_std")]
    pub init_std: f64,
    /// Label smoothing of the contrastive and the language-model loss, 0 to below 1. Default 0.1.
    #[serde(default = "default_label_smoothing")]
    pub label_smoothing: f64,
    /// Bounds that the temperature is clamped to before every step, e.g. `[0.001, 0.5]`. The
    /// reference clamps nothing, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_range: Option<[f64; 2]>,
    /// Let the contrastive loss reach the gathered side of each similarity too. The reference
    /// gathers without gradient, which is the default.
    #[serde(default)]
    pub itc_gather_gradient: bool,
    /// Leave texts with the same tokens as the pair's own out of its negatives. The reference draws
    /// them as any other, which is the default.
    #[serde(default)]
    pub exclude_equal_texts: bool,
    /// Id of `[DEC]`, which opens a text that is generated.
    pub dec_token_id: i64,
    /// Id of `[PAD]`, which the language-model loss passes over. Default 0.
    #[serde(default)]
    pub pad_token_id: i64,
    /// Which vocabulary the ids are of; checkpoints and exports carry it, and weights of another are
    /// refused. Absent where no tokenizer is known, as with weights alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary_sha256: Option<VocabularyDigest>,
}

fn default_dropout() -> f64 {
    0.1
}

fn default_eps() -> f64 {
    1e-12
}

fn default_ln_vision_eps() -> f64 {
    1e-5
}

fn default_init_std() -> f64 {
    0.02
}

fn default_label_smoothing() -> f64 {
    0.1
}

impl QformerConfig {
    /// Whether layer `index` attends to the image.
    pub fn has_cross_attention(&self, index: i64) -> bool {
        index % self.cross_attention_freq == 0
    }

    /// Takes from the tokenizer what ids depend on: the number of entries, `[DEC]`, `[PAD]`, and
    /// which vocabulary it is.
    pub fn fit_to_tokenizer(&mut self, tokenizer: &CaptionTokenizer) {
        // No vocabulary comes near 2⁶³ entries.
        self.vocab_size = tokenizer.vocab_size() as i64;
        self.dec_token_id = tokenizer.dec_id();
        self.pad_token_id = tokenizer.pad_id();
        self.vocabulary_sha256 = Some(tokenizer.digest());
    }

    fn validate(&self) -> Result<(), ConfigError> {
        positive("qformer.hidden", self.hidden)?;
        positive("qformer.layers", self.layers)?;
        positive("qformer.heads", self.heads)?;
        positive("qformer.intermediate", self.intermediate)?;
        positive("qformer.cross_attention_freq", self.cross_attention_freq)?;
        positive("qformer.num_queries", self.num_queries)?;
        positive("qformer.encoder_width", self.encoder_width)?;
        positive("qformer.vocab_size", self.vocab_size)?;
        positive("qformer.max_positions", self.max_positions)?;
        positive("qformer.embed_dim", self.embed_dim)?;
        divides("qformer.heads", self.heads, "hidden", self.hidden)?;
        share("qformer.dropout", self.dropout)?;
        share("qformer.label_smoothing", self.label_smoothing)?;
        if let Some([low, high]) = self.temp_range {
            if !(low > 0.0 && low <= high && high.is_finite()) {
                return Err(ConfigError::Setting {
                    setting: "qformer.temp_range",
                    message: format!("[{low}, {high}] is no range of numbers above 0"),
                });
            }
        }
        above_zero("qformer.eps", self.eps)?;
        above_zero("qformer.ln_vision_eps", self.ln_vision_eps)?;
        above_zero("qformer.init_std", self.init_std)?;
        token("qformer.dec_token_id", self.dec_token_id, self.vocab_size)?;
        token("qformer.pad_token_id", self.pad_token_id, self.vocab_size)
    }
}

fn positive(setting: &'static str, value: i64) -> Result<(), ConfigError> {
    /// No size of any published model comes near; products of four such sizes fit an i64.
    const LARGEST: i64 = 1 << 24;
    if (1..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Setting {
        setting,
        message: format!("{value} is out of range; take 1 to {LARGEST}"),
    })
}

fn divides(
    setting: &'static str,
    value: i64,
    whole_name: &str,
    whole: i64,
) -> Result<(), ConfigError> {
    if whole % value == 0 {
        return Ok(());
    }
    Err(ConfigError::Setting {
        setting,
        message: format!("{value} does not divide {whole_name} {whole}"),
    })
}

fn share(setting: &'static str, value: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Setting {
        setting,
        message: format!("{value} is out of range; take 0 to below 1"),
    })
}

fn above_zero(setting: &'static str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ConfigError::Setting {
        setting,
        message: format!("{value} is out of range; take a number above 0"),
    })
}

fn token(setting: &'static str, value: i64, vocab_size: i64) -> Result<(), ConfigError> {
    if (0..vocab_size).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Setting {
        setting,
        message: format!("{value} is no id of a vocabulary of {vocab_size}"),
    })
}

/// Entries of the BERT base uncased vocabulary with `[DEC]` added.
const BERT_VOCAB_SIZE: i64 = 30_523;

impl ModelConfig {
    /// Names that [`ModelConfig::preset`] knows.
    pub const PRESETS: [&'static str; 3] = ["tiny", "vit_l", "vit_g"];

    /// The preset of this name.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] for a name that is none of [`ModelConfig::PRESETS`].
    pub fn preset(name: &str) -> Result<ModelConfig, ConfigError> {
        match name {
            "tiny" => Ok(ModelConfig::tiny()),
            "vit_l" => Ok(ModelConfig::vit_l()),
            "vit_g" => Ok(ModelConfig::vit_g()),
            _ => Err(ConfigError::Setting {
                setting: "preset",
                message: format!(
                    "`{name}` is unknown; take one of {}",
                    ModelConfig::PRESETS.join(", ")
                ),
            }),
        }
    }

    /// A model that two CPU cores train from scratch within minutes.
    pub fn tiny() -> ModelConfig {
        ModelConfig {
            vision: VisionConfig::Small(VitConfig {
                image_size: 224,
                patch_size: 32,
                width: 128,
                depth: 4,
                heads: 4,
                mlp: 256,
                trainable: true,
                drop_path: 0.0,
                checkpoint_activations: false,
            }),
            qformer: QformerConfig {
                hidden: 128,
                layers: 3,
                heads: 4,
                intermediate: 256,
                cross_attention_freq: 2,
                num_queries: 8,
                encoder_width: 128,
                vocab_size: BERT_VOCAB_SIZE,
                max_positions: 64,
                // Trained from random numbers for a few epochs, it is far from overfitting.
                dropout: 0.0,
                embed_dim: 64,
                ..base_qformer(128)
            },
        }
    }

    /// The published CLIP ViT-L/14 model: 23 of 24 blocks, width 1024.
    pub fn vit_l() -> ModelConfig {
        ModelConfig {
            vision: VisionConfig::Clip(VitConfig {
                image_size: 224,
                patch_size: 14,
                width: 1024,
                depth: 23,
                heads: 16,
                mlp: 4096,
                trainable: false,
                drop_path: 0.0,
                checkpoint_activations: false,
            }),
            qformer: base_qformer(1024),
        }
    }

    /// The published EVA-CLIP ViT-g/14 model: 39 of 40 blocks, width 1408.
    pub fn vit_g() -> ModelConfig {
        ModelConfig {
            vision: VisionConfig::Eva(VitConfig {
                image_size: 224,
                patch_size: 14,
                width: 1408,
                depth: 39,
                heads: 16,
                mlp: 6144,
                trainable: false,
                drop_path: 0.0,
                checkpoint_activations: false,
            }),
            qformer: base_qformer(1408),
        }
    }

    /// Checks every setting, and those that depend on each other.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] naming the first setting that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match &self.vision {
            VisionConfig::Eva(vit) | VisionConfig::Clip(vit) | VisionConfig::Small(vit) => {
                vit.validate()?
            }
            VisionConfig::Features(features) => positive("vision.width", features.width)?,
        }
        self.qformer.validate()?;
        if self.qformer.encoder_width != self.vision.width() {
            return Err(ConfigError::Setting {
                setting: "qformer.encoder_width",
                message: format!(
                    "{} differs from the width of the vision tower, {}",
                    self.qformer.encoder_width,
                    self.vision.width()
                ),
            });
        }
        Ok(())
    }
}

/// BERT base with 32 queries, as published.
fn base_qformer(encoder_width: i64) -> QformerConfig {
    QformerConfig {
        hidden: 768,
        layers: 12,
        heads: 12,
        intermediate: 3072,
        cross_attention_freq: 2,
        num_queries: 32,
        encoder_width,
        vocab_size: BERT_VOCAB_SIZE,
        max_positions: 512,
        dropout: default_dropout(),
        embed_dim: 256,
        eps: default_eps(),
        ln_vision_eps: default_ln_vision_eps(),
        init_std: default_init_std(),
        label_smoothing: default_label_smoothing(),
        temp_range: None,
        itc_gather_gradient: false,
        exclude_equal_texts: false,
        dec_token_id: BERT_VOCAB_SIZE - 1,
        pad_token_id: 0,
        vocabulary_sha256: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_toml() {
        for name in ModelConfig::PRESETS {
            let config = ModelConfig::preset(name).unwrap();
            config.validate().unwrap();
            let text = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), config);
        }
        assert_eq!(ModelConfig::vit_g().vision.vit().unwrap().tokens(), 257);
        assert!(ModelConfig::preset("vit_x").is_err());
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = toml::to_string(&ModelConfig::tiny()).unwrap();
        for (from, to) in [("depth =", "dept ="), ("layers =", "layer =")] {
            let error = toml::from_str::<ModelConfig>(&text.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let check = |setting: &str, change: &dyn Fn(&mut ModelConfig)| {
            let mut config = ModelConfig::tiny();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("setting `{setting}`")),
                "{error}"
            );
        };
        check("qformer.heads", &|c| c.qformer.heads = 5);
        check("qformer.num_queries", &|c| c.qformer.num_queries = 0);
        check("qformer.cross_attention_freq", &|c| {
            c.qformer.cross_attention_freq = 0
        });
        check("qformer.dropout", &|c| c.qformer.dropout = 1.0);
        check("qformer.dropout", &|c| c.qformer.dropout = f64::NAN);
        check("qformer.eps", &|c| c.qformer.eps = 0.0);
        check("qformer.dec_token_id", &|c| c.qformer.vocab_size = 100);
        check("qformer.encoder_width", &|c| c.qformer.encoder_width = 64);
        check("qformer.hidden", &|c| c.qformer.hidden = i64::MAX);
        let vit = |c: &mut ModelConfig, change: &dyn Fn(&mut VitConfig)| {
            if let VisionConfig::Small(vit) = &mut c.vision {
                change(vit);
            }
        };
        check("vision.image_size", &|c| vit(c, &|v| v.image_size = 225));
        check("vision.heads", &|c| vit(c, &|v| v.heads = 3));
        check("vision.depth", &|c| vit(c, &|v| v.depth = -1));
    }
}
