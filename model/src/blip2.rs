//! The model of BLIP-2 stage 1: vision tower, Q-Former, projections, and the step of three losses.
//!
//! Follows LAVIS `Blip2Qformer` (`lavis/models/blip2_models/blip2_qformer.py`).
//!
//! Dimensions: B batch of this rank, W ranks, N = W · B, Q queries, T text tokens, M image tokens,
//! E image width, D hidden width, d embedding width, V vocabulary.

mod decode;
mod score;
mod step;
mod tower;

use tch::{Device, Kind, Tensor};

#[cfg(test)]
pub(crate) use decode::tests as decode_tests;
pub use decode::DecodeCache;
pub use tower::FrozenTower;

use crate::collective::Collective;
use crate::config::{ModelConfig, Precision};
use crate::error::{check_floats, check_integers, check_shape, ModelError};
use crate::layers::{LayerNorm, Linear, LinearInit};
use crate::loss::itc::Targets;
use crate::loss::itm::MatchLogits;
use crate::low::LowCopies;
use crate::ops;
use crate::params::{Init, ParamStore};
use crate::qformer::{EncodedImage, ImageKeyValues, Qformer, Text, TextRows};
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

/// What a step is computed from.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// `[B, M, E]`, from [`Blip2Qformer::encode_image`].
    pub image_embeds: &'a Tensor,
    /// `[B, T]` i64: `[CLS]` caption `[SEP]` padding.
    pub token_ids: &'a Tensor,
    /// `[B, T]` i64, 1 for a token, 0 for padding.
    pub attention_mask: &'a Tensor,
    /// `[B]` i64: which image each row shows. Given in fine-tuning, where several captions of one
    /// image can meet in a batch: they then share the contrastive target and are no negatives of
    /// each other.
    pub image_ids: Option<&'a Tensor>,
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

/// Where the matching loss takes its negatives from.
#[derive(Clone, Copy, Debug)]
pub enum NegativeSampling<'a> {
    /// Drawn by similarity with torch's generator.
    Multinomial,
    /// Given, as `[B]` i64 indices into the samples of all ranks in rank order.
    Given {
        /// The image that each text is put with.
        image_idx: &'a Tensor,
        /// The text that each image is put with.
        text_idx: &'a Tensor,
    },
}

/// What a step computed. The losses carry the graph; the rest serves logs and tests.
#[derive(Debug)]
pub struct StepOutput {
    /// Scalar: contrastive + matching + generation loss.
    pub loss: Tensor,
    /// Scalar: mean of the two directions of the contrastive loss.
    pub loss_itc: Tensor,
    /// Scalar: images against texts.
    pub loss_i2t: Tensor,
    /// Scalar: texts against images.
    pub loss_t2i: Tensor,
    /// Scalar: image-text matching.
    pub loss_itm: Tensor,
    /// Scalar: text generation.
    pub loss_lm: Tensor,
    /// `[B, N]`: own images against all texts, over temperature.
    pub sim_i2t: Tensor,
    /// `[B, N]`: own texts against all images, over temperature.
    pub sim_t2i: Tensor,
    /// Which columns of the similarities match.
    pub targets: Targets,
    /// `[B, N]`: with which probability a text is drawn as an image's negative.
    pub weights_i2t: Tensor,
    /// `[B, N]`: with which probability an image is drawn as a text's negative.
    pub weights_t2i: Tensor,
    /// `[B]` i64: the image that each text was put with.
    pub negative_image_idx: Tensor,
    /// `[B]` i64: the text that each image was put with.
    pub negative_text_idx: Tensor,
    /// `[3 B, 2]`: matched pairs, texts with negative images, images with negative texts.
    pub itm_logits: Tensor,
    /// `[3 B]` i64: 1 for a match.
    pub itm_labels: Tensor,
    /// `[B, Q, d]`, normalised.
    pub image_feats: Tensor,
    /// `[B, d]`, normalised.
    pub text_feat: Tensor,
    /// With [`ComputeOptions::ALL_ROWS`] only.
    pub hidden: Option<HiddenRows>,
}

