//! Compressed image bytes to 8-bit RGB, whole or in part: pure functions, `bytes → pixels or typed
//! error`.
//!
//! The format is told by content, never by file name. What a reader of Python's PIL gets from
//! `ImageOps.exif_transpose(Image.open(f)).convert("RGB")` is the reference: grey is replicated,
//! alpha is dropped (not composited), palettes are looked up, CMYK and YCCK JPEGs follow Adobe's
//! inverted convention, orientation in EXIF or XMP is applied. It differs on purpose in these:
//!
//! - 16-bit greyscale keeps its high byte as 16-bit colour does (PIL clips at 255), and a 12-bit JPEG
//!   its high eight bits (PIL refuses it).
//! - A JPEG without its end marker, or with coded data that does not decode, is an error unless
//!   [`OnTruncated::Grey`] is asked for, where PIL may deliver a partly grey picture.
//! - Kinds of TIFF that PIL converts with a colour profile or clips (CIE L*a*b*, floating point) are
//!   refused by name.
//! - Sizes are checked on the header, before anything is allocated, and what decoding takes is taken
//!   from a [`DecodeMemory`] that decoders share.
//!
//! A [`Decoder`] works in two steps, so that a crop can be drawn in between: [`Decoder::open`]
//! reads the header, [`Decoder::decode`] decodes the crop and nothing else, as far as the format
//! lets it:
//!
//! | format | library | a crop costs | beside its pixels it takes |
//! |---|---|---|---|
//! | JPEG | libjpeg-turbo and `qf-codecs` | entropy decoding down to its last row; the rest for the crop alone, at 1/8, 2/8, 4/8 or full size | of progressive pictures 2 bytes a coefficient |
//! | WebP | libwebp | all of it but colour conversion, down to its last row | lossless 4 bytes a pixel, alpha 2 |
//! | PNG | `png` | all rows down to its last | interlaced all rows, as stored |
//! | GIF | `weezl` | the frame | interlaced 1 byte a pixel of the frame |
//! | TIFF | `weezl`, `flate2`, `zstd`, `fax`, libjpeg-turbo | its strips down to its last row, its tiles | a row of tiles; a strip or tile of JPEG data |
//! | BMP | `image` | the whole picture | all rows, 1 to 4 bytes a pixel |
//!
//! Profiles and texts are not looked at, but for an orientation.

mod bmp;
mod decoder;
mod error;
mod format;
mod gif;
mod guard;
mod jpeg;
mod limits;
mod memory;
mod metadata;
mod opened;
pub(crate) mod orientation;
mod png;
mod samples;
mod tags;
#[cfg(test)]
mod tests;
mod tiff;
mod webp;

use qf_codecs::jpeg::Scale;
use serde::{Deserialize, Serialize};

pub use decoder::{DecodedCrop, Decoder};
pub(crate) use decoder::{DecodedStrip, StripRows};
pub use error::DecodeError;
pub use format::{is_image_extension, ForeignFormat, ImageFormat};
pub use limits::DecodeLimits;
pub use memory::DecodeMemory;
pub use opened::OpenedImage;

/// Receives the rows of a region from the top, RGB.
type RowSink<'a> = &'a mut dyn FnMut(&[u8]);

/// How far a JPEG may be reduced while it is decoded, before it is resized to S × S pixels.
///
/// The inverse transform can deliver 1/8, 2/8 or 4/8 of the size for less work. The smallest of
/// them is taken whose crop is still at least a factor k larger than S on both sides. The
/// signal-to-noise ratios given here are against the decode at full size, and hold on every
/// photograph of the tests at S = 224. They depend on the content: fine detail suffers more, and at
/// a smaller S photographs of the same size have more of it (42 dB at S = 96, k = 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeQuality {
    /// Never reduced: the pixels of a whole decode.
    Exact,
    /// k = 2.4: at least 50 dB. (2 gives 49.0 dB on one photograph.)
    #[default]
    Balanced,
    /// k = 1.5: at least 40 dB. (1.25 gives 36.4 dB on one photograph.)
    Fast,
}

impl DecodeQuality {
    /// The scale at which to decode a crop of this size that will be resized to `size` × `size`.
    fn scale(self, crop: (u32, u32), size: u32) -> Scale {
        let factor = match self {
            DecodeQuality::Exact => return Scale::Full,
            DecodeQuality::Balanced => 2.4,
            DecodeQuality::Fast => 1.5,
        };
        let needed = f64::from(size) * factor;
        let enough =
            |scale: &Scale| f64::from(crop.0.min(crop.1)) / f64::from(scale.reduction()) >= needed;
        Scale::ALL.into_iter().find(enough).unwrap_or(Scale::Full)
    }
}

/// What becomes of an image whose data ends early or does not decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTruncated {
    /// An error. Damage below the crop is not looked at, but the end of the data must be there: a
    /// JPEG's end marker; all rows of other formats, though not what follows them.
    #[default]
    Error,
    /// What is missing is grey in a JPEG, black in a PNG, in a GIF what its frame does not cover, as
    /// PIL does it with `LOAD_TRUNCATED_IMAGES`. Of other formats still an error.
    Grey,
}

/// An upright 8-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    /// `[H, W, 3]`
    data: Vec<u8>,
}

impl RgbImage {
    /// Takes over `data`, `[height, width, 3]` u8, row major; `None` if its length is another, or
    /// if a side is zero.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<RgbImage> {
        let expected = u64::from(width) * u64::from(height);
        let fits = expected > 0 && expected.checked_mul(3) == u64::try_from(data.len()).ok();
        fits.then_some(RgbImage {
            width,
            height,
            data,
        })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[H, W, 3]` u8, RGB, row major.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// Zeroed memory for a decoder.
///
/// # Errors
/// [`DecodeError::NoMemory`].
fn memory_for(format: ImageFormat, bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut memory = Vec::new();
    grow(&mut memory, format, bytes)?;
    Ok(memory)
}

/// Makes memory at least this long.
fn grow(memory: &mut Vec<u8>, format: ImageFormat, bytes: usize) -> Result<(), DecodeError> {
    if memory.len() < bytes {
        memory
            .try_reserve_exact(bytes - memory.len())
            .map_err(|_| DecodeError::NoMemory { format, bytes })?;
        memory.resize(bytes, 0);
    }
    Ok(())
}

/// Decodes an image to upright RGB.
///
/// # Errors
///
/// [`DecodeError`]: bytes of no known format, a damaged or truncated image, one beyond `limits`.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    Decoder::new(limits.clone(), OnTruncated::Error).decode_whole(bytes)
}
