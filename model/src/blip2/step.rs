//! The step of three losses, stage by stage.

use tch::{Kind, Tensor};

use super::check::check_same_batch;
use super::{Blip2Qformer, ComputeOptions};
use crate::collective::Collective;
use crate::error::{check_integers, check_shape, ModelError};
use crate::loss::itc::{self, Similarities, Targets};
use crate::loss::{itg, itm};
use crate::qformer::{ImageKeyValues, ImageProjection, Text, Unimodal};

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

/// Images alone, texts alone, and texts that continue the images' queries.
struct Alone<'a> {
    /// What images become keys and values by.
    projection: ImageProjection<'a>,
    /// `[B, M, E]`, as the products read them.
    features: Tensor,
    image: ImageKeyValues,
    rows: Unimodal,
    /// `[B, D]`: first rows of the texts.
    text_cls: Tensor,
    /// What each of the decoder's rows predicts.
    labels: Tensor,
}

/// The contrastive loss and what it came from.
struct Contrastive {
    image_feats: Tensor,
    text_feat: Tensor,
    sims: Similarities,
    targets: Targets,
    loss_i2t: Tensor,
    loss_t2i: Tensor,
}

/// The negatives of a step.
struct Negatives {
    weights_i2t: Tensor,
    weights_t2i: Tensor,
    image_idx: Tensor,
    text_idx: Tensor,
}

/// What the matching pass comes to, in the reference's order of pairs.
struct Matching {
    /// `[3 B, 2]`.
    logits: Tensor,
    /// `[3 B, Q + T, D]` with all rows, else undefined.
    hidden: Tensor,
}

impl Blip2Qformer {
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

    fn losses(
        &self,
        input: &StepInput<'_>,
        negatives: NegativeSampling<'_>,
        collective: &dyn Collective,
        train: bool,
    ) -> Result<StepOutput, ModelError> {
        let batch = self.check_step(input, &negatives, collective)?;
        let alone = self.encode_alone(input, train)?;
        let contrastive = self.contrast(input, &alone, collective)?;
        let negatives = self.negatives(input, &contrastive, negatives, collective)?;
        let negative_image = self.negative_image(input, &alone, &negatives, collective)?;
        let images = [&alone.image, &negative_image];
        let matching = self.matching(input, images, &negatives.text_idx, collective, train)?;
        let itm_labels = itm::labels(batch, matching.logits.device())?;
        let loss_itm = itm::loss(&matching.logits, &itm_labels)?;
        let loss_lm = itg::loss(
            &alone.rows.decoder,
            &alone.labels,
            self.config.qformer.label_smoothing,
            self.gathers_rows(),
            |rows| self.qformer.predict_tokens(rows),
        )?;
        let hidden = match self.compute {
            ComputeOptions::ALL_ROWS => {
                let size = input.token_ids.size();
                let rows = |rows: &Tensor| rows.f_view([size[0], size[1], -1]);
                Some(HiddenRows {
                    text: rows(&alone.rows.text)?,
                    itg: rows(&alone.rows.decoder)?,
                    itm: matching.hidden,
                    image: alone.rows.queries,
                })
            }
            _ => None,
        };
        let Contrastive {
            image_feats,
            text_feat,
            sims,
            targets,
            loss_i2t,
            loss_t2i,
        } = contrastive;
        let loss_itc = loss_i2t.f_add(&loss_t2i)?.f_div_scalar(2.0)?;
        Ok(StepOutput {
            loss: loss_itc.f_add(&loss_itm)?.f_add(&loss_lm)?,
            loss_itc,
            loss_i2t,
            loss_t2i,
            loss_itm,
            loss_lm,
            sim_i2t: sims.image_to_text,
            sim_t2i: sims.text_to_image,
            targets,
            weights_i2t: negatives.weights_i2t,
            weights_t2i: negatives.weights_t2i,
            negative_image_idx: negatives.image_idx,
            negative_text_idx: negatives.text_idx,
            itm_logits: matching.logits,
            itm_labels,
            image_feats,
            text_feat,
            hidden,
        })
    }

