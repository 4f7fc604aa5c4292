//! Compressed image bytes to upright 8-bit RGB: a pure function, `bytes → pixels or typed error`.
//!
//! The format is told by content, never by file name. What a reader of Python's PIL gets from
//! `ImageOps.exif_transpose(Image.open(f)).convert("RGB")` is the reference: grey is replicated,
//! alpha is dropped (not composited), palettes are looked up, CMYK and YCCK JPEGs follow Adobe's
//! inverted convention, EXIF orientation is applied. Two rules differ on purpose: 16-bit greyscale
//! keeps its high byte as 16-bit colour does (PIL clips at 255), and the file's size is checked
//! against its header before anything is allocated.
//!
//! JPEG has its own file, [`jpeg`], because it is what most data sets hold and what a faster
//! decoder will replace; the others go through the `image` crate in [`raster`].

mod jpeg;
pub(crate) mod orientation;
mod raster;

use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::error::SkipReason;

/// Bounds on what one image may cost, checked on its header before any large allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels (width × height). The default is twice PIL's `MAX_IMAGE_PIXELS`, the size at
    /// which PIL itself refuses an image as a decompression bomb.
    pub max_pixels: u64,
    /// Longest side, in pixels.
    pub max_side: u32,
    /// Most bytes for the decoded picture and the decoder's working memory together, as far as the
    /// header tells. 1 GiB by default; a worker thread may hold that much at a time.
    pub max_alloc_bytes: u64,
}

impl Default for DecodeLimits {
    fn default() -> DecodeLimits {
        DecodeLimits {
            max_pixels: 178_956_970,
            max_side: 65_535,
            max_alloc_bytes: 1 << 30,
        }
    }
}

impl DecodeLimits {
    /// Refuses a header that declares too much; `alloc_bytes` is what decoding it would take.
    fn check(
        &self,
        format: ImageFormat,
        width: u32,
        height: u32,
        alloc_bytes: u64,
    ) -> Result<(), DecodeError> {
        let pixels = u64::from(width) * u64::from(height);
        let limit = if width.max(height) > self.max_side {
            format!("max_side of {} pixels", self.max_side)
        } else if pixels > self.max_pixels {
            format!("max_pixels of {}", self.max_pixels)
        } else if alloc_bytes > self.max_alloc_bytes {
            format!(
                "max_alloc_bytes of {} (it needs about {alloc_bytes})",
                self.max_alloc_bytes
            )
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

/// The image formats that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG: baseline and progressive Huffman, 8 bits.
    Jpeg,
    /// PNG; of an animated one the default image.
    Png,
    /// WebP, lossy and lossless; of an animated one the first frame.
    WebP,
    /// GIF; the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, integer samples; the first page.
    Tiff,
}

impl ImageFormat {
    /// Tells the format by the first bytes of a file; `None` if it is none of these.
    pub fn sniff(bytes: &[u8]) -> Option<ImageFormat> {
        const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
        if bytes.starts_with(b"\xff\xd8\xff") {
            Some(ImageFormat::Jpeg)
        } else if bytes.starts_with(PNG) {
            Some(ImageFormat::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(ImageFormat::WebP)
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Some(ImageFormat::Gif)
        } else if bytes.starts_with(b"BM") {
            Some(ImageFormat::Bmp)
        } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]
            .iter()
            .any(|magic| bytes.starts_with(*magic))
        {
            Some(ImageFormat::Tiff)
        } else {
            None
        }
    }

    /// The name used in messages, e.g. `JPEG`.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::Png => "PNG",
            ImageFormat::WebP => "WebP",
            ImageFormat::Gif => "GIF",
            ImageFormat::Bmp => "BMP",
            ImageFormat::Tiff => "TIFF",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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
    /// A known format that does not decode: damaged, truncated, or a variant that is not supported.
    #[error("{format} image cannot be decoded: {message}")]
    Broken {
        /// The format its first bytes name.
        format: ImageFormat,
        /// What is wrong.
        message: String,
    },
    /// A picture beyond [`DecodeLimits`].
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
}

impl DecodeError {
    /// The counter under which a sample with such an image falls.
    pub fn reason(&self) -> SkipReason {
        match self {
            DecodeError::UnknownFormat { .. } => SkipReason::UnknownImageFormat,
            DecodeError::Broken { .. } => SkipReason::BrokenImage,
            DecodeError::TooLarge { .. } => SkipReason::ImageTooLarge,
        }
    }

    fn broken(format: ImageFormat, message: impl Into<String>) -> DecodeError {
        DecodeError::Broken {
            format,
            message: message.into(),
        }
    }
}

/// Decodes an image to upright RGB.
///
/// # Errors
///
/// [`DecodeError`]: bytes of no known format, a damaged or truncated image, one beyond `limits`.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let format = ImageFormat::sniff(bytes).ok_or_else(|| DecodeError::UnknownFormat {
        len_bytes: bytes.len(),
        looks_like: describe_unknown(bytes),
    })?;
    // The decoders are third-party code that is fed whatever the web holds; overflow checks and
    // slice indexing in them do panic on rare damaged files. Such a file costs its sample, not the
    // worker thread. Nothing is shared across the boundary: a decoder that unwinds is dropped.
    let decoded = catch_unwind(AssertUnwindSafe(|| match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits),
        ImageFormat::Png => raster::png(bytes, limits),
        ImageFormat::WebP => raster::webp(bytes, limits),
        ImageFormat::Gif => raster::gif(bytes, limits),
        ImageFormat::Bmp => raster::bmp(bytes, limits),
        ImageFormat::Tiff => raster::tiff(bytes, limits),
    }));
    decoded.unwrap_or_else(|_| Err(DecodeError::broken(format, "the decoder failed on it")))
}

/// Whether a member of this name or extension is an image: `jpg`, `JPEG`, `seg.png`, `0001.webp`.
/// What counts is the part after the last dot, or the whole name if it has none.
pub fn is_image_extension(name: &str) -> bool {
    const EXTENSIONS: [&str; 10] = [
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff",
    ];
    let extension = name.rsplit('.').next().unwrap_or(name);
    EXTENSIONS
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// For the message: formats that are often met but not decoded, or the first bytes.
fn describe_unknown(bytes: &[u8]) -> String {
    let text: Vec<u8> = bytes
        .iter()
        .take(256)
        .copied()
        .skip_while(u8::is_ascii_whitespace)
        .take(9)
        .map(|byte| byte.to_ascii_lowercase())
        .collect();
    if bytes.is_empty() {
        "an empty file".to_owned()
    } else if text.starts_with(b"<svg") {
        "it looks like SVG".to_owned()
    } else if text.starts_with(b"<!doctype") || text.starts_with(b"<html") {
        "it looks like an HTML page".to_owned()
    } else if bytes.get(4..8) == Some(b"ftyp") {
        "it looks like AVIF or HEIF; convert it to JPEG first".to_owned()
    } else if bytes.starts_with(b"\0\0\0\x0cjP  ") || bytes.starts_with(b"\xff\x4f\xff\x51") {
        "it looks like JPEG 2000; convert it to JPEG first".to_owned()
    } else if bytes.starts_with(b"\xff\x0a") || bytes.starts_with(b"\0\0\0\x0cJXL ") {
        "it looks like JPEG XL; convert it to JPEG first".to_owned()
    } else {
        let head: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("they begin with {}", head.join(" "))
    }
}
