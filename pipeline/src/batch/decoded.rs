//! A sample on its way from its shard to a batch, its image decoded.

use super::Pixels;
use crate::augment::View;
use crate::sample::{Member, SampleId};
use crate::text::TokenRows;

/// What the image of a sample was, and what is shown of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceView {
    /// Width of the upright picture in pixels, as its header says.
    pub width: u32,
    /// Height of the upright picture in pixels.
    pub height: u32,
    /// The region of it that was resized to S × S, and whether it was mirrored.
    pub view: View,
}

/// A sample after decoding, augmentation and tokenisation: what collation makes batches of.
#[derive(Debug)]
pub struct DecodedSample {
    /// Where it comes from.
    pub id: SampleId,
    /// `[3, S, S]` u8, RGB: the processed image before normalisation; as a rule already in the row
    /// of its batch.
    pub(crate) pixels: Pixels,
    /// Which part of which picture the pixels show.
    pub view: SourceView,
    /// Which image it shows, where [`image_ids`](crate::LoaderConfig::image_ids) says how to tell.
    pub image_id: Option<i64>,
    /// The members that were asked for beside image and captions.
    pub members: Vec<Member>,
    /// `[N]` captions in use, after the caption processor; one, or all of the sample's.
    pub captions: Vec<String>,
    /// All captions as stored, if [`LoaderBuilder::keep_captions`](crate::loader::LoaderBuilder::keep_captions)
    /// was called.
    pub stored_captions: Option<Vec<String>>,
    /// A row for each of `captions`.
    pub tokens: TokenRows,
}
