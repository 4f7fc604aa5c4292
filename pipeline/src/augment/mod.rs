//! Crop, resize, flip, normalise: pure functions of pixels and a seeded generator.
//!
//! The processors of LAVIS' BLIP-2 stage 1 (`blip2_image_train`, `blip_image_eval`): train takes a
//! `RandomResizedCrop` resized to S × S and flips half of the pictures; eval resizes the whole
//! picture to S × S, whatever its aspect ratio. Resizing is PIL's antialiased bicubic (a = −0.5)
//! on 8-bit samples. Normalisation is a separate step, so that a batch can travel as u8.

mod crop;
mod rng;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::decode::{orientation::mirror_rows, RgbImage};
use crate::error::PipelineError;

pub use crop::{random_resized_crop, CropBox};
pub use rng::SampleRng;

/// Mean of each channel (R, G, B; samples scaled to 0–1) that CLIP's and BLIP-2's towers expect.
pub const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];

/// Standard deviation of each channel, likewise.
pub const CLIP_STD: [f32; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Longest side of a processed image, a guard against a mistyped setting.
pub const MAX_IMAGE_SIZE: u32 = 4096;

/// What is done with each picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ImageTransform {
    /// Random crop, resized to S × S, and a random flip.
    Train {
        /// Side S of the result, in pixels.
        size: u32,
        /// Least and greatest share of the picture's area that a crop covers.
        scale: (f64, f64),
        /// Least and greatest width / height of a crop.
        ratio: (f64, f64),
        /// Probability of mirroring left to right.
        flip_probability: f64,
    },
    /// The whole picture, resized to S × S without keeping its aspect ratio.
    Eval {
        /// Side S of the result, in pixels.
        size: u32,
    },
}

impl ImageTransform {
    /// The stage-1 training transform: scale 0.5–1, ratio 3/4–4/3, flips half of the pictures.
    pub fn train(size: u32) -> ImageTransform {
        ImageTransform::Train {
            size,
            scale: (0.5, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip_probability: 0.5,
        }
    }

    /// The evaluation transform.
    pub fn eval(size: u32) -> ImageTransform {
        ImageTransform::Eval { size }
    }

    /// Side S of the result, in pixels.
    pub fn size(&self) -> u32 {
        match *self {
            ImageTransform::Train { size, .. } | ImageTransform::Eval { size } => size,
        }
    }

    /// Draws what this transform does with a picture of this (upright) size.
    pub fn draw(&self, width: u32, height: u32, rng: &mut SampleRng) -> View {
        match *self {
            ImageTransform::Train {
                scale,
                ratio,
                flip_probability,
                ..
            } => View {
                crop: random_resized_crop(width, height, scale, ratio, rng),
                mirrored: rng.coin(flip_probability),
            },
            ImageTransform::Eval { .. } => View {
                crop: CropBox {
                    x: 0,
                    y: 0,
                    width,
                    height,
                },
                mirrored: false,
            },
        }
    }

    fn check(&self) -> Result<(), PipelineError> {
        let config = |setting, message: String| Err(PipelineError::Config { setting, message });
        let size = self.size();
        if !(1..=MAX_IMAGE_SIZE).contains(&size) {
            return config(
                "image_size",
                format!("{size} is not within 1 to {MAX_IMAGE_SIZE} pixels"),
            );
        }
        if let ImageTransform::Train {
            scale,
            ratio,
            flip_probability,
            ..
        } = *self
        {
            for (setting, (low, high)) in [("crop_scale", scale), ("crop_ratio", ratio)] {
                if !(low > 0.0 && low <= high && high.is_finite()) {
                    return config(
                        setting,
                        format!("({low}, {high}) is not a range of positive numbers"),
                    );
                }
            }
            if !(0.0..=1.0).contains(&flip_probability) {
                return config(
                    "flip_probability",
                    format!("{flip_probability} is not within 0 to 1"),
                );
            }
        }
        Ok(())
    }
}

/// What was drawn for one visit of one picture: a region of the upright picture, and whether it
/// is mirrored. It depends on the picture's size alone, not on its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The region that is resized to S × S.
    pub crop: CropBox,
    /// Whether the result is mirrored left to right.
    pub mirrored: bool,
}

