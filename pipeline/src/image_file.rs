//! Image files as evaluation sees them: the pixels that the same image has in a shard.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::augment::SampleRng;
use crate::config::LoaderConfig;
use crate::error::PipelineError;
use crate::image_stage::{ImageSettings, ImageStage};
use crate::pixels::PlanarRgb;

/// An image file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct ImageFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub message: String,
}

/// Reads image files.
#[derive(Debug)]
pub struct ImageReader {
    settings: ImageSettings,
    max_bytes: u64,
}

impl ImageReader {
    /// A reader that decodes as a loader with these settings does in
    /// [evaluation](LoaderConfig::for_evaluation): the same size, limits and treatment of truncated
    /// images. Files of more than `max_sample_bytes` are refused.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for a size that cannot work.
    pub fn new(config: &LoaderConfig) -> Result<ImageReader, PipelineError> {
        Ok(ImageReader {
            settings: ImageSettings::new(&config.clone().for_evaluation())?,
            max_bytes: config.max_sample_bytes,
        })
    }

    /// Side of the images that come out, in pixels.
    pub fn image_size(&self) -> usize {
        self.settings.size()
    }

    /// Reads one file.
    ///
    /// # Errors
    /// [`ImageFileError`] naming the file and what is wrong with it.
    pub fn read(&self, path: &Path) -> Result<PlanarRgb, ImageFileError> {
        self.read_with(&mut self.settings.stage(), path)
    }

    /// Reads files on the threads of the pool that this is called in, by default all cores: one result
    /// each, in order.
    pub fn read_all(&self, paths: &[PathBuf]) -> Vec<Result<PlanarRgb, ImageFileError>> {
        let paths = paths.into_par_iter();
        paths
            .map_init(
                || self.settings.stage(),
                |stage, path| self.read_with(stage, path),
            )
            .collect()
    }

    fn read_with(&self, stage: &mut ImageStage, path: &Path) -> Result<PlanarRgb, ImageFileError> {
        let unusable = |message: String| ImageFileError {
            path: path.to_owned(),
            message,
        };
        let bytes = self.bytes(path).map_err(unusable)?;
        let mut pixels = stage.blank();
        // The evaluation transform draws nothing.
        let mut rng = SampleRng::new(0, 0, 0, 0);
        let opened = stage.open(&bytes);
        opened
            .and_then(|image| stage.render(&image, &mut rng, pixels.as_mut()))
            .map_err(|error| unusable(error.to_string()))?;
        Ok(pixels)
    }

    fn bytes(&self, path: &Path) -> Result<Vec<u8>, String> {
        let cannot_read = |error: std::io::Error| format!("cannot be read: {error}");
        let mut bytes = Vec::new();
        File::open(path)
            .map_err(cannot_read)?
            .take(self.max_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(cannot_read)?;
        if bytes.is_empty() {
            return Err("is empty".into());
        }
        if bytes.len() as u64 > self.max_bytes {
            return Err(format!(
                "has more than {} bytes, the setting data.max_sample_bytes",
                self.max_bytes
            ));
        }
        Ok(bytes)
    }
}
