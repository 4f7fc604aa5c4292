//! Encoded image to pixels: the one path, for samples of shards and for files, in training, validation
//! and evaluation.

use std::time::{Duration, Instant};

use crate::augment::{ImageProcessor, ImageTransform, SampleRng, View};
use crate::config::LoaderConfig;
use crate::decode::{DecodeError, DecodeLimits, DecodeQuality, Decoder, OnTruncated, OpenedImage};
use crate::error::PipelineError;
use crate::pixels::{PlanarRgb, PlanarRgbMut};

/// How images are decoded and transformed: what of a loader's settings bears on pixels. Shared by the
/// threads, each of which has an [`ImageStage`].
#[derive(Clone, Debug)]
pub struct ImageSettings {
    transform: ImageTransform,
    quality: DecodeQuality,
    limits: DecodeLimits,
    on_truncated: OnTruncated,
}

impl ImageSettings {
    /// Those of a loader with these settings.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for a size, range or probability that cannot work.
    pub fn new(config: &LoaderConfig) -> Result<ImageSettings, PipelineError> {
        let transform = config.image_transform();
        transform.check()?;
        Ok(ImageSettings {
            transform,
            quality: config.effective_decode_quality(),
            limits: config.decode_limits(),
            on_truncated: config.on_truncated,
        })
    }

    /// A stage with these settings.
    pub fn stage(&self) -> ImageStage {
        ImageStage {
            decoder: Decoder::new(self.limits.clone(), self.on_truncated),
            processor: ImageProcessor::of_checked(self.transform),
            quality: self.quality,
        }
    }

    /// Side S of the images that come out, in pixels.
    pub fn size(&self) -> usize {
        self.transform.size() as usize
    }
}

/// Decodes an image and applies the transform. It holds the buffers that this needs, so each thread has
/// its own.
#[derive(Debug)]
pub struct ImageStage {
    decoder: Decoder,
    processor: ImageProcessor,
    quality: DecodeQuality,
}

/// What was done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What was drawn for it.
    pub view: View,
    /// Time that went into decoding.
    pub decoding: Duration,
    /// Time that went into resizing, in turns with it.
    pub augmenting: Duration,
}

impl ImageStage {
    /// Side S of the images that come out, in pixels.
    pub fn size(&self) -> usize {
        self.processor.size()
    }

    /// Memory for one image that comes out.
    pub fn blank(&self) -> PlanarRgb {
        self.processor.blank()
    }

    /// Reads the header of an image.
    ///
    /// # Errors
    /// Those of [`Decoder::open`].
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<OpenedImage<'a>, DecodeError> {
        self.decoder.open(bytes)
    }

    /// Draws a view of an image, decodes it and writes it to `out`.
    ///
    /// # Errors
    /// Those of [`Decoder::decode`]; `out` then holds nothing of use.
    ///
    /// # Panics
    /// If `out` has another side than [`ImageStage::size`].
    pub fn render(
        &mut self,
        image: &OpenedImage<'_>,
        rng: &mut SampleRng,
        out: PlanarRgbMut<'_>,
    ) -> Result<Rendered, DecodeError> {
        let start = Instant::now();
        let ImageStage {
            decoder, processor, ..
        } = self;
        let view = processor
            .transform()
            .draw(image.width(), image.height(), rng);
        let augmenting = processor.render_opened(decoder, image, &view, self.quality, out)?;
        Ok(Rendered {
            view,
            decoding: start.elapsed().saturating_sub(augmenting),
            augmenting,
        })
    }
}
