//! What the tests of the image path share.
#![allow(dead_code)] // Each test binary uses a part.

#[path = "../../../tests/test_data.rs"]
pub(crate) mod test_data;

use std::path::{Path, PathBuf};

use qf_pipeline::augment::{CropBox, ImageProcessor, ImageTransform, SampleRng, View};
use qf_pipeline::decode::{
    DecodeError, DecodeLimits, DecodeQuality, Decoder, OnTruncated, RgbImage,
};
use qf_pipeline::pixels::PlanarRgb;

/// The JPEG files of the shared photographs.
pub(crate) fn photographs(test: &str) -> Vec<PathBuf> {
    let folders = ["data/pairs", "data/photos"];
    let mut found: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| test_data::find(test, folder))
        .flat_map(|folder| files(&folder))
        .filter(|path| path.extension().is_some_and(|e| e == "jpg" || e == "jpeg"))
        .collect();
    found.sort();
    found
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The parts of the loader's image stage, with any mix of transform and quality.
pub(crate) struct ImagePath {
    pub(crate) decoder: Decoder,
    pub(crate) processor: ImageProcessor,
    pub(crate) quality: DecodeQuality,
}

impl ImagePath {
    pub(crate) fn new(transform: ImageTransform, quality: DecodeQuality) -> ImagePath {
        ImagePath {
            decoder: Decoder::new(DecodeLimits::default(), OnTruncated::Error),
            processor: ImageProcessor::new(transform).expect("valid"),
            quality,
        }
    }

    /// Draws a view as sample `number` and writes it to `out`.
    pub(crate) fn run(
        &mut self,
        bytes: &[u8],
        number: u32,
        out: &mut PlanarRgb,
    ) -> Result<View, DecodeError> {
        let opened = self.decoder.open(bytes)?;
        let mut rng = SampleRng::new(1, 0, 0, number);
        let transform = *self.processor.transform();
        let view = transform.draw(opened.width(), opened.height(), &mut rng);
        self.processor.render_opened(
            &mut self.decoder,
            &opened,
            &view,
            self.quality,
            out.as_mut(),
        )?;
        Ok(view)
    }

    /// The same view of the whole picture.
    pub(crate) fn reference(&mut self, whole: &RgbImage, view: &View) -> PlanarRgb {
        let mut out = self.processor.blank();
        self.processor.render(whole, view, out.as_mut());
        out
    }
}

/// Peak signal-to-noise ratio of 8-bit samples, in dB.
pub(crate) fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a
        .iter()
        .zip(b)
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
}

/// Puts an EXIF block with this orientation behind the start-of-image marker.
pub(crate) fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif =
        b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    [&jpeg[..2], &exif, &jpeg[2..]].concat()
}

pub(crate) fn whole(width: u32, height: u32) -> CropBox {
    CropBox {
        x: 0,
        y: 0,
        width,
        height,
    }
}
