//! The model of BLIP-2 stage 1: vision tower, Q-Former, projections, and the step of three losses.
//!
//! Follows LAVIS `Blip2Qformer` (`lavis/models/blip2_models/blip2_qformer.py`).
//!
//! Dimensions: B batch of this rank, W ranks, N = W · B, Q queries, T text tokens, M image tokens,
//! E image width, D hidden width, d embedding width, V vocabulary.

mod check;
mod decode;
mod inference;
mod queries;
mod score;
mod step;
#[cfg(test)]
mod tests;
mod texts;
mod tower;

use tch::{Device, Kind, Tensor};

#[cfg(test)]
pub(crate) use decode::tests as decode_tests;
pub use decode::DecodeCache;
pub use step::{HiddenRows, NegativeSampling, StepInput, StepOutput};
pub use tower::FrozenTower;

use qf_config::model::{ModelConfig, Precision};

use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, LinearInit};
use crate::low::{low_kind, LowCopies};
use crate::ops;
use crate::params::{Init, ParamStore};
use crate::qformer::Qformer;
use crate::vision::{Recomputed, VisionTower};

/// Temperature that similarities are divided by at the start.
const INITIAL_TEMPERATURE: f64 = 0.07;

/// The model of BLIP-2 stage 1.
#[derive(Debug)]
pub struct Blip2Qformer {
    config: ModelConfig,
    params: ParamStore,
    query_tokens: Tensor, // [1, Q, D]
    temp: Tensor,         // []
    tower: VisionTower,
    ln_vision: LayerNorm,
    qformer: Qformer,
    vision_proj: Linear, // D → d
    text_proj: Linear,   // D → d
    itm_head: Linear,    // D → 2
    compute: ComputeOptions,
    precision: Precision,
    /// What products in 16 bits read.
    copies: Option<LowCopies>,
}

/// Image features of a training step, and what their backward pass needs.
#[derive(Debug)]
pub struct TrainingImages {
    /// `[B, M, E]`, as from [`Blip2Qformer::encode_image`].
    pub features: Tensor,
    recomputed: Option<Recomputed>,
}

/// What a step may leave out because no loss and no gradient depends on it. Everything by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeOptions {
    /// Rows of padding, on the CPU in 32 bits. Anywhere else texts are computed up to the longest of the
    /// batch: gathering rows would cost more than the rows.
    pub skip_padding: bool,
    /// Rows that nothing reads: in the last layer the text rows of matching and all but the first
    /// of contrastive text, and the decoder's last token.
    pub skip_unread: bool,
}

impl Default for ComputeOptions {
    fn default() -> ComputeOptions {
        ComputeOptions {
            skip_padding: true,
            skip_unread: true,
        }
    }
}

impl ComputeOptions {
    /// Every row of every pass, as the reference computes them.
    pub const ALL_ROWS: ComputeOptions = ComputeOptions {
        skip_padding: false,
        skip_unread: false,
    };
}

impl Blip2Qformer {
    /// A fresh model on `device`. Equal seeds give equal numbers on every device.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a configuration that cannot work.
    pub fn new(
        config: &ModelConfig,
        device: Device,
        seed: u64,
    ) -> Result<Blip2Qformer, ModelError> {
        Blip2Qformer::loaded(config, device, seed, |_| Ok(())).map(|(model, ())| model)
    }

    /// A model on `device` whose values `load` gives. Parameters that it leaves out start as in
    /// [`Blip2Qformer::new`], but hold anything while it runs; for the others no start values are
    /// drawn.
    ///
    /// # Errors
    /// Those of [`Blip2Qformer::new`] and of `load`.
    pub fn loaded<T, E: From<ModelError>>(
        config: &ModelConfig,
        device: Device,
        seed: u64,
        load: impl FnOnce(&mut Blip2Qformer) -> Result<T, E>,
    ) -> Result<(Blip2Qformer, T), E> {
        let mut model = Blip2Qformer::without_values(config, device, seed)?;
        let loaded = load(&mut model)?;
        model.params.fill()?;
        Ok((model, loaded))
    }

