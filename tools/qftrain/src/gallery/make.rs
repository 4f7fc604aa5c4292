//! Computing a gallery from held-out shards.

use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use qf_model::generate::{generate, GenerateConfig, Strategy};
use qf_model::host::upload;
use qf_model::Blip2Qformer;
use qf_pipeline::batch::Batch;
use qf_pipeline::loader::Loader;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::LoaderConfig;
use tch::{Device, Kind, Tensor};

use super::contents::{Attention, Gallery, Shown, ShownCaption, SCHEMA};

/// Images that are compared with each other's captions.
const IMAGES: usize = 64;

/// Images at a time.
const BATCH: usize = 16;

/// The first images, which get a caption of the model's.
const CAPTIONED: usize = 12;

/// The first images, whose attention is shown.
const ATTENDED: usize = 4;

/// Candidates that are shown.
const TOP: i64 = 5;

/// Quality of the JPEGs; a page holds 64 of them.
const JPEG_QUALITY: u8 = 82;

/// Makes galleries of the same images again and again. Reads them when it makes the first one.
pub(crate) struct GalleryMaker {
    data: LoaderConfig,
    shards: Vec<ShardLocation>,
    tokenizer: Arc<CaptionTokenizer>,
    batches: Option<Vec<Batch>>,
}

impl GalleryMaker {
    /// Of the first images of `shards`, which `data` says how to read.
    pub(crate) fn new(
        data: &LoaderConfig,
        shards: Vec<ShardLocation>,
        tokenizer: Arc<CaptionTokenizer>,
    ) -> GalleryMaker {
        let data = LoaderConfig {
            batch_size: BATCH,
            prefetch_batches: 1,
            ..data.clone().for_evaluation()
        };
        GalleryMaker {
            data,
            shards,
            tokenizer,
            batches: None,
        }
    }

    fn batches(&mut self) -> anyhow::Result<&[Batch]> {
        if self.batches.is_none() {
            let mut loader = Loader::builder(self.data.clone())
                .shards(self.shards.clone())
                .batches(self.tokenizer.clone())?;
            let mut batches = Vec::new();
            while batches.len() * BATCH < IMAGES {
                let Some(batch) = loader.next_batch()? else {
                    break;
                };
                batches.push(batch);
            }
            self.batches = Some(batches);
        }
        Ok(self.batches.as_deref().unwrap_or_default())
    }

    /// The gallery of a model that has made `step` steps.
    ///
    /// # Errors
    /// Whatever stops the loader or the model.
    pub(crate) fn make(&mut self, model: &Blip2Qformer, step: u64) -> anyhow::Result<Gallery> {
        let sep = self.tokenizer.sep_id();
        let tokenizer = self.tokenizer.clone();
        let device = model.params().device();
        let (mut images, mut captions, mut attention) = (Vec::new(), Vec::new(), Vec::new());
        let (mut image_feats, mut text_feats) = (Vec::new(), Vec::new());
        for batch in self.batches()? {
            let input = upload(batch, device)?;
            let embeds = tch::no_grad(|| model.encode_image(&input.images))?; // [B, M, E]
            image_feats.push(model.image_features(&embeds)?); // [B, Q, d]
            text_feats.push(model.text_features(&input.token_ids, &input.attention_mask)?);
            let first = images.len();
            let shown = |most: usize| most.saturating_sub(first).min(batch.batch_size);
            let written = write_captions(model, &embeds, shown(CAPTIONED), sep)?;
            let mut written = written.iter().map(|ids| tokenizer.decode(ids));
            for at in 0..batch.batch_size {
                images.push(Shown {
                    key: batch.ids[at].key.clone(),
                    jpeg: jpeg(batch, at)?,
                    side: batch.image_size,
                    captions: Vec::new(),
                    top: Vec::new(),
                    generated: written.next(),
                });
            }
            for (text, &image) in batch.captions.iter().zip(&batch.caption_image) {
                let image = first + image as usize;
                if let Some(shown) = images.get_mut(image) {
                    shown.captions.push(captions.len());
                }
                captions.push(ShownCaption {
                    text: text.clone(),
                    image,
                    top: Vec::new(),
                    rank: 0,
                });
            }
            let attended = shown(ATTENDED) as i64;
            if attended > 0 {
                let weights = model.query_attention(&embeds.f_narrow(0, 0, attended)?)?;
                attention.extend(attention_maps(&weights, first)?);
            }
        }
        anyhow::ensure!(
            !images.is_empty(),
            "the validation shards hold no usable sample"
        );
        let scores = scores(&image_feats, &text_feats)?;
        rank(&scores, &mut images, &mut captions)?;
        Ok(Gallery {
            schema: SCHEMA,
            step,
            images,
            captions,
            attention,
        })
    }
}

