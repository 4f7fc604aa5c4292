//! The CPU stages of one sample: draw a caption, decode, augment, tokenise.

use std::sync::Arc;

use crossbeam::queue::SegQueue;

use super::stats::Meters;
use crate::augment::{ImageProcessor, ImageTransform, SampleRng};
use crate::captions::raw_captions;
use crate::config::{CaptionChoice, LoaderConfig};
use crate::decode::{decode_rgb, is_image_extension, DecodeLimits};
use crate::error::{PipelineError, SampleError, SkipReason};
use crate::sample::{DecodedSample, EncodedSample, MemberData};
use crate::text::{CaptionProcessor, CaptionTokenizer};

/// Everything the workers share.
pub(crate) struct Work {
    config: Arc<LoaderConfig>,
    tokenizer: Arc<CaptionTokenizer>,
    caption_processor: CaptionProcessor,
    image_len: usize,
    limits: DecodeLimits,
    meters: Arc<Meters>,
    /// Processors (with their scratch memory) not in use at the moment; one per busy worker.
    processors: SegQueue<Scratch>,
    /// Pixel buffers that collation has emptied.
    pixels: SegQueue<Vec<u8>>,
}

struct Scratch {
    processor: ImageProcessor,
    /// `[S, S, 3]` u8.
    interleaved: Vec<u8>,
}

impl Work {
    pub(crate) fn new(
        config: Arc<LoaderConfig>,
        tokenizer: Arc<CaptionTokenizer>,
        meters: Arc<Meters>,
    ) -> Result<Self, PipelineError> {
        let transform = config.image_transform();
        let first = ImageProcessor::new(transform)?;
        let processors = SegQueue::new();
        processors.push(Scratch { interleaved: vec![0; first.out_len()], processor: first });
        Ok(Work {
            caption_processor: CaptionProcessor::new(config.max_words, config.prompt.as_str())?,
            image_len: transform.size() as usize * transform.size() as usize * 3,
            limits: DecodeLimits { max_pixels: config.max_image_pixels, ..DecodeLimits::default() },
            config,
            tokenizer,
            meters,
            processors,
            pixels: SegQueue::new(),
        })
    }

    /// Bytes of one processed image.
    pub(crate) fn image_len(&self) -> usize {
        self.image_len
    }

    /// Takes back the pixel buffer of a sample that was copied into its batch.
    pub(crate) fn recycle(&self, pixels: Vec<u8>) {
        self.pixels.push(pixels);
    }

    /// Runs all CPU stages; the same sample in the same epoch gives the same result on any thread.
    pub(crate) fn process(
        &self,
        sample: EncodedSample,
        epoch: u64,
    ) -> Result<DecodedSample, SampleError> {
        let id = &sample.id;
        let mut rng = SampleRng::new(self.config.seed, epoch, id.shard_index, id.sample_index);
        match self.stages(&sample, &mut rng) {
            Ok((pixels, captions, token_ids, attention_mask)) => Ok(DecodedSample {
                id: sample.id,
                pixels,
                captions,
                token_ids,
                attention_mask,
            }),
            Err((reason, message)) => {
                Err(SampleError { id: Box::new(sample.id), reason, message })
            }
        }
    }

    #[allow(clippy::type_complexity)] // The fields of a DecodedSample, in one private place.
    fn stages(
        &self,
        sample: &EncodedSample,
        rng: &mut SampleRng,
    ) -> Result<(Vec<u8>, Vec<String>, Vec<i64>, Vec<i64>), (SkipReason, String)> {
        let captions = self.captions(sample, rng)?;
        let bytes = image_member(sample).ok_or_else(|| {
            let names: Vec<_> = sample.members.iter().map(|member| member.name.as_str()).collect();
            (SkipReason::NoImage, format!("no image among its members ({})", names.join(", ")))
        })?;
        let image = self
            .meters
            .decode
            .time(|| decode_rgb(bytes, &self.limits))
            .map_err(|error| (error.reason(), format!("cannot decode its image: {error}")))?;
        self.meters.decode.add_bytes(bytes.len() as u64);
        let pixels = self.meters.augment.time(|| {
            let mut scratch = self.processors.pop().unwrap_or_else(|| Scratch {
                processor: self.new_processor(),
                interleaved: vec![0; self.image_len()],
            });
            let mut pixels = self.pixels.pop().unwrap_or_else(|| vec![0; self.image_len()]);
            scratch.processor.process(&image, rng, &mut scratch.interleaved);
            deinterleave(&scratch.interleaved, &mut pixels);
            self.processors.push(scratch);
            pixels
        });
        let (token_ids, attention_mask) = self.meters.tokenise.time(|| {
            let text_len = self.config.text_len;
            let mut token_ids = vec![0; captions.len() * text_len];
            let mut attention_mask = vec![0; captions.len() * text_len];
            let rows = token_ids.chunks_mut(text_len).zip(attention_mask.chunks_mut(text_len));
            for (caption, (ids, mask)) in captions.iter().zip(rows) {
                self.tokenizer.encode(caption, text_len, ids, mask);
            }
            (token_ids, attention_mask)
        });
        Ok((pixels, captions, token_ids, attention_mask))
    }

    fn new_processor(&self) -> ImageProcessor {
        let config = &self.config;
        match config.processing {
            Processing::Train => ImageProcessor::train(
                config.image_size,
                config.crop_scale,
                config.crop_ratio,
                config.flip_probability,
            ),
            Processing::Eval => ImageProcessor::eval(config.image_size),
        }
    }

    /// The captions in use: one drawn, or all; those that the caption processor leaves empty never
    /// count.
    fn captions(
        &self,
        sample: &EncodedSample,
        rng: &mut SampleRng,
    ) -> Result<Vec<String>, (SkipReason, String)> {
        let raw = raw_captions(sample, &self.config.caption_column)?;
        let mut processed: Vec<String> =
            raw.iter().map(|caption| self.caption_processor.process(caption)).collect();
        processed.retain(|caption| caption.trim() != self.config.prompt.trim());
        if processed.is_empty() {
            let message = format!("no caption is left of {:?} after the caption processor", raw[0]);
            return Err((SkipReason::EmptyCaption, message));
        }
        Ok(match self.config.captions {
            CaptionChoice::All => processed,
            CaptionChoice::Draw => {
                let drawn = rng.below(processed.len() as u64) as usize;
                vec![processed.swap_remove(drawn)]
            }
        })
    }
}

/// The image of a sample: a plain image extension (`jpg`) before a compound one (`seg.png`).
fn image_member(sample: &EncodedSample) -> Option<&[u8]> {
    let images = || sample.members.iter().filter(|member| is_image_extension(&member.name));
    let plain = images().find(|member| !member.name.contains('.'));
    match &plain.or_else(|| images().next())?.data {
        MemberData::Bytes(bytes) => Some(bytes),
        MemberData::Text(_) => None,
    }
}

/// `[S, S, 3]` to `[3, S, S]`.
fn deinterleave(interleaved: &[u8], planar: &mut [u8]) {
    let (red, rest) = planar.split_at_mut(planar.len() / 3);
    let (green, blue) = rest.split_at_mut(rest.len() / 2);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in interleaved.chunks_exact(3).zip(planes) {
        *red = pixel[0];
        *green = pixel[1];
        *blue = pixel[2];
    }
}
