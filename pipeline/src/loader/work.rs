//! The CPU stages of one sample: draw a caption, decode, augment, tokenise.

use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::SegQueue;

use super::recycle::BytePool;
use super::stats::Meters;
use crate::augment::{ImageProcessor, SampleRng};
use crate::batch::Pixels;
use crate::captions::raw_captions;
use crate::config::{CaptionChoice, LoaderConfig};
use crate::decode::{is_image_extension, DecodeError, DecodeQuality, Decoder};
use crate::error::{PipelineError, SampleError, SkipReason};
use crate::sample::{DecodedSample, EncodedSample, Member, MemberData, SampleId};
use crate::text::{CaptionProcessor, CaptionTokenizer};

/// Everything the workers share.
pub(crate) struct Work {
    config: Arc<LoaderConfig>,
    tokenizer: Arc<CaptionTokenizer>,
    caption_processor: CaptionProcessor,
    quality: DecodeQuality,
    meters: Arc<Meters>,
    /// Takes back the memory of images that are decoded.
    bytes: Arc<BytePool>,
    /// Applies nothing itself: a worker that finds no scratch begins with a copy.
    prototype: ImageProcessor,
    /// Scratch memory not in use at the moment; there are as many as busy workers.
    scratch: SegQueue<Scratch>,
    /// Pixel buffers for samples whose row is not free.
    spare: SegQueue<Vec<u8>>,
}

struct Scratch {
    decoder: Decoder,
    processor: ImageProcessor,
}

impl Work {
    pub(crate) fn new(
        config: Arc<LoaderConfig>,
        tokenizer: Arc<CaptionTokenizer>,
        meters: Arc<Meters>,
        bytes: Arc<BytePool>,
    ) -> Result<Self, PipelineError> {
        let transform = config.image_transform();
        let prototype = ImageProcessor::new(transform)?;
        Ok(Work {
            caption_processor: CaptionProcessor::new(config.max_words, config.prompt.as_str())?,
            quality: config.effective_decode_quality(),
            config,
            tokenizer,
            meters,
            bytes,
            prototype,
            scratch: SegQueue::new(),
            spare: SegQueue::new(),
        })
    }

    /// Bytes of one processed image.
    pub(crate) fn image_len(&self) -> usize {
        self.prototype.out_len()
    }

    /// Takes back a spare buffer whose pixels have been put into their row.
    pub(crate) fn recycle(&self, pixels: Vec<u8>) {
        self.spare.push(pixels);
    }

    /// Runs all CPU stages, writing pixels to `row` if it has one; the same sample in the same epoch gives the same result on any thread.
    pub(crate) fn process(
        &self,
        sample: EncodedSample,
        epoch: u64,
        row: Option<Pixels>,
    ) -> Result<DecodedSample, SampleError> {
        let mut result = self.stages(&sample, epoch, row);
        let mut members = sample.members;
        if let Ok(decoded) = &mut result {
            let wanted = |member: &mut Member| self.config.extra_members.contains(&member.name);
            decoded.members = members.extract_if(.., wanted).collect();
        }
        for member in members {
            if let MemberData::Bytes(bytes) = member.data {
                self.bytes.give_back(bytes);
            }
        }
        result.map_err(|(reason, message)| SampleError {
            id: Box::new(sample.id),
            reason,
            message,
        })
    }

    fn stages(
        &self,
        sample: &EncodedSample,
        epoch: u64,
        row: Option<Pixels>,
    ) -> Result<DecodedSample, (SkipReason, String)> {
        let id = &sample.id;
        let mut rng = SampleRng::new(self.config.seed, epoch, id.shard_index, id.sample_index);
        let captions = self.captions(sample, &mut rng)?;
        self.config.filters.metadata(sample)?;
        let bytes = image_member(sample).ok_or_else(|| {
            let names: Vec<_> = sample
                .members
                .iter()
                .map(|member| member.name.as_str())
                .collect();
            (
                SkipReason::NoImage,
                format!("no image among its members ({})", names.join(", ")),
            )
        })?;
        let start = Instant::now();
        let tokens = self.tokenise(&captions);
        let bytes_of_text = captions.iter().map(|caption| caption.len() as u64).sum();
        let tokenise = &self.meters.tokenise;
        tokenise.add_sample(id, bytes_of_text, start, start.elapsed());
        let (token_ids, attention_mask) = tokens?;
        let mut pixels = row.unwrap_or_else(|| {
            let spare = self.spare.pop();
            Pixels::Spare(spare.unwrap_or_else(|| vec![0; self.image_len()]))
        });
        let mut scratch = self.scratch.pop().unwrap_or_else(|| Scratch {
            decoder: Decoder::new(self.config.decode_limits(), self.config.on_truncated),
            processor: self.prototype.clone(),
        });
        let result = self.image(id, bytes, &mut rng, &mut scratch, pixels.as_mut_slice());
        self.scratch.push(scratch);
        result?;
        Ok(DecodedSample {
            id: id.clone(),
            pixels,
            members: Vec::new(),
            captions,
            token_ids,
            attention_mask,
        })
    }