/// The rows of the last layer, of all passes.
#[derive(Debug)]
pub struct HiddenRows {
    /// `[B, Q, D]`: queries that saw the image.
    pub image: Tensor,
    /// `[B, T, D]`: text alone.
    pub text: Tensor,
    /// `[3 B, Q + T, D]`: queries and text together.
    pub itm: Tensor,
    /// `[B, T, D]`: text that continues the queries; [`Blip2Qformer::lm_logits`] scores it.
    pub itg: Tensor,
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
        match precision.low_kind() {
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
    /// [given features](crate::config::VisionConfig::Features) the tower's output `[B, M, E]`
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
    /// [given features](crate::config::VisionConfig::Features) takes.
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

    /// One step: four passes through the Q-Former and the three losses.
    ///
    /// `train` switches dropout on, which draws from torch's generator, as
    /// [`NegativeSampling::Multinomial`] does; seed it for a reproducible step. Nothing waits for
    /// the device. A batch whose texts are all empty has no generation loss: it comes out as NaN.
    ///
    /// # Errors
    /// [`ModelError::Shape`], [`ModelError::Kind`] or [`ModelError::Input`] for tensors that do not
    /// fit, [`ModelError::Torch`] for ids beyond the vocabulary or negatives beyond the batch
    /// (on the CPU; a GPU cannot tell in time).
    pub fn forward_losses(
        &self,
        input: &StepInput<'_>,
        negatives: NegativeSampling<'_>,
        collective: &dyn Collective,
        train: bool,
    ) -> Result<StepOutput, ModelError> {
        self.refresh_copies()?;
        self.losses(input, negatives, collective, train)
    }

    /// Runs `f`, of a tower that is trained, with matrix products in the model's precision.
    fn autocast<T>(&self, f: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
        ops::with_autocast(self.precision, self.params.device(), f)
    }

    /// Number of tokens of each text, where padding is to be left out and the host can know: masks
    /// must be ones before zeros and cover exactly what is no padding.
    fn lengths(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<Option<Vec<i64>>, ModelError> {
        let size = token_ids.size();
        if !self.applied_compute().skip_padding {
            return Ok(None);
        }
        let flat = |t: &Tensor| Vec::<i64>::try_from(t.f_reshape([-1])?);
        let (ids, mask) = (flat(token_ids)?, flat(attention_mask)?);
        let width = usize::try_from(size[1]).unwrap_or(0).max(1);
        let pad = self.config.qformer.pad_token_id;
        let lengths = ids
            .chunks(width)
            .zip(mask.chunks(width))
            .map(|(ids, mask)| {
                let tokens = mask.iter().take_while(|&&mask| mask == 1).count();
                let padded = |(&id, &mask): (&i64, &i64)| id == pad && mask == 0;
                let whole = tokens > 0
                    && ids[..tokens].iter().all(|&id| id != pad)
                    && ids[tokens..].iter().zip(&mask[tokens..]).all(padded);
                whole.then_some(tokens as i64)
            });
        Ok(lengths.collect())
    }

    /// The rows of texts `[B, T]`; `lengths` count `unread` columns that the texts are short of.
    fn text_rows(
        &self,
        token_ids: &Tensor,
        lengths: Option<&[i64]>,
        unread: i64,
    ) -> Result<TextRows, ModelError> {
        let size = token_ids.size();
        match lengths {
            Some(lengths) => {
                let lengths: Vec<i64> = lengths.iter().map(|length| length - unread).collect();
                TextRows::new(&lengths, size[1], token_ids.device())
            }
            None => Ok(TextRows::all(size[0], size[1])),
        }
    }

    /// Normalised query projections of images: `[B, M, E]` from [`Blip2Qformer::encode_image`] →
    /// `[B, Q, d]`. No gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn image_features(&self, image_embeds: &Tensor) -> Result<Tensor, ModelError> {
        let batch = self.check_image(image_embeds)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let queries = self.encode_queries(image_embeds, batch)?;
            self.project_queries(&queries.hidden)
        })
    }

    /// Queries alone that look at `batch` images, without dropout.
    fn encode_queries(
        &self,
        image_embeds: &Tensor,
        batch: i64,
    ) -> Result<EncodedImage, ModelError> {
        let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
        self.qformer
            .encode_image(&self.query_tokens, batch, &image, false)
    }

    /// Normalised projections of texts: ids and mask `[B, T]` i64 → `[B, d]`. No gradient.
    ///
    /// An image and a text are as similar as the largest product of the text's projection with one
    /// of the image's.
    ///
    /// # Errors
    /// As [`Blip2Qformer::forward_losses`].
    pub fn text_features(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<Tensor, ModelError> {
        self.check_text(token_ids, attention_mask)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let text = self.qformer.encode_text(token_ids, attention_mask, false)?;
            self.project_text(&text.f_select(1, 0)?)
        })
    }

    /// Matching scores of B pairs: `[B, M, E]` from [`Blip2Qformer::encode_image`], ids and mask
    /// `[B, T]` i64. No gradient.
    ///
    /// # Errors
    /// As [`Blip2Qformer::forward_losses`].
    pub fn itm_logits(
        &self,
        image_embeds: &Tensor,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<MatchLogits, ModelError> {
        let batch = self.check_image(image_embeds)?;
        let texts = self.check_text(token_ids, attention_mask)?;
        check_same_batch(batch, texts)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
            self.score_pairs(&image, token_ids, attention_mask)
        })
    }

    /// Scores of the next token at every position: rows `[B, T, D]` such as
    /// [`HiddenRows::itg`] → `[B, T, V]`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn lm_logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let width = self.config.qformer.hidden;
        let names = format!("[B, T, {width}]");
        check_shape("decoder rows", hidden, &[-1, -1, width], &names)?;
        check_floats("decoder rows", hidden)?;
        self.refresh_copies()?;
        self.qformer.predict_tokens(hidden)
    }

    /// `[B, Q, D]` → `[B, Q, d]`, normalised.
    fn project_queries(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        normalize(&self.vision_proj.forward(hidden)?)
    }

    /// First rows of texts `[B, D]` → `[B, d]`, normalised.
    fn project_text(&self, first_rows: &Tensor) -> Result<Tensor, ModelError> {
        normalize(&self.text_proj.forward(first_rows)?)
    }

    /// Matching scores of pairs, one projected image each.
    fn score_pairs(
        &self,
        image: &ImageKeyValues,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<MatchLogits, ModelError> {
        let lengths = self.lengths(token_ids, attention_mask)?;
        let rows = self.text_rows(token_ids, lengths.as_deref(), 0)?;
        let text = Text {
            token_ids,
            attention_mask,
            rows: &rows,
        };
        let queries = self
            .qformer
            .encode_pairs(&self.query_tokens, text, image, false)?;
        Ok(MatchLogits::new(self.score_match(&queries)?))
    }

    /// Query rows `[R, Q, D]` → `[R, 2]`: their mean score.
    fn score_match(&self, queries: &Tensor) -> Result<Tensor, ModelError> {
        let scores = self.itm_head.forward(queries)?;
        Ok(scores.f_mean_dim([1i64].as_slice(), false, None)?)
    }

    /// Checks a step's tensors against the model and each other; returns B.
    fn check_step(
        &self,
        input: &StepInput<'_>,
        negatives: &NegativeSampling<'_>,
        collective: &dyn Collective,
    ) -> Result<i64, ModelError> {
        let batch = self.check_image(input.image_embeds)?;
        let texts = self.check_text(input.token_ids, input.attention_mask)?;
        check_same_batch(batch, texts)?;
        let expected = [batch];
        let names = format!("[{batch}]");
        let mut indices = Vec::with_capacity(3);
        if let Some(ids) = input.image_ids {
            indices.push(("image ids", ids));
        }
        if let NegativeSampling::Given {
            image_idx,
            text_idx,
        } = negatives
        {
            indices.push(("negative image indices", image_idx));
            indices.push(("negative text indices", text_idx));
        }
        for (what, index) in indices {
            check_shape(what, index, &expected, &names)?;
            check_integers(what, index)?;
        }
        if input.token_ids.size()[1] < 2 {
            return Err(ModelError::Input {
                what: "token ids",
                message: "one token a text leaves none to predict; take 2 or more".to_owned(),
            });
        }
        if batch.saturating_mul(collective.world_size()) < 2 {
            return Err(ModelError::Input {
                what: "batch",
                message: "one pair has no negatives; take a batch of 2 or more".to_owned(),
            });
        }
        Ok(batch)
    }

    /// Checks image features; returns B.
    fn check_image(&self, image_embeds: &Tensor) -> Result<i64, ModelError> {
        let width = self.config.qformer.encoder_width;
        let names = format!("[B, M, {width}]");
        check_shape("image features", image_embeds, &[-1, -1, width], &names)?;
        check_floats("image features", image_embeds)?;
        let size = image_embeds.size();
        if size[0] < 1 || size[1] < 1 {
            return Err(ModelError::Shape {
                what: "image features",
                expected: format!("{names} with B, M > 0"),
                got: size,
            });
        }
        Ok(size[0])
    }

    /// Checks ids and mask; returns B.
    fn check_text(&self, token_ids: &Tensor, attention_mask: &Tensor) -> Result<i64, ModelError> {
        check_integers("token ids", token_ids)?;
        check_integers("attention mask", attention_mask)?;
        check_shape("token ids", token_ids, &[-1, -1], "[B, T]")?;
        let size = token_ids.size();
        let longest = self.config.qformer.max_positions;
        if size[0] < 1 || size[1] < 1 || size[1] > longest {
            return Err(ModelError::Shape {
                what: "token ids",
                expected: format!("[B, T] with B > 0 and T from 1 to max_positions = {longest}"),
                got: size,
            });
        }
        let names = format!("{size:?} like the token ids");
        check_shape("attention mask", attention_mask, &size, &names)?;
        Ok(size[0])
    }
}

