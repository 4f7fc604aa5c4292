//! The CPU stages of one sample: draw a caption, decode, augment, tokenise.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::SegQueue;

use crate::augment::SampleRng;
use crate::batch::{DecodedSample, Pixels, SourceView};
use crate::captions::raw_captions;
use crate::config::{CaptionChoice, LoaderConfig};
use crate::decode::{DecodeError, ForeignFormat};
use crate::error::{PipelineError, SampleError, SkipReason};
use crate::guard::guarded;
use crate::image_stage::{ImageSettings, ImageStage};
use crate::loader::meters::stats::Meters;
use crate::loader::plan::sets::LinesOfShards;
use crate::loader::read::recycle::BytePool;
use crate::pixels::{image_len, PlanarRgbMut};
use crate::sample::{EncodedSample, Member, MemberData, SampleId};
use crate::text::{CaptionProcessor, CaptionTokenizer, TokenRows};

/// Everything the workers share.
pub(crate) struct Work {
    config: Arc<LoaderConfig>,
    caption_lines: LinesOfShards,
    tokenizer: Arc<CaptionTokenizer>,
    caption_processor: CaptionProcessor,
    keeps_captions: bool,
    meters: Arc<Meters>,
    /// Takes back the memory of images that are decoded.
    bytes: Arc<BytePool>,
    images: ImageSettings,
    /// Stages not in use at the moment; there are as many as busy workers.
    stages: SegQueue<ImageStage>,
    /// Pixel buffers for samples whose row is not free.
    spare: SegQueue<Vec<u8>>,
}

impl Work {
    pub(crate) fn new(
        config: Arc<LoaderConfig>,
        caption_lines: LinesOfShards,
        tokenizer: Arc<CaptionTokenizer>,
        meters: Arc<Meters>,
        bytes: Arc<BytePool>,
    ) -> Result<Self, PipelineError> {
        Ok(Work {
            caption_processor: CaptionProcessor::new(config.max_words, config.prompt.as_str())?,
            images: ImageSettings::new(&config)?,
            config,
            caption_lines,
            tokenizer,
            keeps_captions: false,
            meters,
            bytes,
            stages: SegQueue::new(),
            spare: SegQueue::new(),
        })
    }

    /// Whether captions as stored go along with each sample.
    pub(crate) fn keep_captions(self, keeps_captions: bool) -> Self {
        Work {
            keeps_captions,
            ..self
        }
    }

    /// Bytes of one processed image.
    pub(crate) fn image_len(&self) -> usize {
        image_len(self.images.size())
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
        let captions = match self.config.captions {
            CaptionChoice::Ignore => Vec::new(),
            CaptionChoice::Draw | CaptionChoice::All => self.captions(sample, &mut rng)?,
        };
        let stored_captions = match self.keeps_captions {
            true => Some(self.stored_captions(sample)?),
            false => None,
        };
        self.config.filters.metadata(sample)?;
        let image = sample.image(self.config.image_column.as_deref());
        let bytes = image.and_then(Member::bytes).ok_or_else(|| {
            let names: Vec<_> = sample
                .members
                .iter()
                .map(|member| member.name.as_str())
                .collect();
            match names
                .iter()
                .find_map(|name| ForeignFormat::of_extension(name))
            {
                Some(format) => (
                    SkipReason::of_foreign(format),
                    DecodeError::Foreign { format }.to_string(),
                ),
                None => (
                    SkipReason::NoImage,
                    format!("no image among its members ({})", names.join(", ")),
                ),
            }
        })?;
        let image_id = self.config.image_ids.of(sample, bytes)?;
        let start = Instant::now();
        let tokens = self.tokenise(&captions);
        let bytes_of_text = captions.iter().map(|caption| caption.len() as u64).sum();
        let tokenise = &self.meters.tokenise;
        tokenise.add_sample(id, bytes_of_text, start, start.elapsed());
        let tokens = tokens?;
        let mut pixels = row.unwrap_or_else(|| {
            let spare = self.spare.pop();
            Pixels::Overflow(spare.unwrap_or_else(|| vec![0; self.image_len()]))
        });
        let out = PlanarRgbMut::new(self.images.size(), pixels.as_mut_slice())
            .expect("rows of batches and spare buffers have the length of an image");
        let mut stage = self.stages.pop().unwrap_or_else(|| self.images.stage());
        let result = self.image(id, bytes, &mut rng, &mut stage, out);
        self.stages.push(stage);
        let view = result?;
        Ok(DecodedSample {
            id: id.clone(),
            pixels,
            view,
            image_id,
            members: Vec::new(),
            captions,
            stored_captions,
            tokens,
        })
    }

    /// Draws a crop on the image's header, decodes it and writes it to `out`.
    fn image(
        &self,
        id: &SampleId,
        bytes: &[u8],
        rng: &mut SampleRng,
        stage: &mut ImageStage,
        out: PlanarRgbMut<'_>,
    ) -> Result<SourceView, (SkipReason, String)> {
        let undecodable =
            |error: DecodeError| (error.reason(), format!("cannot decode its image: {error}"));
        let start = Instant::now();
        let opened = stage.open(bytes).map_err(undecodable)?;
        let (width, height) = (opened.width(), opened.height());
        self.config.filters.image(width, height)?;
        let opening = start.elapsed();
        let rendered = stage.render(&opened, rng, out).map_err(undecodable)?;
        // Both go on in turns; the trace shows one behind the other.
        let decoding = opening + rendered.decoding;
        let Meters {
            decode, augment, ..
        } = &*self.meters;
        let len = bytes.len() as u64;
        decode.add_bytes(len);
        decode.add_sample(id, len, start, decoding);
        augment.add_sample(id, len, start + decoding, rendered.augmenting);
        Ok(SourceView {
            width,
            height,
            view: rendered.view,
        })
    }

    fn tokenise(&self, captions: &[String]) -> Result<TokenRows, (SkipReason, String)> {
        let mut rows = TokenRows::with_capacity(self.config.text_len, captions.len());
        for caption in captions {
            guarded(|| rows.push(&self.tokenizer, caption))
                .map_err(|what| (SkipReason::BadCaption, format!("the tokenizer {what}")))?
                .map_err(|error| (SkipReason::BadCaption, error.to_string()))?;
        }
        Ok(rows)
    }

    fn stored_captions(&self, sample: &EncodedSample) -> Result<Vec<String>, (SkipReason, String)> {
        let lines = self.caption_lines.of_shard(sample.id.shard_index);
        let raw = raw_captions(sample, self.config.caption_source(lines));
        match (raw, self.config.captions) {
            (Ok(raw), _) => Ok(raw.into_iter().map(Cow::into_owned).collect()),
            (Err(_), CaptionChoice::Ignore) => Ok(Vec::new()),
            (Err(bad), CaptionChoice::Draw | CaptionChoice::All) => Err(bad),
        }
    }

    /// The captions in use: one drawn, or all; those that the caption processor leaves empty never
    /// count.
    fn captions(
        &self,
        sample: &EncodedSample,
        rng: &mut SampleRng,
    ) -> Result<Vec<String>, (SkipReason, String)> {
        let lines = self.caption_lines.of_shard(sample.id.shard_index);
        let mut raw = raw_captions(sample, self.config.caption_source(lines))?;
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
            CaptionChoice::All | CaptionChoice::Ignore => {
                usable.map(|caption| cleaner.process(caption)).collect()
            }
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