    fn without_values(
        config: &ModelConfig,
        device: Device,
        seed: u64,
    ) -> Result<Blip2Qformer, ModelError> {
        config.validate()?;
        let sizes = &config.qformer;
        let mut params = ParamStore::deferred(device, seed);
        let mut root = params.root();
        let query_tokens = root.param(
            "query_tokens",
            &[1, sizes.num_queries, sizes.hidden],
            Init::Normal {
                std: sizes.init_std,
            },
        )?;
        let temp = root.param("temp", &[], Init::Constant(INITIAL_TEMPERATURE))?;
        let tower = VisionTower::new(root.sub("visual_encoder"), &config.vision)?;
        let ln_vision = LayerNorm::new(
            root.sub("ln_vision"),
            sizes.encoder_width,
            sizes.ln_vision_eps,
        )?;
        let qformer = Qformer::new(root.sub("Qformer"), sizes)?;
        let mut linear = |name: &str, width: i64| {
            let init = LinearInit::TorchDefault;
            Linear::new(root.sub(name), sizes.hidden, width, init)
        };
        let vision_proj = linear("vision_proj", sizes.embed_dim)?;
        let text_proj = linear("text_proj", sizes.embed_dim)?;
        let itm_head = linear("itm_head", 2)?;
        Ok(Blip2Qformer {
            config: config.clone(),
            params,
            query_tokens,
            temp,
            tower,
            ln_vision,
            qformer,
            vision_proj,
            text_proj,
            itm_head,
            compute: ComputeOptions::default(),
            precision: Precision::F32,
            copies: None,
        })
    }

    /// What is left out of the computation.
    pub fn compute(&self) -> ComputeOptions {
        self.compute
    }

    /// What is left out as things are: padding, where rows can be gathered at little cost.
    pub(crate) fn applied_compute(&self) -> ComputeOptions {
        ComputeOptions {
            skip_padding: self.compute.skip_padding && self.gathers_rows(),
            ..self.compute
        }
    }

    /// Whether rows of padding are left out of batches: the loops that do it are for the CPU in 32 bits.
    fn gathers_rows(&self) -> bool {
        self.params.device() == Device::Cpu && self.copies.is_none()
    }

    /// Element type of matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sets what steps leave out.
    pub fn set_compute(&mut self, compute: ComputeOptions) {
        self.compute = compute;
    }

    /// Sets the element type of matrix products, as torch's automatic mixed precision does: norms,
    /// residuals, similarities and losses stay in 32 bits. The matrices of a frozen tower are kept in
    /// it from here on, as LAVIS does with `vit_precision: fp16`.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device has too little memory.
    pub fn set_precision(&mut self, precision: Precision) -> Result<(), ModelError> {
        self.precision = precision;
        match low_kind(precision) {
            Some(kind) => self.multiply_in(kind),
            None => {
                self.copies = None;
                self.qformer.use_copies(None)?;
                self.tower.use_copies(None)
            }
        }
    }

    /// Computes products of copies of the parameters in `kind`.
    fn multiply_in(&mut self, kind: Kind) -> Result<(), ModelError> {
        let mut copies = LowCopies::new(kind);
        self.qformer.use_copies(Some(&mut copies))?;
        if self.config.vision.vit().is_some_and(|vit| !vit.trainable) {
            self.params
                .convert_frozen_matrices("visual_encoder.", kind)?;
            self.tower.use_copies(Some(&mut copies))?;
        }
        self.copies = Some(copies);
        self.prepare_kernels(kind)?;
        self.refresh_copies()
    }

    /// Makes the kernels of the tower and of the Q-Former ready, where there are some.
    fn prepare_kernels(&self, kind: Kind) -> Result<(), ModelError> {
        let (Device::Cuda(index), Kind::BFloat16) = (self.params.device(), kind) else {
            return Ok(());
        };
        for width in [self.config.qformer.hidden, self.config.vision.width()] {
            if let Err(error) = ops::prepare_fused_kernels(index, width) {
                log::warn!("torch's own kernels do what fused ones would do faster: {error}");
                break;
            }
        }
        Ok(())
    }

    /// Says that parameters may have changed without torch's knowing, as by a recording.
    pub(crate) fn forget_copies(&self) {
        if let Some(copies) = &self.copies {
            copies.forget();
        }
    }