fn check_same_batch(images: i64, texts: i64) -> Result<(), ModelError> {
    if images == texts {
        return Ok(());
    }
    Err(ModelError::Input {
        what: "batch",
        message: format!("{images} images but {texts} texts"),
    })
}

/// Unit length along the last dimension; a length below 1e-12 counts as 1e-12.
fn normalize(input: &Tensor) -> Result<Tensor, ModelError> {
    const SHORTEST: f64 = 1e-12;
    let norm = input
        .f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?
        .f_clamp_min(SHORTEST)?;
    Ok(input.f_div(&norm)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::SingleProcess;
    use crate::config::{FeaturesConfig, QformerConfig, VisionConfig, VitConfig};

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn config(queries: i64, layers: i64, freq: i64) -> ModelConfig {
        ModelConfig {
            vision: VisionConfig::Features(FeaturesConfig { width: 12 }),
            qformer: QformerConfig {
                hidden: 16,
                layers,
                heads: 2,
                intermediate: 20,
                cross_attention_freq: freq,
                num_queries: queries,
                encoder_width: 12,
                vocab_size: 40,
                max_positions: 10,
                embed_dim: 8,
                dec_token_id: 39,
                dropout: 0.1,
                ..ModelConfig::tiny().qformer
            },
        }
    }

    /// Image features, ids of `tokens` tokens and padding, and mask.
    fn batch(batch: i64, length: i64, tokens: i64) -> (Tensor, Tensor, Tensor) {
        let images = Tensor::randn([batch, 5, 12], OPTIONS);
        let mask = Tensor::zeros([batch, length], (Kind::Int64, Device::Cpu));
        let _ = mask.narrow(1, 0, tokens).fill_(1);
        let ids = Tensor::randint_low(1, 38, [batch, length], (Kind::Int64, Device::Cpu)) * &mask;
        (images, ids, mask)
    }

    fn step<'a>(images: &'a Tensor, ids: &'a Tensor, mask: &'a Tensor) -> StepInput<'a> {
        StepInput {
            image_embeds: images,
            token_ids: ids,
            attention_mask: mask,
            image_ids: None,
        }
    }

    fn run(model: &Blip2Qformer, input: &StepInput<'_>) -> Result<StepOutput, ModelError> {
        model.forward_losses(input, NegativeSampling::Multinomial, &SingleProcess, true)
    }

    #[test]
    fn any_sizes_give_finite_losses_and_a_gradient_everywhere() {
        for (b, queries, layers, freq, length) in [
            (2, 1, 1, 1, 2),
            (2, 3, 2, 2, 10),
            (5, 4, 3, 1, 7),
            (3, 2, 4, 3, 4),
        ] {
            let model = Blip2Qformer::new(&config(queries, layers, freq), Device::Cpu, 1).unwrap();
            let (images, ids, mask) = batch(b, length, length.min(6));
            let images = model.encode_image(&images).unwrap();
            let output = run(&model, &step(&images, &ids, &mask)).unwrap();
            assert!(output.loss.double_value(&[]).is_finite());
            assert_eq!(output.sim_i2t.size(), [b, b]);
            assert_eq!(output.itm_logits.size(), [3 * b, 2]);
            let drawn = Vec::<i64>::try_from(&output.negative_image_idx).unwrap();
            assert!(drawn
                .iter()
                .enumerate()
                .all(|(row, &index)| index != row as i64));
            output.loss.backward();
            for param in model.params().named_parameters() {
                assert!(param.tensor.grad().defined(), "{}", param.name);
            }
        }
    }

    #[test]
    fn frozen_towers_get_no_gradient_and_trainable_ones_do() {
        for trainable in [false, true] {
            let mut config = config(2, 1, 1);
            config.vision = VisionConfig::Eva(VitConfig {
                image_size: 8,
                patch_size: 4,
                width: 12,
                depth: 1,
                heads: 2,
                mlp: 16,
                trainable,
                drop_path: 0.0,
                checkpoint_activations: false,
            });
            let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
            let pixels = Tensor::randn([2, 3, 8, 8], OPTIONS);
            let (_, ids, mask) = batch(2, 5, 4);
            let images = model.encode_image(&pixels).unwrap();
            assert_eq!(images.size(), [2, 5, 12]);
            run(&model, &step(&images, &ids, &mask))
                .unwrap()
                .loss
                .backward();
            for param in model.params().named_parameters() {
                let expected = trainable || !param.name.starts_with("visual_encoder.");
                assert_eq!(param.trainable, expected, "{}", param.name);
                assert_eq!(param.tensor.grad().defined(), expected, "{}", param.name);
            }
        }
    }

    #[test]
    fn rows_of_one_image_are_no_negatives_of_each_other() {
        let model = Blip2Qformer::new(&config(2, 1, 1), Device::Cpu, 1).unwrap();
        let (images, ids, mask) = batch(4, 5, 4);
        let image_ids = Tensor::from_slice(&[7i64, 8, 7, 9]);
        let input = StepInput {
            image_ids: Some(&image_ids),
            ..step(&images, &ids, &mask)
        };
        let output = run(&model, &input).unwrap();
        for weights in [&output.weights_i2t, &output.weights_t2i] {
            for (row, column) in [(0, 0), (0, 2), (2, 0), (1, 1), (3, 3)] {
                assert_eq!(weights.double_value(&[row, column]), 0.0);
            }
            assert!(weights.double_value(&[1, 0]) > 0.0);
        }
        assert!(output.loss.double_value(&[]).is_finite());
    }

    #[test]
    fn inference_equals_the_passes_of_a_step() {
        let model = Blip2Qformer::new(&config(3, 2, 2), Device::Cpu, 1).unwrap();
        let (images, ids, mask) = batch(3, 6, 4);
        let input = step(&images, &ids, &mask);
        let output = model
            .forward_losses(&input, NegativeSampling::Multinomial, &SingleProcess, false)
            .unwrap();
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-6, false), "{a} {b}");
        let image_feats = model.image_features(&images).unwrap();
        close(&image_feats, &output.image_feats);
        close(
            &model.text_features(&ids, &mask).unwrap(),
            &output.text_feat,
        );
        let matched = output.itm_logits.narrow(0, 0, 3);
        close(
            model.itm_logits(&images, &ids, &mask).unwrap().both(),
            &matched,
        );
        assert!(!image_feats.requires_grad());
        let norms = image_feats
            .square()
            .sum_dim_intlist([2i64].as_slice(), false, None);
        close(&norms, &norms.ones_like());
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let model = Blip2Qformer::new(&config(2, 1, 1), Device::Cpu, 1).unwrap();
        let (images, ids, mask) = batch(3, 5, 4);
        let check = |images: &Tensor, ids: &Tensor, mask: &Tensor, message: &str| {
            let error = run(&model, &step(images, ids, mask))
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        };
        let floats = |shape: &[i64]| Tensor::zeros(shape, OPTIONS);
        let ints = |shape: &[i64]| Tensor::zeros(shape, (Kind::Int64, Device::Cpu));
        check(
            &floats(&[3, 5, 13]),
            &ids,
            &mask,
            "image features: expected shape [B, M, 12]",
        );
        check(&floats(&[3, 0, 12]), &ids, &mask, "B, M > 0");
        check(&ints(&[3, 5, 12]), &ids, &mask, "floating-point elements");
        check(
            &images,
            &ids.to_kind(Kind::Int),
            &mask,
            "64-bit integer elements",
        );
        check(
            &images,
            &ints(&[2, 5]),
            &ints(&[2, 5]),
            "3 images but 2 texts",
        );
        check(&images, &ids, &ints(&[3, 4]), "attention mask");
        check(
            &images,
            &ints(&[3, 11]),
            &ints(&[3, 11]),
            "max_positions = 10",
        );
        check(&images, &ints(&[3, 0]), &ints(&[3, 0]), "T from 1");
        check(&images, &ints(&[3, 1]), &ints(&[3, 1]), "2 or more");
        check(&images, &(&ids + 40), &mask, "libtorch: ");
        let one = |t: &Tensor| t.narrow(0, 0, 1);
        check(&one(&images), &one(&ids), &one(&mask), "batch of 2 or more");

        let (near, far) = (ints(&[3]), &ints(&[3]) + 3);
        for (image_idx, text_idx) in [(&far, &near), (&near, &far), (&ids, &near)] {
            let negatives = NegativeSampling::Given {
                image_idx,
                text_idx,
            };
            let input = step(&images, &ids, &mask);
            assert!(model
                .forward_losses(&input, negatives, &SingleProcess, true)
                .is_err());
        }
    }

    /// Numbers in [-1, 1] that no other test's draws change: torch's generator is one for all.
    fn waves(shape: &[i64]) -> Tensor {
        let count: i64 = shape.iter().product();
        (Tensor::arange(count, OPTIONS) * 1.7).sin().view(shape)
    }

    /// Losses and gradients by parameter under `compute`, texts of 3, 6, 2 and 5 tokens; the second
    /// tower is trained.
    fn losses_and_gradients(
        compute: ComputeOptions,
        trainable: bool,
        products: Option<Kind>,
    ) -> (Vec<f64>, Vec<(String, Tensor)>) {
        let mut config = config(3, 3, 2);
        config.qformer.dropout = 0.0;
        config.vision = VisionConfig::Small(VitConfig {
            image_size: 8,
            patch_size: 4,
            width: 12,
            depth: 1,
            heads: 2,
            mlp: 16,
            trainable,
            drop_path: 0.0,
            checkpoint_activations: false,
        });
        let mut model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
        model.set_compute(compute);
        if let Some(kind) = products {
            model.multiply_in(kind).unwrap();
        }
        // Gain and shift of ln_vision away from 1 and 0, so that folding them in shows.
        tch::no_grad(|| {
            for name in ["ln_vision.weight", "ln_vision.bias"] {
                let mut param = model.params().get(name).unwrap().tensor.shallow_clone();
                let offset = Tensor::linspace(-0.5, 0.8, 12, OPTIONS);
                let _ = param.f_add_(&offset).unwrap();
            }
        });
        let pixels = waves(&[4, 3, 8, 8]);
        let ids = (Tensor::arange(28, (Kind::Int64, Device::Cpu)) * 11)
            .remainder(37)
            .view([4, 7])
            + 1;
        let columns = Tensor::arange(7, (Kind::Int64, Device::Cpu));
        let tokens = Tensor::from_slice(&[3i64, 6, 2, 5]).view([4, 1]);
        let mask = columns.lt_tensor(&tokens).to_kind(Kind::Int64);
        let ids = ids * &mask;
        let (image_idx, text_idx) = (
            Tensor::from_slice(&[1i64, 0, 3, 1]),
            Tensor::from_slice(&[2i64, 2, 1, 0]),
        );
        let images = model.encode_image(&pixels).unwrap();
        let input = step(&images, &ids, &mask);
        let negatives = NegativeSampling::Given {
            image_idx: &image_idx,
            text_idx: &text_idx,
        };
        let output = model
            .forward_losses(&input, negatives, &SingleProcess, true)
            .unwrap();
        output.loss.backward();
        let losses = [
            &output.loss,
            &output.loss_itc,
            &output.loss_itm,
            &output.loss_lm,
        ];
        let params = model.params().trainable();
        (
            losses.map(|loss| loss.double_value(&[])).to_vec(),
            params.map(|p| (p.name.clone(), p.tensor.grad())).collect(),
        )
    }

    /// Largest errors of losses and of gradients, of each parameter against its largest entry.
    fn same(
        (losses, gradients): &(Vec<f64>, Vec<(String, Tensor)>),
        (expected, expected_gradients): &(Vec<f64>, Vec<(String, Tensor)>),
        [tolerance, gradient_tolerance]: [f64; 2],
        what: &str,
    ) {
        for (got, expected) in losses.iter().zip(expected) {
            let error = (got - expected).abs();
            assert!(
                error <= tolerance * expected.abs(),
                "{what}: {got} {expected}"
            );
        }
        for ((name, got), (_, expected)) in gradients.iter().zip(expected_gradients) {
            let largest = expected.abs().max().double_value(&[]);
            let error = (got - expected).abs().max().double_value(&[]);
            assert!(
                error <= gradient_tolerance * largest + 1e-2 * gradient_tolerance,
                "{name}: {error} of {largest}, {what}"
            );
        }
    }

    #[test]
    fn leaving_out_rows_changes_neither_losses_nor_gradients() {
        for trainable in [false, true] {
            let all = losses_and_gradients(ComputeOptions::ALL_ROWS, trainable, None);
            for (skip_padding, skip_unread) in [(true, false), (false, true), (true, true)] {
                let compute = ComputeOptions {
                    skip_padding,
                    skip_unread,
                };
                let what = format!("{compute:?}");
                let got = losses_and_gradients(compute, trainable, None);
                same(&got, &all, [1e-6, 1e-5], &what);
                // What a GPU computes: joint products, texts with their padding. In 32 bits to the
                // last digits, though sums have another order; in 16 near.
                let got = losses_and_gradients(compute, trainable, Some(Kind::Float));
                same(&got, &all, [1e-6, 3e-5], &format!("{what}, joint products"));
                let got = losses_and_gradients(compute, trainable, Some(Kind::BFloat16));
                same(&got, &all, [1e-2, 0.1], &format!("{what}, bf16"));
            }
        }
    }

    #[test]
    fn recomputing_the_tower_changes_no_gradient() {
        for vision in [VisionConfig::Small, VisionConfig::Eva, VisionConfig::Clip] {
            let gradients = |checkpoint_activations: bool| {
                let mut config = config(2, 1, 1);
                config.qformer.dropout = 0.0;
                config.vision = vision(VitConfig {
                    image_size: 8,
                    patch_size: 4,
                    width: 12,
                    depth: 3,
                    heads: 2,
                    mlp: 16,
                    trainable: true,
                    drop_path: 0.0,
                    checkpoint_activations,
                });
                let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
                // With two pairs the negatives are certain.
                let pixels = waves(&[2, 3, 8, 8]);
                let ids = Tensor::from_slice2(&[[3i64, 4, 5, 6, 0], [3, 7, 9, 6, 0]]);
                let mask = ids.ne(0).to_kind(Kind::Int64);
                let images = model.encode_training_image(&pixels).unwrap();
                let output = run(&model, &step(&images.features, &ids, &mask)).unwrap();
                output.loss.backward();
                model.finish_backward(&images).unwrap();
                let params = model.params().trainable();
                let gradients: Vec<_> = params.map(|p| (p.name.clone(), p.tensor.grad())).collect();
                (output.loss.double_value(&[]), gradients)
            };
            let (plain, recomputed) = (gradients(false), gradients(true));
            assert_eq!(plain.0, recomputed.0);
            for ((name, a), (_, b)) in plain.1.iter().zip(&recomputed.1) {
                assert!(a.allclose(b, 1e-4, 1e-7, false), "{name}");
            }
        }
    }

    #[test]
    fn switches_away_from_the_reference() {
        let losses = |change: &dyn Fn(&mut QformerConfig)| {
            let mut config = config(2, 1, 1);
            config.qformer.dropout = 0.0;
            change(&mut config.qformer);
            let model = Blip2Qformer::new(&config, Device::Cpu, 1).unwrap();
            let images = waves(&[4, 5, 12]);
            // Texts 0 and 2 are the same.
            let ids = [
                [3i64, 4, 5, 6, 0],
                [3, 7, 9, 6, 0],
                [3, 4, 5, 6, 0],
                [3, 8, 8, 6, 0],
            ];
            let ids = Tensor::from_slice2(&ids);
            let mask = ids.ne(0).to_kind(Kind::Int64);
            model.clamp_temperature().unwrap();
            let images = model.encode_image(&images).unwrap();
            let output = run(&model, &step(&images, &ids, &mask)).unwrap();
            output.loss_itc.backward();
            let query_grad = model
                .params()
                .get("vision_proj.weight")
                .unwrap()
                .tensor
                .grad();
            (output, query_grad, model.temperature().unwrap())
        };
        let (plain, plain_grad, temp) = losses(&|_| {});
        assert!((temp - 0.07).abs() < 1e-6);
        assert!(plain.weights_i2t.double_value(&[0, 2]) > 0.0);
        let (excluded, _, _) = losses(&|c| c.exclude_equal_texts = true);
        for weights in [&excluded.weights_i2t, &excluded.weights_t2i] {
            assert_eq!(weights.double_value(&[0, 2]), 0.0);
            assert_eq!(weights.double_value(&[2, 0]), 0.0);
            assert!(weights.double_value(&[0, 1]) > 0.0);
        }
        assert_eq!(excluded.loss_itc, plain.loss_itc);
        let (both_sides, grad, _) = losses(&|c| c.itc_gather_gradient = true);
        assert_eq!(both_sides.loss_itc, plain.loss_itc);
        assert!(!grad.allclose(&plain_grad, 1e-3, 1e-9, false));
        let (_, _, temp) = losses(&|c| c.temp_range = Some([0.1, 0.5]));
        assert!((temp - 0.1).abs() < 1e-6);
    }

    #[test]
    fn masks_that_are_no_plain_padding_are_computed_in_full() {
        let model = Blip2Qformer::new(&config(2, 2, 1), Device::Cpu, 1).unwrap();
        let ids = Tensor::from_slice2(&[[5i64, 6, 7, 0], [5, 6, 0, 0]]);
        let lengths = |mask: &[[i64; 4]; 2]| {
            let mask = Tensor::from_slice2(mask);
            model.lengths(&ids, &mask).unwrap()
        };
        assert_eq!(lengths(&[[1, 1, 1, 0], [1, 1, 0, 0]]), Some(vec![3, 2]));
        for odd in [
            [[1, 0, 1, 0], [1, 1, 0, 0]],
            [[1, 1, 0, 0], [1, 1, 0, 0]],
            [[1, 1, 1, 1], [1, 1, 0, 0]],
            [[0, 0, 0, 0], [1, 1, 0, 0]],
            [[1, 1, 2, 0], [1, 1, 0, 0]],
        ] {
            assert_eq!(lengths(&odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_published_size_has_the_published_parameters() {
        let mut config = ModelConfig::vit_g();
        // The tower is frozen and not part of the count.
        config.vision = VisionConfig::Features(FeaturesConfig { width: 1408 });
        let model = Blip2Qformer::new(&config, Device::Cpu, 0).unwrap();
        let params = model.params().named_parameters();
        assert_eq!(params.len(), 343);
        let numbers: usize = params.iter().map(|param| param.tensor.numel()).sum();
        assert_eq!(numbers, 186_705_470);
    }
}
