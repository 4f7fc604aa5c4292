//! Why bytes did not become a picture.

use crate::error::SkipReason;
use crate::image_format::{ForeignFormat, ImageFormat};

/// Why bytes did not become a picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No decoder knows these bytes.
    #[error("not a JPEG, PNG, WebP, GIF, BMP or TIFF image: {len_bytes} bytes, {looks_like}")]
    UnknownFormat {
        /// Length of the input.
        len_bytes: usize,
        /// What the input looks like instead, or its first bytes.
        looks_like: String,
    },
    /// A format that is recognised but not decoded.
    #[error("{format} images are not decoded; convert it to JPEG, PNG or WebP")]
    Foreign {
        /// Its format.
        format: ForeignFormat,
    },
    /// A kind of a known format that is not decoded.
    #[error("{format} image of a kind that is not decoded ({kind}); convert it to 8-bit RGB")]
    Unsupported {
        /// The format its first bytes name.
        format: ImageFormat,
        /// Which kind.
        kind: String,
    },
    /// A known format that does not decode: damaged or truncated.
    #[error("{format} image cannot be decoded: {message}")]
    Broken {
        /// The format its first bytes name.
        format: ImageFormat,
        /// What is wrong.
        message: String,
    },
    /// A picture beyond [`DecodeLimits`](super::DecodeLimits).
    #[error("{format} image of {width}×{height} pixels is beyond {limit}")]
    TooLarge {
        /// The format its first bytes name.
        format: ImageFormat,
        /// Width its header declares.
        width: u32,
        /// Height its header declares.
        height: u32,
        /// The limit it is beyond.
        limit: String,
    },
    /// The system has no memory left for it.
    #[error("{format} image: no memory for {bytes} bytes; lower decode_memory_bytes or threads")]
    NoMemory {
        /// The format its first bytes name.
        format: ImageFormat,
        /// Bytes that were asked for.
        bytes: usize,
    },
}

impl DecodeError {
    /// The counter under which a sample with such an image falls.
    pub fn reason(&self) -> SkipReason {
        match self {
            DecodeError::UnknownFormat { .. } => SkipReason::UnknownImageFormat,
            DecodeError::Foreign { format } => SkipReason::of_foreign(*format),
            DecodeError::Unsupported { .. } => SkipReason::UnsupportedImage,
            DecodeError::Broken { .. } => SkipReason::BrokenImage,
            DecodeError::TooLarge { .. } | DecodeError::NoMemory { .. } => {
                SkipReason::ImageTooLarge
            }
        }
    }

    pub(super) fn broken(format: ImageFormat, message: impl Into<String>) -> DecodeError {
        DecodeError::Broken {
            format,
            message: message.into(),
        }
    }

    pub(super) fn unsupported(format: ImageFormat, kind: impl Into<String>) -> DecodeError {
        DecodeError::Unsupported {
            format,
            kind: kind.into(),
        }
    }
}
