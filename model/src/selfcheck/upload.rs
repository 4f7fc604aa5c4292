//! Batches on their way from a shard to the device, bit for bit.

use std::path::Path;
use std::sync::Arc;

use qf_config::model::Precision;
use qf_pipeline::augment::{CLIP_MEAN, CLIP_STD};
use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::{train_vocabulary, CaptionTokenizer, VocabularyOptions};
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::{Batch, Loader, LoaderConfig};
use tch::{Device, Kind, Tensor};

use super::check::{Bench, Fault, NotOk};
use super::compare::{same_bits, Comparison, BF16, F32};
use super::network::{config, draw, model, Tower, IMAGE_SIZE};
use crate::blip2::ComputeOptions;
use crate::feed::DeviceFeed;
use crate::host::{batch_allocator, DeviceBatch};

const SAMPLES: usize = 24;
const BATCH: usize = 4;
/// More than there are page-locked buffers: each is used several times.
const BATCHES: usize = 24;

/// A picture of noise as a Windows bitmap of 24 bits.
fn bitmap(number: usize, width: u32, height: u32) -> Vec<u8> {
    let row = (width * 3).next_multiple_of(4);
    let pixels = row * height;
    let mut bytes = b"BM".to_vec();
    let planes_and_bits = 1 | (24 << 16);
    for field in [
        54 + pixels,
        0,
        54,
        40,
        width,
        height,
        planes_and_bits,
        0,
        pixels,
    ] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend([0; 16]);
    let noise = draw(&format!("picture {number}"), pixels as usize);
    bytes.extend(noise.iter().map(|value| (value * 128.0 + 128.0) as u8));
    bytes
}

fn caption(number: usize) -> String {
    format!("picture number {number} of noise")
}

/// A tokenizer of the captions.
pub(super) fn tokenizer() -> Result<CaptionTokenizer, Fault> {
    let options = VocabularyOptions::default();
    let vocabulary = train_vocabulary((0..SAMPLES).map(caption), &options);
    Ok(CaptionTokenizer::from_vocab(vocabulary)?)
}

/// A loader without end of batches of `size` on a shard of pictures of several sizes, which is written
/// into `folder`.
pub(super) fn loader(folder: &Path, device: Device, size: usize) -> Result<Loader, Fault> {
    let path = folder.join("pictures.tar");
    let mut writer = ShardWriter::create(&path, &ShardOptions::new(ShardFormat::Tar))?;
    for number in 0..SAMPLES {
        let (width, height) = (60 + 7 * (number as u32 % 5), 90 - 5 * (number as u32 % 7));
        writer.write(&ShardSample {
            key: format!("{number:03}"),
            extension: "bmp".into(),
            image: bitmap(number, width, height),
            captions: vec![caption(number)],
            text_member: true,
            json: None,
            members: Vec::new(),
        })?;
    }
    writer.finish()?;
    let config = LoaderConfig {
        batch_size: size,
        image_size: usize::try_from(IMAGE_SIZE).unwrap_or(0),
        threads: 2,
        ..LoaderConfig::default()
    };
    let loader = Loader::builder(config)
        .shards(resolve_shards(&[path.to_string_lossy()])?)
        .allocator(batch_allocator(device));
    Ok(loader.batches(Arc::new(tokenizer()?))?)
}

/// What a batch has to be on the device.
struct Expected {
    images: Tensor,
    token_ids: Tensor,
    attention_mask: Tensor,
}

impl Expected {
    /// Computed on the host by plain arithmetic: `(x / 255 - mean) / std`, each in 32 bits.
    fn of(batch: &Batch) -> Result<Expected, Fault> {
        let pixels = batch.pixels();
        let plane = (pixels.size() * pixels.size()).max(1);
        let numbers = pixels.as_bytes().iter().enumerate().map(|(at, &byte)| {
            let channel = at / plane % 3;
            let (mean, std) = match channel {
                0 => (CLIP_MEAN[0], CLIP_STD[0]),
                1 => (CLIP_MEAN[1], CLIP_STD[1]),
                _ => (CLIP_MEAN[2], CLIP_STD[2]),
            };
            (f32::from(byte) / 255.0 - mean) / std
        });
        let numbers: Vec<f32> = numbers.collect();
        let tokens = &batch.tokens;
        let rows = [tokens.len() as i64, tokens.text_len() as i64];
        let shape = pixels.shape().map(|size| size as i64);
        Ok(Expected {
            images: Tensor::f_from_slice(&numbers)?.f_view(shape)?,
            token_ids: Tensor::f_from_slice(tokens.ids())?.f_view(rows)?,
            attention_mask: Tensor::f_from_slice(tokens.mask())?.f_view(rows)?,
        })
    }

    fn compare(&self, number: usize, got: &DeviceBatch) -> Result<(), Fault> {
        let what = |part: &str| format!("{part} of batch {number}");
        same_bits(&what("pixels"), &got.images, &self.images)?;
        same_bits(&what("token ids"), &got.token_ids, &self.token_ids)?;
        same_bits(&what("mask"), &got.attention_mask, &self.attention_mask)
    }
}

/// Takes batches as training does, computes meanwhile, and looks at each once its page-locked buffer
/// is filled with another. A frozen tower runs ahead, as in a run on a GPU.
pub(super) fn bits(bench: &mut Bench) -> Result<(), NotOk> {
    let folder = tempfile::tempdir()?;
    let loader = loader(folder.path(), bench.device, BATCH)?;
    let config = config(Tower::FrozenEva);
    let compute = ComputeOptions::default();
    let model = model(&config, bench.device, bench.precision, compute)?;
    let mut feed = DeviceFeed::start(loader, bench.device, model.recorded_tower(BATCH as i64)?)?;
    let tolerance = match bench.precision {
        Precision::F32 => F32,
        _ => BF16,
    };
    let mut features = Comparison::new(tolerance);
    let busy = Tensor::f_ones([1024, 1024], (Kind::Float, bench.device))?;
    let mut waiting: Vec<(usize, DeviceBatch, Expected)> = Vec::new();
    let mut pixels = 0;
    for number in 0..BATCHES {
        let Some(batch) = feed.next_batch()? else {
            return Err(NotOk::Fault(Fault {
                what: "the loader".into(),
                got: format!("an end after {number} batches"),
                expected: format!("{BATCHES} batches"),
                advice: super::ADVICE.into(),
            }));
        };
        pixels += batch.host.pixels().as_bytes().len();
        batch.use_here()?;
        if let Some(ahead) = &batch.features {
            let here = model.encode_image(&batch.input.images)?;
            features.output(&format!("features of batch {number}"), ahead, &here)?;
        }
        let expected = Expected::of(&batch.host)?;
        drop(batch.host);
        waiting.push((number, batch.input, expected));
        let _ = busy.f_matmul(&busy)?;
        if waiting.len() > 8 {
            let (number, got, expected) = waiting.remove(0);
            expected.compare(number, &got)?;
        }
    }
    for (number, got, expected) in &waiting {
        expected.compare(*number, got)?;
    }
    bench.note("batches", BATCHES);
    bench.note("worst_feature_error", features.worst_output);
    bench.note("bytes", pixels);
    Ok(features.end()?)
}
