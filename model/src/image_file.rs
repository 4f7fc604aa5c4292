//! Image files as evaluation sees them: upright RGB, resized to the square of the tower.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use qf_pipeline::augment::{ImageProcessor, ImageTransform, SampleRng};
use qf_pipeline::decode::{decode_rgb, DecodeLimits};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::error::ModelError;

/// Reads image files.
#[derive(Clone, Debug)]
pub struct ImageReader {
    processor: ImageProcessor,
    limits: DecodeLimits,
    max_bytes: u64,
}

impl ImageReader {
    /// A reader of images that come out with sides of `image_size` pixels. Files of more than
    /// `max_bytes` bytes and images of more than `max_pixels` pixels are refused.
    ///
    /// # Errors
    /// [`ModelError::Pipeline`] for a size that cannot work.
    pub fn new(image_size: usize, max_bytes: u64, max_pixels: u64) -> Result<Self, ModelError> {
        let size = u32::try_from(image_size).unwrap_or(u32::MAX);
        Ok(ImageReader {
            processor: ImageProcessor::new(ImageTransform::eval(size))?,
            limits: DecodeLimits {
                max_pixels,
                ..DecodeLimits::default()
            },
            max_bytes,
        })
    }

    /// Side of the images that come out, in pixels.
    pub fn image_size(&self) -> usize {
        self.processor.transform().size() as usize
    }

    /// Reads one file: `[3, S, S]` u8, RGB.
    ///
    /// # Errors
    /// [`ModelError::ImageFile`] naming the file and what is wrong with it.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, ModelError> {
        let unusable = |message: String| ModelError::ImageFile {
            path: path.to_owned(),
            message,
        };
        let cannot_read = |error: std::io::Error| unusable(format!("cannot be read: {error}"));
        let mut bytes = Vec::new();
        File::open(path)
            .map_err(cannot_read)?
            .take(self.max_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(cannot_read)?;
        if bytes.is_empty() {
            return Err(unusable("is empty".into()));
        }
        if bytes.len() as u64 > self.max_bytes {
            return Err(unusable(format!(
                "has more than {} bytes, the setting data.max_sample_bytes",
                self.max_bytes
            )));
        }
        let image =
            decode_rgb(&bytes, &self.limits).map_err(|error| unusable(error.to_string()))?;
        let mut processor = self.processor.clone();
        let mut pixels = vec![0; processor.out_len()];
        // The evaluation transform draws nothing.
        let mut rng = SampleRng::new(0, 0, 0, 0);
        processor.process(&image, &mut rng, &mut pixels);
        Ok(pixels)
    }

    /// Reads files on all cores: one result each, in order.
    pub fn read_all(&self, paths: &[PathBuf]) -> Vec<Result<Vec<u8>, ModelError>> {
        paths.into_par_iter().map(|path| self.read(path)).collect()
    }
}
