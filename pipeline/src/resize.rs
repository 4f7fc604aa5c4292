//! Whole pictures at another size, for files that are written again. (Batches go through
//! [`crate::augment`].)

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use qf_codecs::ycc::{self, Picture420, Stored, Target};

use crate::augment::CropBox;
use crate::decode::orientation;
use crate::decode::{
    DecodeError, DecodeLimits, DecodeQuality, Decoder, OnTruncated, OpenedImage, RgbImage,
};

/// Decodes pictures and resizes them with a Lanczos filter of three lobes (PIL's `LANCZOS`); holds what
/// that needs from one to the next, so each worker keeps its own.
#[derive(Debug)]
pub struct PictureResizer {
    decoder: Decoder,
    resizer: Resizer,
    stored: Stored,
    components: ycc::Resizer,
}

/// A part of a resized picture, upright.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizedPart {
    /// Width and height of the whole picture once it is resized, in pixels, each at least 1.
    pub scaled: (u32, u32),
    /// First column and row of the part.
    pub origin: (u32, u32),
    /// Width and height of the part; it lies within the picture.
    pub size: (u32, u32),
}

impl PictureResizer {
    /// A resizer with these bounds; damaged and truncated pictures are errors.
    pub fn new(limits: DecodeLimits) -> PictureResizer {
        PictureResizer {
            decoder: Decoder::new(limits, OnTruncated::Error),
            resizer: Resizer::new(),
            stored: Stored::default(),
            components: ycc::Resizer::default(),
        }
    }

    /// Reads the header of a picture.
    ///
    /// # Errors
    /// As [`Decoder::open`].
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<OpenedImage<'a>, DecodeError> {
        self.decoder.open(bytes)
    }

    /// The decoder, for what it can do beside.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Decodes a picture upright at `size`, (width, height) in pixels, each at least 1. A JPEG is reduced
    /// while it is decoded where that leaves at least 1.5 times as many pixels along each side.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn decode(
        &mut self,
        picture: &OpenedImage<'_>,
        size: (u32, u32),
    ) -> Result<RgbImage, DecodeError> {
        let all = CropBox {
            x: 0,
            y: 0,
            width: picture.width(),
            height: picture.height(),
        };
        let as_it_is = size == (all.width, all.height);
        let quality = match as_it_is {
            true => DecodeQuality::Exact,
            false => DecodeQuality::Fast,
        };
        let smaller = size.0.min(size.1);
        let decoded = self.decoder.decode(picture, all, smaller, quality)?;
        let broken = || DecodeError::Broken {
            format: picture.format(),
            message: "its size changed on the way".into(),
        };
        let stored = decoded.turn.size(size);
        let pixels =
            TypedImageRef::<U8x3>::from_buffer(decoded.columns, decoded.rows, &decoded.pixels)
                .map_err(|_| broken())?;
        let CropBox {
            x,
            y,
            width,
            height,
        } = decoded.hull;
        let source = TypedCroppedImage::new(pixels, x, y, width, height).map_err(|_| broken())?;
        let mut data = buffer(stored).ok_or_else(broken)?;
        let mut target =
            TypedImage::<U8x3>::from_buffer(stored.0, stored.1, &mut data).map_err(|_| broken())?;
        let crop = decoded.crop;
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
            .crop(crop.left, crop.top, crop.width, crop.height);
        self.resizer
            .resize_typed(&source, &mut target, &options)
            .map_err(|_| broken())?;
        let turn = decoded.turn;
        let upright = RgbImage::new(stored.0, stored.1, data).ok_or_else(broken)?;
        Ok(orientation::apply(upright, turn))
    }

    /// Resizes a JPEG to components that can be encoded as they are ([`qf_codecs::encode`]), as
    /// [`PictureResizer::decode`] does its pixels, for less work. `None` for pictures that grow, for other formats,
    /// and for JPEGs whose components do not come whole: those that are not sequential, not of luma and
    /// chroma, or damaged.
    ///
    /// # Errors
    /// As [`Decoder::decode`], of a picture that is too large.
    pub fn components(
        &mut self,
        picture: &OpenedImage<'_>,
        part: &ResizedPart,
    ) -> Result<Option<&Picture420>, DecodeError> {
        let scaled = part.scaled;
        if scaled.0 > picture.width() || scaled.1 > picture.height() {
            return Ok(None);
        }
        let wanted = (scaled.0.min(scaled.1), DecodeQuality::Fast);
        let came = self
            .decoder
            .decode_components(picture, wanted, &mut self.stored)?;
        let Some(came) = came else {
            return Ok(None);
        };
        let turn = came.turn;
        let target = Target {
            scaled,
            origin: part.origin,
            size: part.size,
            transposed: turn.transposed,
            flipped: (turn.flip_columns, turn.flip_rows),
        };
        let resized = self.components.resize(&self.stored, came.content, &target);
        if came.reservation.is_some() {
            // Memory of a large picture is not kept.
            self.stored = Stored::default();
        }
        Ok(resized)
    }

    /// A picture at another size, (width, height) in pixels, each at least 1; `None` for one without pixels.
    pub fn resize(&mut self, picture: &RgbImage, size: (u32, u32)) -> Option<RgbImage> {
        let source =
            TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.data());
        let mut data = buffer(size)?;
        let mut target = TypedImage::<U8x3>::from_buffer(size.0, size.1, &mut data).ok()?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
        self.resizer
            .resize_typed(&source.ok()?, &mut target, &options)
            .ok()?;
        RgbImage::new(size.0, size.1, data)
    }
}

/// Black pixels of a picture of this size; `None` where there is no memory for them.
fn buffer((width, height): (u32, u32)) -> Option<Vec<u8>> {
    let bytes = u64::from(width) * u64::from(height) * 3;
    let bytes = usize::try_from(bytes).ok()?;
    let mut data = Vec::new();
    data.try_reserve_exact(bytes).ok()?;
    data.resize(bytes, 0);
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of two halves, red on the left, as PNG.
    fn halves(width: u32, height: u32) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(width, height, |x, _| {
            image::Rgb(if x < width / 2 {
                [250, 0, 0]
            } else {
                [0, 0, 250]
            })
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pictures_keep_what_they_show_at_any_size() {
        let bytes = halves(40, 20);
        let mut resizer = PictureResizer::new(DecodeLimits::default());
        let opened = resizer.open(&bytes).unwrap();
        assert_eq!(opened.format().name(), "PNG");
        for size in [(40, 20), (20, 10), (7, 30), (1, 1), (90, 45)] {
            let picture = resizer.decode(&opened, size).unwrap();
            assert_eq!((picture.width(), picture.height()), size);
            if size.0 > 4 {
                let first = &picture.data()[..3];
                let last = &picture.data()[(size.0 as usize - 1) * 3..][..3];
                assert!(first[0] > 200 && first[2] < 50, "{first:?}");
                assert!(last[2] > 200 && last[0] < 50, "{last:?}");
            }
            let again = resizer.resize(&picture, (8, 8)).unwrap();
            assert_eq!(again.data().len(), 8 * 8 * 3);
        }
    }
}
