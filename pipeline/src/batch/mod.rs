//! Batches in reusable host memory.

mod buffer;
mod decoded;
mod rows;

pub(crate) use buffer::{BufferPool, PooledBuffer};
pub use buffer::{HostAllocator, HostBuffer, PlainAllocator};
pub use decoded::{DecodedSample, SourceView};
pub(crate) use rows::{EpochRows, Pixels};

use crate::pixels::PlanarBatch;
use crate::resume::{Counters, LoaderState};
use crate::sample::{Member, SampleId};
use crate::text::TokenRows;

/// A batch of `B` images with `N` captions, in host memory.
///
/// Under [`CaptionChoice::Draw`](crate::config::CaptionChoice) `N = B` and row `i` belongs to image
/// `i`; under `All` an image has one row per caption. Dropping a batch gives its pixel buffer back
/// to the loader.
pub struct Batch {
    pub(crate) pixels: PooledBuffer,
    /// Number of images `B`.
    pub batch_size: usize,
    /// Side `S` of the square images, in pixels.
    pub image_size: usize,
    /// Token ids and mask of the captions, `[N, T]` each.
    pub tokens: TokenRows,
    /// `[N]`: which image of the batch a caption row belongs to.
    pub caption_image: Vec<u32>,
    /// `[N]` captions, after the caption processor.
    pub captions: Vec<String>,
    /// `[B]`: where each image comes from.
    pub ids: Vec<SampleId>,
    /// `[B]`: all captions of each image's sample as stored, if
    /// [`LoaderBuilder::keep_captions`](crate::loader::LoaderBuilder::keep_captions) was called; else empty.
    pub stored_captions: Vec<Vec<String>>,
    /// `[B]`: which part of which picture each image shows.
    pub views: Vec<SourceView>,
    /// `[B]`: which image each row shows, where [`image_ids`](crate::LoaderConfig::image_ids) says how to
    /// tell; else empty.
    pub image_ids: Vec<i64>,
    /// `[B]`: the members of each image's sample that
    /// [`extra_members`](crate::LoaderConfig::extra_members) asks for, as far as it has them.
    pub members: Vec<Vec<Member>>,
    /// Epoch of its first image, from 0.
    pub epoch: u64,
    /// Saved with a checkpoint, this continues with the batch after this one.
    pub state: LoaderState,
}

impl Batch {
    /// The images: crops as the processor left them, not yet normalised.
    ///
    /// Normalisation is `(x / 255 - mean) / std` with [`crate::augment::CLIP_MEAN`] and
    /// [`crate::augment::CLIP_STD`]; the trainer does it on the device, which quarters the copy.
    ///
    /// # Panics
    /// If its public sizes were changed to ones that its memory does not hold.
    pub fn pixels(&self) -> PlanarBatch<'_> {
        let len = self.batch_size * 3 * self.image_size * self.image_size;
        PlanarBatch::new(self.image_size, &self.pixels.as_slice()[..len])
            .expect("that many images of that size")
    }

    /// Counters of the run up to and including this batch.
    pub fn counters(&self) -> &Counters {
        &self.state.counters
    }
}
