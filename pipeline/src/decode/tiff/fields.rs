//! The tags of a TIFF directory, and errors that name the format.

use super::super::tags::Directory;
use super::super::{DecodeError, ImageFormat};

/// The tags that are looked at.
pub(super) mod tag {
    pub(in super::super) const WIDTH: u16 = 256;
    pub(in super::super) const HEIGHT: u16 = 257;
    pub(in super::super) const BITS: u16 = 258;
    pub(in super::super) const COMPRESSION: u16 = 259;
    pub(in super::super) const PHOTOMETRIC: u16 = 262;
    pub(in super::super) const FILL_ORDER: u16 = 266;
    pub(in super::super) const STRIP_OFFSETS: u16 = 273;
    pub(in super::super) const SAMPLES: u16 = 277;
    pub(in super::super) const ROWS_PER_STRIP: u16 = 278;
    pub(in super::super) const STRIP_BYTES: u16 = 279;
    pub(in super::super) const PLANAR: u16 = 284;
    pub(in super::super) const T4_OPTIONS: u16 = 292;
    pub(in super::super) const PREDICTOR: u16 = 317;
    pub(in super::super) const COLOUR_MAP: u16 = 320;
    pub(in super::super) const TILE_WIDTH: u16 = 322;
    pub(in super::super) const TILE_HEIGHT: u16 = 323;
    pub(in super::super) const TILE_OFFSETS: u16 = 324;
    pub(in super::super) const TILE_BYTES: u16 = 325;
    pub(in super::super) const EXTRA_SAMPLES: u16 = 338;
    pub(in super::super) const SAMPLE_FORMAT: u16 = 339;
    pub(in super::super) const JPEG_TABLES: u16 = 347;
    pub(in super::super) const XMP: u16 = 700;
}

pub(super) fn directory(bytes: &[u8]) -> Result<Directory<'_>, DecodeError> {
    Directory::first(bytes).ok_or_else(|| broken("it has no directory of tags"))
}

/// The number of a tag, or the default where it is not there.
pub(super) fn number(
    directory: &Directory<'_>,
    tag: u16,
    default: u64,
) -> Result<u64, DecodeError> {
    let Some(field) = directory.field(tag) else {
        return Ok(default);
    };
    field
        .number(0)
        .ok_or_else(|| broken(format!("its tag {tag} is not a number")))
}

pub(super) fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::broken(ImageFormat::Tiff, message)
}

pub(super) fn unsupported(kind: impl Into<String>) -> DecodeError {
    DecodeError::unsupported(ImageFormat::Tiff, kind)
}