/// Applies an [`ImageTransform`]; holds the buffers it needs, so each worker keeps its own.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    transform: ImageTransform,
    resizer: Resizer,
}

impl ImageProcessor {
    /// A processor for this transform.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Config`] for a size, range or probability that cannot work.
    pub fn new(transform: ImageTransform) -> Result<ImageProcessor, PipelineError> {
        transform.check()?;
        Ok(ImageProcessor {
            transform,
            resizer: Resizer::new(),
        })
    }

    /// The transform it applies.
    pub fn transform(&self) -> &ImageTransform {
        &self.transform
    }

    /// Length of a processed picture in bytes: S · S · 3.
    pub fn out_len(&self) -> usize {
        let size = self.transform.size() as usize;
        size * size * 3
    }

    /// Draws a view of `image` and writes it to `out`, `[S, S, 3]` u8, RGB, row major.
    ///
    /// # Panics
    ///
    /// If `out` is not [`ImageProcessor::out_len`] bytes long.
    pub fn process(&mut self, image: &RgbImage, rng: &mut SampleRng, out: &mut [u8]) {
        let view = self.transform.draw(image.width(), image.height(), rng);
        self.render(image, &view, out);
    }

    /// Writes this view of `image` to `out`, `[S, S, 3]` u8. Nothing outside the crop has an
    /// influence: it is cropped first, then resized, as torchvision does.
    ///
    /// # Panics
    ///
    /// If `out` is not [`ImageProcessor::out_len`] bytes long, or the crop is not within `image`.
    pub fn render(&mut self, image: &RgbImage, view: &View, out: &mut [u8]) {
        assert_eq!(out.len(), self.out_len(), "length of the output");
        let size = self.transform.size();
        let CropBox {
            x,
            y,
            width,
            height,
        } = view.crop;
        let source =
            TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.data())
                .expect("an RgbImage holds width × height × 3 bytes");
        let source = TypedCroppedImage::new(source, x, y, width, height)
            .expect("the crop is within the image");
        let mut target = TypedImage::<U8x3>::from_buffer(size, size, out)
            .expect("the output holds S × S × 3 bytes");
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        self.resizer
            .resize_typed(&source, &mut target, &options)
            .expect("a crop box of the whole view is valid");
        if view.mirrored {
            mirror_rows(out, size as usize * 3);
        }
    }
}

/// Normalises `[S, S, 3]` u8 pixels to `[3, S, S]` f32: `(x / 255 − mean) / std` per channel in
/// f32, to the bit what torchvision's `ToTensor` and `Normalize` give with CLIP's constants.
///
/// # Panics
///
/// If `out` is not as long as `pixels`, or `pixels` are no whole RGB triples.
pub fn normalise_to_chw(pixels: &[u8], out: &mut [f32]) {
    assert_eq!(pixels.len(), out.len(), "length of the output");
    assert_eq!(pixels.len() % 3, 0, "RGB triples");
    static TABLE: [[f32; 256]; 3] = normalisation_table();
    let (red, rest) = out.split_at_mut(pixels.len() / 3);
    let (green, blue) = rest.split_at_mut(pixels.len() / 3);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((r, g), b)) in pixels.chunks_exact(3).zip(planes) {
        *r = TABLE[0][usize::from(pixel[0])];
        *g = TABLE[1][usize::from(pixel[1])];
        *b = TABLE[2][usize::from(pixel[2])];
    }
}

const fn normalisation_table() -> [[f32; 256]; 3] {
    let mut table = [[0.0; 256]; 3];
    let mut channel = 0;
    while channel < 3 {
        let mut value = 0;
        while value < 256 {
            let scaled = value as f32 / 255.0;
            table[channel][value] = (scaled - CLIP_MEAN[channel]) / CLIP_STD[channel];
            value += 1;
        }
        channel += 1;
    }
    table
}