    /// The pass that contrastive and generation loss read.
    fn encode_alone(&self, input: &StepInput<'_>, train: bool) -> Result<Alone<'_>, ModelError> {
        let (token_ids, attention_mask) = (input.token_ids, input.attention_mask);
        let cut = self.compute.skip_unread;
        let lengths = self.lengths(token_ids, attention_mask)?;
        let text_rows = self.text_rows(token_ids, lengths.as_deref(), 0)?;
        let decoder_ids = itg::decoder_ids(token_ids, self.config.qformer.dec_token_id)?;
        let labels = itg::labels(&decoder_ids, self.config.qformer.pad_token_id)?;
        // Nothing is predicted from a text's last token.
        let unread = i64::from(cut && token_ids.size()[1] > 1);
        let shorten = |texts: &Tensor| texts.f_narrow(1, 0, texts.size()[1] - unread);
        let decoder_ids = shorten(&decoder_ids)?;
        let decoder_rows = self.text_rows(&decoder_ids, lengths.as_deref(), unread)?;
        let projection = self.qformer.image_projection(&self.ln_vision)?;
        let features = self.in_precision(input.image_embeds)?;
        let image = projection.project(&features)?;
        let rows = self.qformer.encode_unimodal(
            &self.query_tokens,
            &image,
            Text {
                token_ids,
                attention_mask,
                rows: &text_rows,
            },
            Text {
                token_ids: &decoder_ids,
                attention_mask: &shorten(attention_mask)?,
                rows: &decoder_rows,
            },
            cut,
            train,
        )?;
        Ok(Alone {
            projection,
            features,
            image,
            text_cls: match cut {
                true => rows.text.shallow_clone(),
                false => text_rows.first_of_each(&rows.text)?,
            },
            labels: decoder_rows.select(&shorten(&labels)?)?,
            rows,
        })
    }

    /// Images and texts of this rank against those of all.
    fn contrast(
        &self,
        input: &StepInput<'_>,
        alone: &Alone<'_>,
        collective: &dyn Collective,
    ) -> Result<Contrastive, ModelError> {
        let smoothing = self.config.qformer.label_smoothing;
        let image_feats = self.project_queries(&alone.rows.queries)?; // [B, Q, d]
        let text_feat = self.project_text(&alone.text_cls)?; // [B, d]
        let gather = |own: &Tensor| match self.config.qformer.itc_gather_gradient {
            true => collective.all_gather_with_grad(own),
            false => collective.all_gather(own),
        };
        let sims = itc::similarities(
            &image_feats,
            &text_feat,
            &gather(&image_feats)?,
            &gather(&text_feat)?,
            &self.temp,
        )?;
        let targets = self.targets(input, collective)?;
        Ok(Contrastive {
            loss_i2t: itc::loss(&sims.image_to_text, &targets, smoothing)?,
            loss_t2i: itc::loss(&sims.text_to_image, &targets, smoothing)?,
            image_feats,
            text_feat,
            sims,
            targets,
        })
    }

    fn targets(
        &self,
        input: &StepInput<'_>,
        collective: &dyn Collective,
    ) -> Result<Targets, ModelError> {
        match input.image_ids {
            Some(ids) => {
                let all = collective.all_gather(ids)?; // [N]
                Ok(Targets::SameImage(ids.f_unsqueeze(1)?.f_eq_tensor(&all)?))
            }
            None => {
                let batch = input.image_embeds.size()[0];
                let first = collective.rank() * batch;
                let options = (Kind::Int64, input.image_embeds.device());
                let own = Tensor::f_arange_start(first, first + batch, options)?;
                Ok(Targets::Index(own))
            }
        }
    }

    /// Which images and texts are put together that do not belong together.
    fn negatives(
        &self,
        input: &StepInput<'_>,
        contrastive: &Contrastive,
        sampling: NegativeSampling<'_>,
        collective: &dyn Collective,
    ) -> Result<Negatives, ModelError> {
        let sims = &contrastive.sims;
        let positives = contrastive.targets.mask(sims.image_to_text.size()[1])?; // [B, N]
        let positives = match self.config.qformer.exclude_equal_texts {
            true => {
                let own = input.token_ids.f_unsqueeze(1)?; // [B, 1, T]
                let equal = own
                    .f_eq_tensor(&collective.all_gather(input.token_ids)?)?
                    .f_all_dim(2, false)?;
                positives.f_logical_or(&equal)? // [B, N]
            }
            false => positives,
        };
        let weights_t2i = itm::sampling_weights(&sims.text_to_image, &positives)?;
        let weights_i2t = itm::sampling_weights(&sims.image_to_text, &positives)?;
        let (image_idx, text_idx) = match sampling {
            NegativeSampling::Multinomial => {
                (itm::sample(&weights_t2i)?, itm::sample(&weights_i2t)?)
            }
            NegativeSampling::Given {
                image_idx,
                text_idx,
            } => (image_idx.shallow_clone(), text_idx.shallow_clone()),
        };
        Ok(Negatives {
            weights_i2t,
            weights_t2i,
            image_idx,
            text_idx,
        })
    }

    /// Keys and values of the negative images, which may be of any rank.
    fn negative_image(
        &self,
        input: &StepInput<'_>,
        alone: &Alone<'_>,
        negatives: &Negatives,
        collective: &dyn Collective,
    ) -> Result<ImageKeyValues, ModelError> {
        let is_alone = collective.world_size() == 1;
        if is_alone && !alone.projection.is_joint() {
            // Every image is an own one, whose keys and values are there.
            return alone.image.select(&negatives.image_idx);
        }
        let all = match is_alone {
            true => alone.features.shallow_clone(),
            // In 32 bits: not every backend takes fewer.
            false => collective.all_gather_with_grad(input.image_embeds)?, // [N, M, E]
        };
        let chosen = all.f_index_select(0, &negatives.image_idx)?;
        alone.projection.project(&chosen)
    }

    /// The 3 B pairs of the matching loss. They are computed as (matched, negative text) image by
    /// image and then with negative images, so that equal images stand together, and come out in the
    /// reference's order.
    fn matching(
        &self,
        input: &StepInput<'_>,
        [image, negative_image]: [&ImageKeyValues; 2],
        text_idx: &Tensor,
        collective: &dyn Collective,
        train: bool,
    ) -> Result<Matching, ModelError> {
        let (token_ids, attention_mask) = (input.token_ids, input.attention_mask);
        let batch = token_ids.size()[0];
        let cut = self.compute.skip_unread;
        let texts = |own: &Tensor| -> Result<Tensor, ModelError> {
            let negative = collective.all_gather(own)?.f_index_select(0, text_idx)?;
            let pairs = Tensor::f_stack(&[own, &negative], 1)?.f_flatten(0, 1)?; // [2 B, T]
            Ok(Tensor::f_cat(&[&pairs, own], 0)?) // [3 B, T]
        };
        let (token_ids, attention_mask) = (texts(token_ids)?, texts(attention_mask)?);
        let lengths = self.lengths(&token_ids, &attention_mask)?;
        let rows = self.text_rows(&token_ids, lengths.as_deref(), 0)?;
        let (queries, text) = self.qformer.encode_matching(
            &self.query_tokens,
            Text {
                token_ids: &token_ids,
                attention_mask: &attention_mask,
                rows: &rows,
            },
            image,
            negative_image,
            cut,
            train,
        )?;
        // Matched pairs, texts with negative images, images with negative texts.
        let reorder = |pairs: &Tensor| -> Result<Tensor, ModelError> {
            let parts = pairs.f_split_with_sizes([2 * batch, batch], 0)?;
            let own = parts[0].f_unflatten(0, [batch, 2])?.f_unbind(1)?;
            Ok(Tensor::f_cat(&[&own[0], &parts[1], &own[1]], 0)?)
        };
        let hidden = match self.compute {
            ComputeOptions::ALL_ROWS => {
                let text = text.f_view([3 * batch, token_ids.size()[1], -1])?;
                reorder(&Tensor::f_cat(&[&queries, &text], 1)?)?
            }
            _ => Tensor::new(),
        };
        Ok(Matching {
            logits: reorder(&self.score_match(&queries)?)?,
            hidden,
        })
    }

    /// Features as the products read them.
    fn in_precision(&self, features: &Tensor) -> Result<Tensor, ModelError> {
        match &self.copies {
            Some(copies) => Ok(features.f_to_kind(copies.kind())?),
            None => Ok(features.shallow_clone()),
        }
    }
}

impl Blip2Qformer {
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
}
