//! A batch of the loader, as training or evaluation gets it.

use std::sync::Arc;

use anyhow::bail;
use qf_pipeline::loader::{DataSet, Loader, TakenReports};
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::words::counted;
use qf_pipeline::Batch;

use super::request::Request;
use super::shown::{Crop, Sample, Shown, Skipped};
use crate::data::with_data;
use crate::interrupt::Interrupt;
use qf_cli::output::remark;

/// Bad samples that are named on stderr where there is no batch to show them with.
const MAX_REMARKS: usize = 20;

/// Reads up to the batch that was asked for. Those before it are decoded too: which samples it holds
/// depends on how many before it are bad.
///
/// # Errors
/// Those of the loader, and an epoch that has no such batch.
pub(super) fn show(
    request: &Request,
    sets: Vec<DataSet>,
    interrupt: &Interrupt,
) -> anyhow::Result<Shown> {
    let shards: usize = sets.iter().map(|set| set.shards.len()).sum();
    let tokenizer = match &request.text.tokenizer {
        Some(tokenizer) => tokenizer.clone(),
        None => Arc::new(no_vocabulary()?),
    };
    let builder = with_data(Loader::builder(request.config.clone()), sets);
    let builder = builder.first_epoch(request.epoch).stop(&interrupt.stop());
    let mut loader = builder.report_skips().keep_captions().batches(tokenizer)?;
    for note in loader.notes() {
        remark(format_args!("{note}"));
    }
    let mut number = 0;
    loop {
        let next = loader.next_batch();
        let skipped = |batches| match loader.skip_reports() {
            Some(reports) => reports.take_before(batches),
            None => TakenReports::default(),
        };
        interrupt.check()?;
        let batch = match next {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                name_skipped(skipped(u64::MAX));
                bail!(
                    "epoch {} has {} of {}, and --batch counts from 0: there is no batch {}",
                    request.epoch,
                    counted(number, "batch", "batches"),
                    counted(request.config.batch_size as u64, "image", "images"),
                    request.batch
                );
            }
            Err(error) => {
                name_skipped(skipped(u64::MAX));
                return Err(error.into());
            }
        };
        number += 1;
        let skipped = skipped(number);
        if number > request.batch {
            return shown(request, &batch, skipped, shards);
        }
    }
}

/// Stands in for the tokenizer where none is given; its ids are shown nowhere.
fn no_vocabulary() -> anyhow::Result<CaptionTokenizer> {
    let entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(String::from);
    Ok(CaptionTokenizer::from_vocab(entries.to_vec())?)
}

fn shown(
    request: &Request,
    batch: &Batch,
    skipped: TakenReports,
    shards: usize,
) -> anyhow::Result<Shown> {
    let mut samples = Vec::with_capacity(batch.batch_size);
    for (index, (id, view)) in batch.ids.iter().zip(&batch.views).enumerate() {
        let stored = batch.stored_captions.get(index);
        let stored = stored.map_or(&[][..], Vec::as_slice);
        let mut sample = Sample {
            key: id.key.clone(),
            shard: Some(id.shard.to_string()),
            offset_bytes: Some(id.offset_bytes),
            width: 0,
            height: 0,
            crop: Crop::default(),
            mirrored: false,
            captions: Vec::new(),
            all_captions: stored.to_vec(),
        };
        sample.set_view(view);
        let of_image = |&row: &usize| batch.caption_image[row] as usize == index;
        for row in (0..batch.captions.len()).filter(of_image) {
            let tokens = row * batch.tokens.text_len()..(row + 1) * batch.tokens.text_len();
            let tokens = (
                &batch.tokens.ids()[tokens.clone()],
                &batch.tokens.mask()[tokens],
            );
            let text = batch.captions[row].clone();
            let caption = request.text.caption(text, stored, Some(tokens))?;
            sample.captions.push(caption);
        }
        samples.push(sample);
    }
    Ok(Shown {
        images: batch.pixels().to_images(),
        unnamed: skipped.unnamed,
        skipped: skipped.named.into_iter().map(Skipped::from).collect(),
        origin: format!(
            "{} from {}",
            counted(samples.len() as u64, "image", "images"),
            counted(shards as u64, "shard", "shards")
        ),
        samples,
    })
}

fn name_skipped(skipped: TakenReports) {
    let count = skipped.named.len() as u64 + skipped.unnamed;
    for bad in skipped
        .named
        .into_iter()
        .take(MAX_REMARKS)
        .map(Skipped::from)
    {
        remark(format_args!("skipped {bad}"));
    }
    if let Some(more @ 1..) = count.checked_sub(MAX_REMARKS as u64) {
        remark(format_args!("and {more} more"));
    }
}
