//! What a preview shows: a batch as the loader made it, with the words of its tokens.

use std::fmt::{self, Display};

use qf_pipeline::augment::CropBox;
use qf_pipeline::batch::SourceView;
use qf_pipeline::loader::SkippedSample;
use qf_pipeline::pixels::PlanarImages;
use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer};
use qf_pipeline::PipelineError;
use serde::Serialize;

/// A batch, ready to be drawn.
pub(super) struct Shown {
    pub(super) images: PlanarImages,
    /// `[B]`
    pub(super) samples: Vec<Sample>,
    /// Bad samples that were passed over on the way to this batch.
    pub(super) skipped: Vec<Skipped>,
    /// Further ones, too many to be named.
    pub(super) unnamed: u64,
    /// Where the batch comes from, in words.
    pub(super) origin: String,
}

impl Shown {
    /// Bad samples, those without a name included.
    pub(super) fn skipped_count(&self) -> u64 {
        self.skipped.len() as u64 + self.unnamed
    }

    /// Side S of the images, in pixels.
    pub(super) fn image_size(&self) -> usize {
        self.images.as_batch().size()
    }

    /// One image as image files hold it, `[S, S, 3]`; of one that is not there nothing.
    pub(super) fn interleaved(&self, index: usize) -> Vec<u8> {
        let image = self.images.as_batch().to_rgb_image(index);
        image.map_or_else(Vec::new, |image| image.data().to_vec())
    }
}

/// One image of the batch.
#[derive(Serialize)]
pub(super) struct Sample {
    /// Key of the sample, or path of the file.
    pub(super) key: String,
    /// The shard it lies in; nothing for a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<String>,
    /// Where it lies in the (decompressed) shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset_bytes: Option<u64>,
    /// Size of the upright picture, in pixels.
    pub(super) width: u32,
    pub(super) height: u32,
    /// The region that was resized to the square.
    pub(super) crop: Crop,
    pub(super) mirrored: bool,
    /// The captions that the model sees.
    pub(super) captions: Vec<Caption>,
    /// All captions of the sample, as stored.
    pub(super) all_captions: Vec<String>,
}

impl Sample {
    pub(super) fn set_view(&mut self, source: &SourceView) {
        let CropBox {
            x,
            y,
            width,
            height,
        } = source.view.crop;
        self.width = source.width;
        self.height = source.height;
        self.mirrored = source.view.mirrored;
        self.crop = Crop {
            x,
            y,
            width,
            height,
        };
    }

    /// Whether the whole picture was resized.
    pub(super) fn is_whole(&self) -> bool {
        (self.crop.width, self.crop.height) == (self.width, self.height)
    }
}

/// A region of a picture, in pixels from its upper left corner.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Crop {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// A caption that the model sees.
#[derive(Serialize)]
pub(super) struct Caption {
    /// After the caption processor.
    pub(super) text: String,
    /// Which of all captions of the sample it is; nothing where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    /// Without a tokenizer there are none.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) tokens: Option<Tokens>,
}

/// A row of token ids.
#[derive(Serialize)]
pub(super) struct Tokens {
    /// `[T]`, padding included.
    pub(super) token_ids: Vec<i64>,
    /// `[T]`: 1 for a token, 0 for padding.
    pub(super) attention_mask: Vec<i64>,
    /// The vocabulary's entries for them.
    pub(super) pieces: Vec<String>,
    /// Tokens of the caption for which the row has no room.
    pub(super) cut_tokens: usize,
}

impl Tokens {
    /// Id and piece of each token that is not padding.
    pub(super) fn used(&self) -> impl Iterator<Item = (i64, &str)> {
        let pairs = self.token_ids.iter().zip(&self.pieces);
        let used = pairs.zip(&self.attention_mask);
        used.filter(|(_, &mask)| mask != 0)
            .map(|((&id, piece), _)| (id, piece.as_str()))
    }

    /// Tokens of padding.
    pub(super) fn padding(&self) -> usize {
        self.attention_mask
            .iter()
            .filter(|&&mask| mask == 0)
            .count()
    }
}

/// What kind of token a piece is, for its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    Word,
    /// `[CLS]`, `[SEP]`, ...
    Special,
    /// `[UNK]`: a word that the vocabulary cannot spell.
    Unknown,
}

impl PieceKind {
    pub(super) fn of(piece: &str) -> PieceKind {
        match piece {
            "[UNK]" => PieceKind::Unknown,
            "[CLS]" | "[SEP]" | "[PAD]" | "[MASK]" | "[DEC]" => PieceKind::Special,
            _ => PieceKind::Word,
        }
    }
}

/// A bad sample, or a file that is no usable image.
#[derive(Serialize)]
pub(super) struct Skipped {
    pub(super) key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offset_bytes: Option<u64>,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// `SHARD#KEY: REASON: what is wrong`
impl Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shard) = &self.shard {
            write!(f, "{shard}#")?;
        }
        write!(f, "{}: {}: {}", self.key, self.reason, self.message)
    }
}

impl From<SkippedSample> for Skipped {
    fn from(skipped: SkippedSample) -> Skipped {
        Skipped {
            key: match skipped.sample {
                Some(_) => skipped.key,
                None => "(the rest of the shard)".to_string(),
            },
            shard: Some(skipped.shard),
            offset_bytes: Some(skipped.offset_bytes),
            reason: skipped.reason.name(),
            message: skipped.message,
        }
    }
}

/// Captions to token ids and back to words, with the settings of a loader.
pub(super) struct TextStage {
    pub(super) processor: CaptionProcessor,
    /// Without one, only the words of captions are shown.
    pub(super) tokenizer: Option<std::sync::Arc<CaptionTokenizer>>,
    pub(super) text_len: usize,
}

impl TextStage {
    /// A caption as the model sees it, and its tokens, which are read from `row` where the loader has
    /// made them already.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(super) fn caption(
        &self,
        text: String,
        stored: &[String],
        row: Option<(&[i64], &[i64])>,
    ) -> Result<Caption, PipelineError> {
        let mut all = stored.iter();
        let index = all.position(|stored| self.processor.process(stored) == text);
        let tokens = match &self.tokenizer {
            Some(tokenizer) => Some(self.tokens(tokenizer, &text, row)?),
            None => None,
        };
        Ok(Caption {
            text,
            index,
            tokens,
        })
    }

    fn tokens(
        &self,
        tokenizer: &CaptionTokenizer,
        text: &str,
        row: Option<(&[i64], &[i64])>,
    ) -> Result<Tokens, PipelineError> {
        let encode = |len: usize| {
            let (mut ids, mut mask) = (vec![0; len], vec![0; len]);
            let encoded = tokenizer.encode(text, &mut ids, &mut mask);
            encoded.map(|()| (ids, mask))
        };
        let (token_ids, attention_mask) = match row {
            Some((ids, mask)) => (ids.to_vec(), mask.to_vec()),
            None => encode(self.text_len)?,
        };
        let count = |mask: &[i64]| mask.iter().filter(|&&mask| mask != 0).count();
        let kept = count(&attention_mask);
        let all = match kept < attention_mask.len() {
            true => kept,
            // A character gives three tokens at most: a Hangul syllable is taken apart.
            false => count(&encode(3 * text.chars().count() + 2)?.1),
        };
        let pieces = token_ids.iter().map(|&id| match tokenizer.entry(id) {
            Some(piece) => piece.to_string(),
            None => format!("<{id}>"),
        });
        Ok(Tokens {
            pieces: pieces.collect(),
            cut_tokens: all.saturating_sub(kept),
            token_ids,
            attention_mask,
        })
    }
}