/// Token ids of the captions that the model writes for the first `count` images of `[B, M, E]`.
fn write_captions(
    model: &Blip2Qformer,
    embeds: &Tensor,
    count: usize,
    sep: i64,
) -> anyhow::Result<Vec<Vec<i64>>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let config = GenerateConfig {
        strategy: Strategy::Beam {
            num_beams: 3,
            length_penalty: 1.0,
        },
        num_captions: 1,
        max_length: 30,
        min_length: 1,
        repetition_penalty: 1.0,
    };
    let embeds = embeds.f_narrow(0, 0, count as i64)?;
    let written = generate(model, &embeds, &config, sep, 0)?;
    let best = |captions: Vec<_>| captions.into_iter().next();
    let ids = |caption: Option<qf_model::generate::Generated>| caption.map(|c| c.token_ids);
    Ok(written
        .into_iter()
        .map(|captions| ids(best(captions)).unwrap_or_default())
        .collect())
}

/// Cosines of every image with every caption, `[I, C]` f32 on the host: the greatest over the queries.
fn scores(image_feats: &[Tensor], text_feats: &[Tensor]) -> anyhow::Result<Tensor> {
    let images = Tensor::f_cat(image_feats, 0)?; // [I, Q, d]
    let texts = Tensor::f_cat(text_feats, 0)?; // [C, d]
    let scores = images.f_matmul(&texts.f_tr()?)?; // [I, Q, C]
    let scores = scores.f_amax([1i64].as_slice(), false)?;
    Ok(scores.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)
}

/// Puts the best candidates of each image and of each caption in their places.
fn rank(
    scores: &Tensor,
    images: &mut [Shown],
    captions: &mut [ShownCaption],
) -> anyhow::Result<()> {
    for (shown, top) in images.iter_mut().zip(best(scores)?) {
        shown.top = top;
    }
    let by_caption = scores.f_tr()?.f_contiguous()?; // [C, I]
    for (caption, top) in captions.iter_mut().zip(best(&by_caption)?) {
        caption.top = top;
    }
    let rows = Vec::<Vec<f32>>::try_from(&by_caption)?;
    for (caption, row) in captions.iter_mut().zip(rows) {
        let own = row.get(caption.image).copied().unwrap_or(f32::NAN);
        caption.rank = row.iter().filter(|&&score| score > own).count();
    }
    Ok(())
}

/// The places and scores of the greatest numbers of each row.
fn best(scores: &Tensor) -> anyhow::Result<Vec<Vec<(usize, f32)>>> {
    let (_, columns) = scores.size2()?;
    let (values, places) = scores.f_topk(TOP.min(columns), 1, true, true)?;
    let values = Vec::<Vec<f32>>::try_from(values)?;
    let places = Vec::<Vec<i64>>::try_from(places)?;
    let row = |(places, values): (Vec<i64>, Vec<f32>)| {
        let places = places.into_iter().map(|place| place as usize);
        places.zip(values).collect()
    };
    Ok(places.into_iter().zip(values).map(row).collect())
}

/// Maps of `[B, Q, M]` shares of rows; the patches are the last n² rows.
fn attention_maps(weights: &Tensor, first: usize) -> anyhow::Result<Vec<Attention>> {
    let (images, _, rows) = weights.size3()?;
    let side = (rows as f64).sqrt().floor() as i64;
    let patches = side * side;
    let weights = weights.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    (0..images)
        .map(|image| {
            let each = weights.f_select(0, image)?; // [Q, M]
            let mean = each.f_mean_dim([0i64].as_slice(), true, None)?;
            let all = Tensor::f_cat(&[&mean, &each], 0)?; // [1 + Q, M]
            let seen = all.f_narrow(1, rows - patches, patches)?;
            let most = seen.f_amax([1i64].as_slice(), true)?.f_clamp_min(1e-12)?;
            let maps = seen.f_divide(&most)?.f_mul_scalar(255.0)?.f_round()?;
            let maps = Vec::<Vec<f32>>::try_from(maps)?;
            let patched = seen.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
            let elsewhere = patched.f_neg()?.f_add_scalar(1.0)?;
            Ok(Attention {
                image: first + image as usize,
                side: side as usize,
                maps: maps
                    .into_iter()
                    .map(|map| map.into_iter().map(|value| value as u8).collect())
                    .collect(),
                elsewhere: Vec::try_from(elsewhere)?,
            })
        })
        .collect()
}

/// An image of a batch as a JPEG.
fn jpeg(batch: &Batch, at: usize) -> anyhow::Result<Vec<u8>> {
    let side = batch.image_size;
    let plane = side * side;
    let planes = batch.pixels().as_bytes()[at * 3 * plane..][..3 * plane].chunks_exact(plane);
    let mut interleaved = vec![0; 3 * plane];
    for (channel, samples) in planes.enumerate() {
        for (pixel, &sample) in interleaved.chunks_exact_mut(3).zip(samples) {
            pixel[channel] = sample;
        }
    }
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
    let side = u32::try_from(side)?;
    encoder.write_image(&interleaved, side, side, ExtendedColorType::Rgb8)?;
    Ok(bytes)
}
