//! Bounds on what one image may cost.

use super::memory::{Reservation, SMALL_BYTES};
use super::{DecodeError, DecodeMemory, ImageFormat};

/// Bounds on what one image may cost, checked on its header before any large allocation. A clone
/// shares the budget of memory.
#[derive(Clone, Debug)]
pub struct DecodeLimits {
    /// Most pixels (width × height). The default is twice PIL's `MAX_IMAGE_PIXELS`, the size at
    /// which PIL itself refuses an image as a decompression bomb.
    pub max_pixels: u64,
    /// Longest side, in pixels.
    pub max_side: u32,
    /// What decoded pictures and decoders' working memory are taken from, as far as headers tell.
    pub memory: DecodeMemory,
}

impl Default for DecodeLimits {
    fn default() -> DecodeLimits {
        DecodeLimits {
            max_pixels: 178_956_970,
            max_side: 65_535,
            memory: DecodeMemory::default(),
        }
    }
}

impl DecodeLimits {
    /// Refuses a header that declares too many pixels.
    pub(super) fn check(
        &self,
        format: ImageFormat,
        width: u32,
        height: u32,
    ) -> Result<(), DecodeError> {
        let pixels = u64::from(width) * u64::from(height);
        let limit = if width.max(height) > self.max_side {
            format!("max_image_side of {} pixels", self.max_side)
        } else if pixels > self.max_pixels {
            format!("max_image_pixels of {}", self.max_pixels)
        } else if pixels == 0 {
            return Err(DecodeError::broken(
                format,
                format!("its size is {width}×{height}"),
            ));
        } else {
            return Ok(());
        };
        Err(DecodeError::TooLarge {
            format,
            width,
            height,
            limit,
        })
    }

    /// Takes what decoding will use from the budget, and waits for it if need be; `None` for a
    /// little, which is not asked for.
    pub(super) fn reserve(
        &self,
        format: ImageFormat,
        (width, height): (u32, u32),
        bytes: u64,
    ) -> Result<Option<Reservation>, DecodeError> {
        if bytes <= SMALL_BYTES && bytes <= self.memory.bytes() {
            return Ok(None);
        }
        match self.memory.acquire(bytes) {
            Some(reservation) => Ok(Some(reservation)),
            None => Err(self.needs_too_much(format, (width, height), bytes)),
        }
    }

    /// Refuses what could never be reserved.
    pub(super) fn check_memory(
        &self,
        format: ImageFormat,
        size: (u32, u32),
        bytes: u64,
    ) -> Result<(), DecodeError> {
        match bytes <= self.memory.bytes() {
            true => Ok(()),
            false => Err(self.needs_too_much(format, size, bytes)),
        }
    }

    fn needs_too_much(
        &self,
        format: ImageFormat,
        (width, height): (u32, u32),
        bytes: u64,
    ) -> DecodeError {
        let total = self.memory.bytes();
        let limit = format!("decode_memory_bytes of {total} (it needs about {bytes})");
        DecodeError::TooLarge {
            format,
            width,
            height,
            limit,
        }
    }
}