    /// Brings 16-bit copies of parameters up to date: to be called before anything is computed.
    fn refresh_copies(&self) -> Result<(), ModelError> {
        match &self.copies {
            Some(copies) => copies.refresh(),
            None => Ok(()),
        }
    }

    /// Brings the temperature back into `qformer.temp_range`, if one is set.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn clamp_temperature(&self) -> Result<(), ModelError> {
        let Some([low, high]) = self.config.qformer.temp_range else {
            return Ok(());
        };
        tch::no_grad(|| {
            let _ = self.temp.shallow_clone().f_clamp_(low, high)?;
            Ok(())
        })
    }

    /// What the model was made from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters by name.
    pub fn params(&self) -> &ParamStore {
        &self.params
    }

    /// The parameters by name, for loading.
    pub fn params_mut(&mut self) -> &mut ParamStore {
        &mut self.params
    }

    /// Image features `[B, M, E]`: the tower's output, normalised by `ln_vision`, whose gain and
    /// shift are folded into the projections that read it. The reference's `image_embeds` are
    /// [these with gain and shift](Blip2Qformer::image_embeds).
    ///
    /// `input` is `[B, 3, S, S]`, RGB, normalised by the CLIP mean and deviation; with
    /// [given features](qf_config::model::VisionConfig::Features) the tower's output `[B, M, E]`
    /// itself.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn encode_image(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        let features = self.vision_features(input)?;
        self.ln_vision.normalize(&features)
    }

    /// Image features that were computed before, of a tower that is not trained.
    pub(crate) fn given_training_image(features: Tensor) -> TrainingImages {
        TrainingImages {
            features,
            recomputed: None,
        }
    }

    /// [`Blip2Qformer::encode_image`] for a training step: with drop path, and recomputation where
    /// `vision.checkpoint_activations` asks for it. After the loss's backward pass call
    /// [`Blip2Qformer::finish_backward`].
    ///
    /// # Errors
    /// As [`Blip2Qformer::encode_image`].
    pub fn encode_training_image(&self, input: &Tensor) -> Result<TrainingImages, ModelError> {
        let vision = &self.config.vision;
        let (features, recomputed) = match vision.vit().filter(|vit| vit.trainable) {
            None => (self.vision_features(input)?, None),
            Some(vit) if vit.checkpoint_activations => {
                let recomputed =
                    self.autocast(|| self.tower.forward_recomputed(input, vision, true))?;
                (recomputed.features.shallow_clone(), Some(recomputed))
            }
            Some(_) => {
                let features = self.autocast(|| self.tower.forward(input, vision, true))?;
                (features, None)
            }
        };
        Ok(TrainingImages {
            features: self.ln_vision.normalize(&features)?,
            recomputed,
        })
    }

    /// The part of the backward pass that [`Blip2Qformer::encode_training_image`] put off, if any.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn finish_backward(&self, images: &TrainingImages) -> Result<(), ModelError> {
        match &images.recomputed {
            Some(recomputed) => self.autocast(|| recomputed.backward(&self.tower)),
            None => Ok(()),
        }
    }

    /// The reference's `image_embeds` `[B, M, E]` of features from [`Blip2Qformer::encode_image`].
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn image_embeds(&self, image_features: &Tensor) -> Result<Tensor, ModelError> {
        self.check_image(image_features)?;
        self.ln_vision.scale_and_shift(image_features)
    }

    /// The tower's output `[B, M, E]` before `ln_vision`: what a model with
    /// [given features](qf_config::model::VisionConfig::Features) takes.
    ///
    /// # Errors
    /// As [`Blip2Qformer::encode_image`].
    pub fn vision_features(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        let forward = || self.tower.forward(input, &self.config.vision, false);
        match self.config.vision.vit() {
            Some(vit) if vit.trainable => self.autocast(forward),
            Some(_) => {
                self.refresh_copies()?;
                tch::no_grad(forward)
            }
            None => forward(),
        }
    }

    /// Runs `f`, of a tower that is trained, with matrix products in the model's precision.
    fn autocast<T>(&self, f: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
        ops::with_autocast(self.precision, self.params.device(), f)
    }
}
