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
mod buffers;
mod crop_box;
mod decoder;
mod error;
mod gif;
mod jpeg;
mod limits;
mod memory;
mod metadata;
mod opened;
mod options;
pub(crate) mod orientation;
mod png;
mod samples;
mod tags;
#[cfg(test)]
mod tests;
mod tiff;
mod webp;

pub use crop_box::CropBox;
pub use decoder::{decode_rgb, DecodedCrop, Decoder};
pub(crate) use decoder::{DecodedStrip, StripRows};
pub use error::DecodeError;
pub use limits::DecodeLimits;
pub use memory::DecodeMemory;
pub use opened::OpenedImage;
pub use options::{DecodeQuality, OnTruncated};

pub use crate::image_format::{is_image_extension, ForeignFormat, ImageFormat};
pub use crate::pixels::RgbImage;
