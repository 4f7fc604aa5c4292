//! A vocabulary trained from the captions of shards.

use std::cell::RefCell;

use crate::captions::{raw_captions, CaptionLines};
use crate::config::LoaderConfig;
use crate::error::{PipelineError, ShardError};
use crate::printable::Printable;
use crate::shard::read::{read_shard, NoObserver};
use crate::source::ShardLocation;
use crate::stop::Stop;
use crate::survey::explain_contents;
use crate::text::{train_vocabulary, CaptionProcessor, VocabularyOptions};

/// What a vocabulary was trained from.
#[derive(Clone, Debug)]
pub struct TrainedVocabulary {
    /// The entries; the id is the position.
    pub entries: Vec<String>,
    /// Captions it was trained from.
    pub captions: u64,
    /// Samples whose captions could not be read.
    pub skipped_samples: u64,
    /// Shards that could not be read to their end.
    pub bad_shards: Vec<ShardError>,
}

/// Trains a WordPiece vocabulary from the captions of `shards`, in order, after the caption
/// processor; at most `max_captions` of them.
///
/// A shard that cannot be read to its end contributes what comes before. Once `stop` is set all shards
/// end there.
///
/// # Errors
/// [`PipelineError::TooFewSamples`] when there is no caption at all; [`PipelineError::Config`].
pub fn vocabulary_from_shards(
    shards: &[ShardLocation],
    config: &LoaderConfig,
    options: &VocabularyOptions,
    max_captions: u64,
    stop: &Stop,
) -> Result<TrainedVocabulary, PipelineError> {
    let processor = CaptionProcessor::new(config.max_words, "")?;
    let read_options = config.read_options();
    let mut captions = Vec::new();
    // Words are the same whether texts are taken whole or line by line.
    let source = config.caption_source(config.caption_lines.unwrap_or(CaptionLines::Each));
    let skipped = RefCell::new(0u64);
    let mut bad_shards = Vec::new();
    for (index, shard) in shards.iter().enumerate() {
        let mut visit = |sample: Result<crate::EncodedSample, crate::SampleError>| {
            let raw = match &sample {
                Ok(sample) => raw_captions(sample, source).ok(),
                Err(_) => None,
            };
            match raw {
                Some(raw) => captions.extend(raw.iter().map(|caption| processor.process(caption))),
                None => *skipped.borrow_mut() += 1,
            }
            (captions.len() as u64) < max_captions
        };
        let result = read_shard(
            shard,
            index as u32,
            &read_options,
            &NoObserver,
            stop,
            &mut visit,
        );
        bad_shards.extend(result.err());
        if captions.len() as u64 >= max_captions {
            break;
        }
    }
    captions.retain(|caption| !caption.is_empty());
    captions.truncate(usize::try_from(max_captions).unwrap_or(usize::MAX));
    if captions.is_empty() {
        let mut message = "no vocabulary can be trained: the shards hold no caption".to_string();
        match bad_shards.first() {
            Some(error) => message.push_str(&format!(" ({error})")),
            None => {
                let contents = explain_contents(shards, config, &Stop::default());
                message.push_str(&format!(" that can be used: {}", Printable(&contents)));
            }
        }
        return Err(PipelineError::TooFewSamples(message));
    }
    Ok(TrainedVocabulary {
        captions: captions.len() as u64,
        entries: train_vocabulary(captions.into_iter(), options),
        skipped_samples: skipped.into_inner(),
        bad_shards,
    })
}
