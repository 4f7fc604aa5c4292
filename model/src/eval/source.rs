use qf_pipeline::Loader;
use tch::Device;

use crate::error::ModelError;
use crate::host::{upload, DeviceBatch};

/// Images of an evaluation with all their captions, on the device.
#[derive(Debug)]
pub struct EvalBatch {
    /// `[B, 3, S, S]` images, `[N, T]` ids and mask.
    pub input: DeviceBatch,
    /// `[N]`: which image of the batch each caption belongs to.
    pub caption_image: Vec<u32>,
}

/// Where evaluation takes its images and captions from.
pub trait EvalSource {
    /// The next images with their captions, or `None` after the last.
    ///
    /// # Errors
    /// Whatever stops the source; [`ModelError::Torch`] when the device is out of memory.
    fn next_batch(&mut self, device: Device) -> Result<Option<EvalBatch>, ModelError>;

    /// Samples that could not be used, so far.
    fn skipped(&self) -> u64;
}

/// Shards; the loader has to be configured
/// [for evaluation](qf_pipeline::LoaderConfig::for_evaluation).
impl EvalSource for Loader {
    fn next_batch(&mut self, device: Device) -> Result<Option<EvalBatch>, ModelError> {
        let Some(batch) = Loader::next_batch(self)? else {
            return Ok(None);
        };
        Ok(Some(EvalBatch {
            input: upload(&batch, device)?,
            caption_image: batch.caption_image.clone(),
        }))
    }

    fn skipped(&self) -> u64 {
        self.state().counters.skipped_total()
    }
}
