//! What augmentation does to a sample: eight crops beside the original, drawn as a run draws them.

use qf_pipeline::augment::SampleRng;
use qf_pipeline::config::{CaptionChoice, Processing};
use qf_pipeline::image_stage::{ImageSettings, ImageStage};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::text::CaptionProcessor;
use qf_pipeline::LoaderConfig;

use super::fetch;
use super::picture::{square, Thumbnail};
use crate::inspect::Facts;
use crate::interrupt::Interrupt;

/// Crops of a sample: those of as many epochs.
const CROPS: u64 = 8;

/// A sample and its crops.
pub(super) struct Cropped {
    pub(super) key: String,
    /// Size of the upright picture, in pixels.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) crops: Vec<Crop>,
}

/// What training sees in one epoch.
pub(super) struct Crop {
    pub(super) epoch: u64,
    /// Left, top, width, height in the upright picture.
    pub(super) region: [u32; 4],
    pub(super) mirrored: bool,
    pub(super) pixels: Thumbnail,
}

/// The crops of the first good samples of the sheet.
pub(super) fn draw(
    shards: &[ShardLocation],
    sheet: &[Facts],
    count: usize,
    config: &LoaderConfig,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Cropped>> {
    let config = LoaderConfig {
        processing: Processing::Train,
        ..config.clone()
    };
    let good = sheet.iter().filter(|facts| !facts.is_bad()).take(count);
    let chosen: Vec<&Facts> = good.collect();
    let places: Vec<_> = chosen
        .iter()
        .map(|facts| (facts.id.shard_index, facts.id.sample_index))
        .collect();
    let samples = fetch::samples(shards, &places, &config, &interrupt.stop());
    let mut stage = ImageSettings::new(&config)?.stage();
    let processor = CaptionProcessor::new(config.max_words, config.prompt.as_str())?;
    let mut cropped = Vec::new();
    for (facts, place) in chosen.iter().zip(&places) {
        interrupt.check()?;
        let image = samples
            .get(place)
            .and_then(|sample| sample.image(config.image_column.as_deref()))
            .and_then(|member| member.bytes());
        let used = facts
            .captions
            .iter()
            .filter(|caption| !processor.is_empty(caption))
            .count();
        if let Some(bytes) = image {
            cropped.extend(crops_of(facts, bytes, used as u64, &config, &mut stage)?);
        }
    }
    Ok(cropped)
}

fn crops_of(
    facts: &Facts,
    bytes: &[u8],
    captions: u64,
    config: &LoaderConfig,
    stage: &mut ImageStage,
) -> anyhow::Result<Option<Cropped>> {
    let Ok(opened) = stage.open(bytes) else {
        return Ok(None);
    };
    let mut cropped = Cropped {
        key: facts.id.key.clone(),
        width: opened.width(),
        height: opened.height(),
        crops: Vec::new(),
    };
    for epoch in 0..CROPS {
        let id = &facts.id;
        let mut rng = SampleRng::new(config.seed, epoch, id.shard_index, id.sample_index);
        // In the order of the loader: the caption is drawn before the crop.
        if config.captions == CaptionChoice::Draw {
            rng.below(captions);
        }
        let mut pixels = stage.blank();
        let Ok(rendered) = stage.render(&opened, &mut rng, pixels.as_mut()) else {
            return Ok(None);
        };
        let crop = rendered.view.crop;
        cropped.crops.push(Crop {
            epoch,
            region: [crop.x, crop.y, crop.width, crop.height],
            mirrored: rendered.view.mirrored,
            pixels: square(&pixels)?,
        });
    }
    Ok(Some(cropped))
}