    /// Draws a crop on the image's header, decodes it and writes it to `out`, `[3, S, S]`.
    fn image(
        &self,
        id: &SampleId,
        bytes: &[u8],
        rng: &mut SampleRng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), (SkipReason, String)> {
        let undecodable =
            |error: DecodeError| (error.reason(), format!("cannot decode its image: {error}"));
        let Scratch { decoder, processor } = scratch;
        let start = Instant::now();
        let opened = decoder.open(bytes).map_err(undecodable)?;
        self.config.filters.image(opened.width(), opened.height())?;
        let view = processor
            .transform()
            .draw(opened.width(), opened.height(), rng);
        let augmenting = processor
            .render_opened(decoder, &opened, &view, self.quality, out)
            .map_err(undecodable)?;
        // Both go on in turns; the trace shows one behind the other.
        let decoding = start.elapsed().saturating_sub(augmenting);
        let Meters {
            decode, augment, ..
        } = &*self.meters;
        let len = bytes.len() as u64;
        decode.add_bytes(len);
        decode.add_sample(id, len, start, decoding);
        augment.add_sample(id, len, start + decoding, augmenting);
        Ok(())
    }

    /// `[N, T]` ids and mask of `N` captions.
    fn tokenise(&self, captions: &[String]) -> Result<(Vec<i64>, Vec<i64>), (SkipReason, String)> {
        let text_len = self.config.text_len;
        let mut token_ids = vec![0; captions.len() * text_len];
        let mut attention_mask = vec![0; captions.len() * text_len];
        let rows = token_ids
            .chunks_mut(text_len)
            .zip(attention_mask.chunks_mut(text_len));
        for (caption, (ids, mask)) in captions.iter().zip(rows) {
            self.tokenizer
                .encode(caption, ids, mask)
                .map_err(|error| (SkipReason::BadCaption, error.to_string()))?;
        }
        Ok((token_ids, attention_mask))
    }

    /// The captions in use: one drawn, or all; those that the caption processor leaves empty never
    /// count.
    fn captions(
        &self,
        sample: &EncodedSample,
        rng: &mut SampleRng,
    ) -> Result<Vec<String>, (SkipReason, String)> {
        let mut raw = raw_captions(sample, &self.config.caption_column)?;
        let filters = &self.config.filters;
        let before = raw.len();
        raw.retain(|caption| filters.takes_caption(caption));
        if raw.is_empty() {
            let message = format!("none of its {before} captions has a length that is wanted");
            return Err((SkipReason::FilteredCaption, message));
        }
        let cleaner = &self.caption_processor;
        let mut usable = raw.iter().filter(|caption| !cleaner.is_empty(caption));
        let count = usable.clone().count();
        if count == 0 {
            let message = format!(
                "no caption is left of {:?} after the caption processor",
                raw[0]
            );
            return Err((SkipReason::EmptyCaption, message));
        }
        Ok(match self.config.captions {
            CaptionChoice::All => usable.map(|caption| cleaner.process(caption)).collect(),
            CaptionChoice::Draw => {
                let drawn = usable.nth(rng.below(count as u64) as usize);
                drawn
                    .map(|caption| cleaner.process(caption))
                    .into_iter()
                    .collect()
            }
        })
    }
}

/// The image of a sample: a plain image extension (`jpg`) before a compound one (`seg.png`).
fn image_member(sample: &EncodedSample) -> Option<&[u8]> {
    let images = || {
        sample
            .members
            .iter()
            .filter(|member| is_image_extension(&member.name))
    };
    let plain = images().find(|member| !member.name.contains('.'));
    match &plain.or_else(|| images().next())?.data {
        MemberData::Bytes(bytes) => Some(bytes),
        MemberData::Text(_) => None,
    }
}
