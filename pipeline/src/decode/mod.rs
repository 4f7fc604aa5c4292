//! Compressed image bytes to 8-bit RGB, whole or in part: pure functions, `bytes → pixels or typed
//! error`.
//!
//! The format is told by content, never by file name. What a reader of Python's PIL gets from
//! `ImageOps.exif_transpose(Image.open(f)).convert("RGB")` is the reference: grey is replicated,
//! alpha is dropped (not composited), palettes are looked up, CMYK and YCCK JPEGs follow Adobe's
//! inverted convention, EXIF orientation is applied. It differs on purpose in these: 16-bit
//! greyscale keeps its high byte as 16-bit colour does (PIL clips at 255), and a 12-bit JPEG its high
//! eight bits (PIL refuses it); a JPEG without its end marker, or with coded data that does not
//! decode, is an error unless [`OnTruncated::Grey`] is asked for, where PIL may deliver a partly grey
//! picture; and sizes are checked on the header, before anything is allocated.
//!
//! A [`Decoder`] works in two steps, so that a crop can be drawn in between: [`Decoder::open`]
//! reads the header, [`Decoder::decode`] decodes the crop and nothing else, as far as the format
//! lets it:
//!
//! | format | library | a crop costs |
//! |---|---|---|
//! | JPEG | libjpeg-turbo and `qf-codecs` | entropy decoding down to its last row; the rest for the crop alone, at 1/8, 2/8, 4/8 or full size |
//! | WebP | libwebp | all of it but colour conversion, down to its last row |
//! | PNG, GIF, BMP, TIFF, animated WebP | `image` | the whole picture |

mod jpeg;
pub(crate) mod orientation;
mod raster;
#[cfg(test)]
pub(crate) mod test_shared;
mod webp;

use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};

use image::metadata::Orientation;
use qf_codecs::jpeg::{ComponentStrip, Decompressor, Entropy, Outcome, Part, Region, Scale, Strip};
use qf_codecs::resample::{Area, STRIP_ROWS};
use serde::{Deserialize, Serialize};

use crate::augment::CropBox;
use crate::error::SkipReason;
use orientation::Turn;

/// Most bytes of pixels that a decoder keeps from one picture to the next.
const KEPT_BYTES: usize = 32 << 20;

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

/// What becomes of a JPEG whose data ends early or does not decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTruncated {
    /// An error. Damage below the crop is not looked at, but the end marker must be there.
    #[default]
    Error,
    /// What is missing is grey, as PIL does it with `LOAD_TRUNCATED_IMAGES`.
    Grey,
}

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
    /// JPEG: sequential and progressive, Huffman and arithmetic coding, 8 and 12 bits.
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

/// An image whose header has been read.
#[derive(Debug)]
pub struct OpenedImage<'a> {
    bytes: &'a [u8],
    stored_size: (u32, u32),
    turn: Turn,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Jpeg(jpeg::Header),
    WebP(webp::Header),
    /// Decoded already, and upright.
    Whole(RgbImage),
}

impl OpenedImage<'_> {
    /// Width of the upright picture in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.turn.size(self.stored_size).0
    }

    /// Height of the upright picture in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.turn.size(self.stored_size).1
    }

    fn format(&self) -> ImageFormat {
        match self.content {
            Content::Jpeg(_) => ImageFormat::Jpeg,
            // The others cannot fail once they are open.
            Content::WebP(_) | Content::Whole(_) => ImageFormat::WebP,
        }
    }
}

/// Decoded pixels that hold a crop: stored orientation, perhaps reduced, perhaps with columns and
/// rows beside the crop.
#[derive(Clone, Copy, Debug)]
pub struct DecodedCrop<'a> {
    /// `[rows, columns, 3]` u8, RGB.
    pub(crate) pixels: &'a [u8],
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    /// The whole pixels that the crop touches.
    pub(crate) hull: CropBox,
    /// The crop, within the hull.
    pub(crate) crop: Area,
    /// How to stand it upright.
    pub(crate) turn: Turn,
}

impl<'a> DecodedCrop<'a> {
    /// A crop of an upright picture.
    pub(crate) fn of(image: &'a RgbImage, crop: CropBox) -> DecodedCrop<'a> {
        DecodedCrop {
            pixels: &image.data,
            columns: image.width,
            rows: image.height,
            hull: crop,
            crop: Area::whole(f64::from(crop.width), f64::from(crop.height)),
            turn: Turn::default(),
        }
    }
}

/// Some rows of the whole pixels that a crop touches: stored orientation, upright or upside down,
/// perhaps reduced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodedStrip<'a> {
    /// Which of them is the first here.
    pub(crate) first_row: u32,
    pub(crate) rows: StripRows<'a>,
    /// Columns and rows that come before those pixels.
    pub(crate) before: (u32, u32),
    /// Pixels of each row, and rows of all strips together, without those before.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// The crop, within those pixels.
    pub(crate) crop: Area,
    /// How to stand it upright; not on its side.
    pub(crate) turn: Turn,
}

/// What a strip is of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StripRows<'a> {
    /// RGB, rows of `stride` bytes, from the first pixel on.
    Pixels { pixels: &'a [u8], stride: usize },
    /// Luma and chroma of a JPEG, not upsampled.
    Components(&'a ComponentStrip<'a>),
}

/// Decodes images; holds what decoding needs from one picture to the next, so each worker keeps its
/// own.
#[derive(Debug)]
pub struct Decoder {
    limits: DecodeLimits,
    on_truncated: OnTruncated,
    jpeg: Option<Decompressor>,
    pixels: Vec<u8>,
}

impl Decoder {
    /// A decoder with these bounds.
    pub fn new(limits: DecodeLimits, on_truncated: OnTruncated) -> Decoder {
        Decoder {
            limits,
            on_truncated,
            jpeg: None,
            pixels: Vec::new(),
        }
    }

    /// Reads the header of an image; formats that are only decoded as a whole are decoded here.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]: bytes of no known format, a damaged or truncated image, one beyond the
    /// limits.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<OpenedImage<'a>, DecodeError> {
        let format = ImageFormat::sniff(bytes).ok_or_else(|| DecodeError::UnknownFormat {
            len_bytes: bytes.len(),
            looks_like: describe_unknown(bytes),
        })?;
        guarded(format, || self.open_as(format, bytes))
    }

    fn open_as<'a>(
        &self,
        format: ImageFormat,
        bytes: &'a [u8],
    ) -> Result<OpenedImage<'a>, DecodeError> {
        let limits = &self.limits;
        let opened = |stored_size, orientation: Orientation, content| OpenedImage {
            bytes,
            stored_size,
            turn: orientation.into(),
            content,
        };
        let whole = match format {
            ImageFormat::Jpeg => {
                let header = jpeg::Header::read(bytes, limits, self.on_truncated)?;
                let size = (u32::from(header.width), u32::from(header.height));
                return Ok(opened(size, header.orientation, Content::Jpeg(header)));
            }
            ImageFormat::WebP => {
                let header = webp::Header::read(bytes, limits)?;
                if !header.animated {
                    let size = (header.width, header.height);
                    return Ok(opened(size, header.orientation, Content::WebP(header)));
                }
                webp::first_frame(bytes, limits)
            }
            ImageFormat::Png => raster::png(bytes, limits),
            ImageFormat::Gif => raster::gif(bytes, limits),
            ImageFormat::Bmp => raster::bmp(bytes, limits),
            ImageFormat::Tiff => raster::tiff(bytes, limits),
        }?;
        Ok(opened(
            (whole.width, whole.height),
            Orientation::NoTransforms,
            Content::Whole(whole),
        ))
    }

    /// Decodes `crop`, a region of the upright picture, to be resized to `size` × `size`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Broken`] for data that does not decode down to the crop's last row, and for a
    /// crop that is not within the picture; [`DecodeError::TooLarge`] for one beyond the limits.
    pub fn decode<'a>(
        &'a mut self,
        image: &'a OpenedImage<'_>,
        crop: CropBox,
        size: u32,
        quality: DecodeQuality,
    ) -> Result<DecodedCrop<'a>, DecodeError> {
        self.trim();
        check_crop(image, crop)?;
        let format = image.format();
        guarded(format, || self.decode_as(image, crop, size, quality))
    }

    /// Drops the memory of an uncommonly large picture.
    fn trim(&mut self) {
        if self.pixels.len() > KEPT_BYTES {
            self.pixels = Vec::new();
        }
    }

    fn decode_as<'a>(
        &'a mut self,
        image: &'a OpenedImage<'_>,
        crop: CropBox,
        size: u32,
        quality: DecodeQuality,
    ) -> Result<DecodedCrop<'a>, DecodeError> {
        let stored = image.turn.stored(crop, image.stored_size);
        match &image.content {
            Content::Whole(whole) => Ok(DecodedCrop::of(whole, crop)),
            Content::WebP(header) => {
                let (offset, stride) = webp::decode(image.bytes, header, stored, &mut self.pixels)?;
                let columns = (stride / 3) as u32;
                let x = (offset % stride / 3) as u32;
                let y = (offset / stride) as u32;
                let rows = y + stored.height;
                Ok(DecodedCrop {
                    pixels: &self.pixels[..stride * rows as usize],
                    columns,
                    rows,
                    hull: CropBox { x, y, ..stored },
                    crop: Area::whole(f64::from(stored.width), f64::from(stored.height)),
                    turn: image.turn,
                })
            }
            Content::Jpeg(header) => {
                let scale = quality.scale((stored.width, stored.height), size);
                self.decode_jpeg(image, header, stored, scale)
            }
        }
    }

    fn decode_jpeg<'a>(
        &'a mut self,
        image: &OpenedImage<'_>,
        header: &jpeg::Header,
        stored: CropBox,
        scale: Scale,
    ) -> Result<DecodedCrop<'a>, DecodeError> {
        let reduced = ReducedCrop::new(stored, scale);
        let mut placed = None;
        let mut sink = |strip: Strip<'_>| placed = Some(strip.placed);
        let rows = reduced.region.height;
        let part = self.part(image, header, &reduced)?;
        self.read_jpeg(&part, rows, &mut sink)?;
        let placed =
            placed.ok_or_else(|| DecodeError::broken(ImageFormat::Jpeg, "it has no rows"))?;
        let columns = placed.stride / placed.channels;
        let pixels = columns * rows as usize;
        if placed.channels == 4 {
            cmyk_to_rgb(&mut self.pixels[..pixels * 4]);
        }
        Ok(DecodedCrop {
            pixels: &self.pixels[..pixels * 3],
            columns: columns as u32,
            rows,
            hull: CropBox {
                x: (placed.offset / placed.channels) as u32,
                y: 0,
                width: reduced.region.width,
                height: rows,
            },
            crop: reduced.crop,
            turn: image.turn,
        })
    }

    /// Decodes `crop` as [`Decoder::decode`] does, [`STRIP_ROWS`] rows at a time; should the picture turn
    /// out to be damaged, they may come once more, from the first row. Returns false, with nothing done,
    /// for what only comes as a whole: other formats than JPEG, pictures of four channels, and those
    /// stored on their side.
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::decode`]; what came is then of no use.
    pub(crate) fn decode_strips(
        &mut self,
        image: &OpenedImage<'_>,
        crop: CropBox,
        (size, quality): (u32, DecodeQuality),
        sink: &mut dyn FnMut(&DecodedStrip<'_>),
    ) -> Result<bool, DecodeError> {
        let Content::Jpeg(header) = &image.content else {
            return Ok(false);
        };
        if header.components == 4 || image.turn.transposed {
            return Ok(false);
        }
        self.trim();
        check_crop(image, crop)?;
        let stored = image.turn.stored(crop, image.stored_size);
        let scale = quality.scale((stored.width, stored.height), size);
        let reduced = ReducedCrop::new(stored, scale);
        let mut hand_over = |first_row, before, rows: StripRows<'_>| {
            sink(&DecodedStrip {
                first_row,
                rows,
                before,
                width: reduced.region.width,
                height: reduced.region.height,
                crop: reduced.crop,
                turn: image.turn,
            });
        };
        guarded(ImageFormat::Jpeg, || {
            let mut components = |strip: &ComponentStrip<'_>| {
                let rows = StripRows::Components(strip);
                hand_over(strip.first_row, strip.before, rows);
            };
            let mut part = self.part(image, header, &reduced)?;
            if header.may_be_components() {
                let outcome = self
                    .decompressor()?
                    .decode_components(&part, &mut components);
                match outcome {
                    Outcome::Complete => return Ok(()),
                    Outcome::OtherKind => {}
                    Outcome::Unsound => part.options.entropy = Entropy::Libjpeg,
                }
            }
            let mut pixels = |strip: Strip<'_>| {
                let rows = StripRows::Pixels {
                    pixels: strip.pixels.get(strip.placed.offset..).unwrap_or_default(),
                    stride: strip.placed.stride,
                };
                hand_over(strip.first_row, (0, 0), rows);
            };
            self.read_jpeg(&part, STRIP_ROWS as u32, &mut pixels)
        })?;
        Ok(true)
    }

    /// What to decode for a crop; refuses what takes too much memory.
    fn part<'a>(
        &self,
        image: &OpenedImage<'a>,
        header: &jpeg::Header,
        &ReducedCrop { scale, region, .. }: &ReducedCrop,
    ) -> Result<Part<'a>, DecodeError> {
        // Whole blocks come beside the region, at most the picture's width.
        let (width, height) = image.stored_size;
        let pixels = u64::from(width.div_ceil(scale.reduction())) * u64::from(region.height);
        let needed = header.alloc_bytes(pixels);
        self.limits
            .check(ImageFormat::Jpeg, width, height, needed)?;
        let what = (scale, region);
        Ok(jpeg::part((image.bytes, header), what, self.on_truncated))
    }

    fn decompressor(&mut self) -> Result<&mut Decompressor, DecodeError> {
        match &mut self.jpeg {
            Some(jpeg) => Ok(jpeg),
            none => {
                let made = Decompressor::new()
                    .map_err(|error| DecodeError::broken(ImageFormat::Jpeg, error.to_string()))?;
                Ok(none.insert(made))
            }
        }
    }

    /// Decodes to rows of pixels, through the memory that is kept.
    fn read_jpeg(
        &mut self,
        part: &Part<'_>,
        rows_at_once: u32,
        sink: &mut dyn FnMut(Strip<'_>),
    ) -> Result<(), DecodeError> {
        let mut memory = std::mem::take(&mut self.pixels);
        let done = self
            .decompressor()
            .and_then(|jpeg| jpeg::decode(jpeg, part, rows_at_once, &mut memory, sink));
        self.pixels = memory;
        done
    }

    /// Decodes a whole image to upright RGB.
    ///
    /// # Errors
    ///
    /// As [`Decoder::open`].
    pub fn decode_whole(&mut self, bytes: &[u8]) -> Result<RgbImage, DecodeError> {
        let opened = self.open(bytes)?;
        if let Content::Whole(whole) = opened.content {
            return Ok(whole);
        }
        let all = CropBox {
            x: 0,
            y: 0,
            width: opened.width(),
            height: opened.height(),
        };
        let patch = self.decode(&opened, all, 1, DecodeQuality::Exact)?;
        // Of a whole picture no columns come beside the crop.
        let image = RgbImage::new(patch.columns, patch.rows, patch.pixels.to_vec());
        let image = image
            .ok_or_else(|| DecodeError::broken(opened.format(), "its size changed on the way"))?;
        Ok(orientation::apply(image, patch.turn))
    }
}

fn check_crop(image: &OpenedImage<'_>, crop: CropBox) -> Result<(), DecodeError> {
    let ends = (
        crop.x.checked_add(crop.width),
        crop.y.checked_add(crop.height),
    );
    let inside = crop.width > 0
        && crop.height > 0
        && ends.0.is_some_and(|end| end <= image.width())
        && ends.1.is_some_and(|end| end <= image.height());
    match inside {
        true => Ok(()),
        false => Err(DecodeError::broken(
            image.format(),
            "a crop beyond the picture",
        )),
    }
}

/// A crop of a reduced picture.
struct ReducedCrop {
    scale: Scale,
    /// The whole pixels that it touches.
    region: Region,
    /// The crop, within the region.
    crop: Area,
}

impl ReducedCrop {
    fn new(stored: CropBox, scale: Scale) -> ReducedCrop {
        let reduction = scale.reduction();
        let (x, y) = (stored.x / reduction, stored.y / reduction);
        let region = Region {
            x,
            y,
            width: (stored.x + stored.width).div_ceil(reduction) - x,
            height: (stored.y + stored.height).div_ceil(reduction) - y,
        };
        let reduced = |stored: u32| f64::from(stored) / f64::from(reduction);
        ReducedCrop {
            scale,
            region,
            crop: Area {
                left: reduced(stored.x) - f64::from(x),
                top: reduced(stored.y) - f64::from(y),
                width: reduced(stored.width),
                height: reduced(stored.height),
            },
        }
    }
}

/// Runs a decoder. They are third-party code that is fed whatever the web holds; overflow checks
/// and slice indexing in those written in Rust do panic on rare damaged files. Such a file costs its
/// sample, not the worker thread. Nothing half done is looked at afterwards: a decoder that unwinds
/// is dropped, the pixels are those of an error.
fn guarded<T>(
    format: ImageFormat,
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(DecodeError::broken(format, "the decoder failed on it")))
}

/// Inverted CMYK to RGB in place, four bytes to three, as PIL converts it: with `MULDIV255`, its
/// rounded a · b / 255.
fn cmyk_to_rgb(pixels: &mut [u8]) {
    let count = pixels.len() / 4;
    for at in 0..count {
        let black = u32::from(pixels[at * 4 + 3]);
        for channel in 0..3 {
            let ink = 255 - u32::from(pixels[at * 4 + channel]);
            let product = ink * black + 128;
            let covered = ((product >> 8) + product) >> 8;
            pixels[at * 3 + channel] = (black - covered.min(black)) as u8;
        }
    }
}

/// Decodes an image to upright RGB.
///
/// # Errors
///
/// [`DecodeError`]: bytes of no known format, a damaged or truncated image, one beyond `limits`.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    Decoder::new(*limits, OnTruncated::Error).decode_whole(bytes)
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use image::{DynamicImage, ImageBuffer, ImageFormat as Encoding, Luma, LumaA, Rgb, Rgba};
    use proptest::prelude::*;

    use super::test_shared::shared;
    use super::*;

    fn encode(image: impl Into<DynamicImage>, encoding: Encoding) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image
            .into()
            .write_to(&mut bytes, encoding)
            .expect("encodes");
        bytes.into_inner()
    }

    fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
        decode_rgb(bytes, &DecodeLimits::default())
    }

    /// A smooth picture, so that JPEG keeps it nearly as it is.
    fn gradient(width: u32, height: u32) -> ImageBuffer<Rgb<u8>, Vec<u8>> {
        ImageBuffer::from_fn(width, height, |x, y| {
            Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 99])
        })
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                found.push(path);
            }
        }
        found.sort();
        found
    }

    #[test]
    fn lossless_formats_are_exact() {
        let picture = gradient(37, 23);
        for encoding in [Encoding::Png, Encoding::WebP, Encoding::Bmp, Encoding::Tiff] {
            let image = decode(&encode(picture.clone(), encoding)).expect("decodes");
            assert_eq!((image.width(), image.height()), (37, 23));
            assert_eq!(image.data(), picture.as_raw(), "{encoding:?}");
        }
        let image = decode(&encode(picture.clone(), Encoding::Jpeg)).expect("decodes");
        let difference = image.data().iter().zip(picture.as_raw());
        let worst = difference.map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst < Some(24), "{worst:?}");
    }

    #[test]
    fn every_kind_of_sample_becomes_rgb() {
        let check = |image: DynamicImage, encoding, expected: [u8; 3]| {
            let color = image.color();
            let got = decode(&encode(image, encoding)).expect("decodes");
            assert_eq!(got.data(), expected.repeat(2), "{encoding:?} {color:?}");
        };
        for encoding in [Encoding::Png, Encoding::Tiff] {
            check(
                ImageBuffer::from_pixel(2, 1, Luma([7u8])).into(),
                encoding,
                [7, 7, 7],
            );
            check(
                ImageBuffer::from_pixel(2, 1, Luma([0x1280u16])).into(),
                encoding,
                [0x12; 3],
            );
            check(
                ImageBuffer::from_pixel(2, 1, Rgb([0x12ffu16, 0x3400, 0xffff])).into(),
                encoding,
                [0x12, 0x34, 0xff],
            );
            // Alpha is dropped, not composited: a transparent pixel keeps its colour.
            check(
                ImageBuffer::from_pixel(2, 1, Rgba([10u8, 20, 30, 0])).into(),
                encoding,
                [10, 20, 30],
            );
            check(
                ImageBuffer::from_pixel(2, 1, Rgba([0x0a00u16, 0x1400, 0x1e00, 0])).into(),
                encoding,
                [10, 20, 30],
            );
        }
        check(
            ImageBuffer::from_pixel(2, 1, LumaA([9u8, 0])).into(),
            Encoding::Png,
            [9; 3],
        );
        check(
            ImageBuffer::from_pixel(2, 1, LumaA([0x0900u16, 77])).into(),
            Encoding::Png,
            [9; 3],
        );
        check(
            ImageBuffer::from_pixel(2, 1, Rgba([200u8, 10, 30, 255])).into(),
            Encoding::Gif,
            [200, 10, 30],
        );
        let float = ImageBuffer::from_pixel(2, 1, Rgb([0.5f32, 0.5, 0.5]));
        let error = decode(&encode(float, Encoding::Tiff)).expect_err("no range is declared");
        assert!(error.to_string().contains("Rgb32F"), "{error}");
        assert_eq!(error.reason(), SkipReason::BrokenImage);
    }

    #[test]
    fn content_tells_the_format() {
        for (bytes, expected) in [
            (&b""[..], "an empty file"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"  <svg xmlns=", "SVG"),
            (b"\0\0\0\x1cftypavif", "AVIF"),
            (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
            (b"\x89PNG\r\r\n\n", "begin with 89 50 4e 47"),
            (b"RIFF\x10\0\0\0WAVE", "begin with"),
        ] {
            let error = decode(bytes).expect_err("no image");
            assert_eq!(error.reason(), SkipReason::UnknownImageFormat);
            assert!(error.to_string().contains(expected), "{error}");
        }
        for name in [
            "jpg",
            "JPEG",
            "image.jpg",
            "a.b.WebP",
            "tif",
            "jfif",
            "png",
            "gif",
        ] {
            assert!(is_image_extension(name), "{name}");
        }
        for name in ["", "txt", "jpg.txt", "jpg.gz", "jpgx", "json", ".", "avif"] {
            assert!(!is_image_extension(name), "{name}");
        }
    }

    #[test]
    fn limits_hold_on_the_header() {
        let mut limits = DecodeLimits::default();
        let picture = gradient(64, 32);
        let encodings = [
            Encoding::Jpeg,
            Encoding::Png,
            Encoding::WebP,
            Encoding::Bmp,
            Encoding::Tiff,
            Encoding::Gif,
        ];
        for encoding in encodings {
            let bytes = encode(picture.clone(), encoding);
            limits.max_pixels = 64 * 32;
            limits.max_side = 64;
            assert!(decode_rgb(&bytes, &limits).is_ok(), "{encoding:?}");
            for (changed, name) in [
                (
                    DecodeLimits {
                        max_pixels: 64 * 32 - 1,
                        ..limits
                    },
                    "max_pixels",
                ),
                (
                    DecodeLimits {
                        max_side: 63,
                        ..limits
                    },
                    "max_side",
                ),
                (
                    DecodeLimits {
                        max_alloc_bytes: 6143,
                        ..limits
                    },
                    "max_alloc_bytes",
                ),
            ] {
                let error = decode_rgb(&bytes, &changed).expect_err("too large");
                assert_eq!(error.reason(), SkipReason::ImageTooLarge, "{encoding:?}");
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    /// Headers that promise far more than the file holds: an error in no time, nothing allocated.
    #[test]
    fn lying_headers() {
        let mut jpeg = encode(gradient(64, 64), Encoding::Jpeg);
        let frame = jpeg
            .windows(2)
            .position(|marker| marker == [0xff, 0xc0])
            .expect("a frame header");
        for (side, reason) in [
            (65_500u16, SkipReason::ImageTooLarge),
            (13_000, SkipReason::BrokenImage),
        ] {
            jpeg[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
            jpeg[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
            let start = Instant::now();
            let error = decode(&jpeg).expect_err("nothing like it");
            assert_eq!(error.reason(), reason, "{error}");
            assert!(start.elapsed() < Duration::from_secs(1), "{side}");
        }
        let mut png = encode(gradient(64, 64), Encoding::Png);
        png[16..20].copy_from_slice(&2_000_000_000u32.to_be_bytes());
        assert!(decode(&png).is_err());
    }

    #[test]
    fn truncated_files_are_errors() {
        for encoding in [Encoding::Jpeg, Encoding::Bmp, Encoding::Gif, Encoding::Png] {
            let bytes = encode(gradient(40, 30), encoding);
            // Behind its data PNG has the 12 bytes of IEND, and GIF its last block and trailer.
            let needed = match encoding {
                Encoding::Png => bytes.len() - 16,
                Encoding::Gif => bytes.len() - 8,
                _ => bytes.len() - 1,
            };
            for len in (0..=needed).step_by(7).chain([needed]) {
                let got = decode(&bytes[..len]);
                assert!(got.is_err(), "{encoding:?} cut to {len} of {}", bytes.len());
            }
            assert!(decode(&bytes).is_ok());
        }
        let jpeg = encode(gradient(40, 30), Encoding::Jpeg);
        let error = decode(&jpeg[..jpeg.len() / 2]).expect_err("truncated");
        assert!(error.to_string().contains("truncated"), "{error}");
    }

    #[test]
    fn exif_orientations_agree() {
        let folder = "data/photos/recurser_exif-orientation-examples";
        let Some(folder) = shared("exif_orientations_agree", folder) else {
            return;
        };
        for shape in ["Landscape", "Portrait"] {
            let load = |n| {
                let bytes = std::fs::read(folder.join(format!("{shape}_{n}.jpg"))).expect("reads");
                decode(&bytes).expect("decodes")
            };
            let upright = load(1);
            assert_eq!(upright.width() > upright.height(), shape == "Landscape");
            for n in 2..=8 {
                let image = load(n);
                assert_eq!(
                    (image.width(), image.height()),
                    (upright.width(), upright.height())
                );
                // The same photograph, turned and compressed once more each.
                let pairs = image.data().iter().zip(upright.data());
                let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
                let mean = sum as f64 / image.data().len() as f64;
                assert!(mean < 4.0, "{shape}_{n}: mean difference {mean:.2}");
            }
        }
    }

    /// Channel means of CMYK and YCCK photographs, computed with Python: Pillow 13.0.0,
    /// `Image.open(f).convert("RGB")`.
    #[test]
    fn cmyk_as_pil_converts_it() {
        let Some(folder) = shared("cmyk_as_pil_converts_it", "data/photos/special_cmyk") else {
            return;
        };
        for (name, size, means) in [
            ("ycck-1111", (592, 800), [50.10, 32.70, 19.78]),
            ("ycck-2111", (592, 800), [50.11, 32.67, 19.68]),
            (
                "limited_progressive_four",
                (383, 740),
                [236.33, 211.50, 199.10],
            ),
            ("__cymk", (600, 397), [46.81, 131.54, 217.40]),
            ("jpeg__four_components", (1318, 611), [209.41, 55.56, 18.00]),
            ("CMYK_color.jpg", (500, 333), [109.04, 132.09, 109.59]),
        ] {
            let path = files(&folder)
                .into_iter()
                .find(|path| path.to_string_lossy().contains(name))
                .expect(name);
            let image = decode(&std::fs::read(path).expect("reads")).expect("decodes");
            assert_eq!((image.width(), image.height()), size, "{name}");
            for (channel, expected) in means.into_iter().enumerate() {
                let values = image.data().iter().skip(channel).step_by(3);
                let sum: u64 = values.map(|&value| u64::from(value)).sum();
                let mean = sum as f64 / (image.data().len() / 3) as f64;
                assert!(
                    (mean - expected).abs() < 0.1,
                    "{name}: {mean:.2}, {expected}"
                );
            }
        }
    }

    /// Odd, damaged and hostile files, whole and cut: an error or a picture, within two seconds.
    #[test]
    fn hostile_images() {
        let Some(folder) = shared("hostile_images", "data/hostile/images") else {
            return;
        };
        let (mut good, mut bad) = (0, 0);
        for path in files(&folder) {
            let bytes = std::fs::read(&path).expect("reads");
            for len in [bytes.len(), bytes.len() / 2, bytes.len() / 9] {
                let start = Instant::now();
                match decode(&bytes[..len]) {
                    Ok(image) => {
                        good += 1;
                        let pixels = image.width() as usize * image.height() as usize;
                        assert_eq!(image.data().len(), pixels * 3);
                    }
                    Err(error) => {
                        bad += 1;
                        assert!(!error.to_string().is_empty());
                    }
                }
                let took = start.elapsed();
                assert!(
                    took < Duration::from_secs(2),
                    "{}: {took:?}",
                    path.display()
                );
            }
        }
        // Most whole files are valid edge cases, most halves are not.
        assert!(good > 500 && bad > 500, "{good} decoded, {bad} did not");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Damage anywhere in a valid file: an error or a picture, never a panic.
        #[test]
        fn damaged_files(
            which in 0usize..6,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            end in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let encodings = [
                Encoding::Jpeg,
                Encoding::Png,
                Encoding::WebP,
                Encoding::Bmp,
                Encoding::Tiff,
                Encoding::Gif,
            ];
            let mut bytes = encode(gradient(24, 17), encodings[which]);
            if cut {
                bytes.truncate(1 + end.index(bytes.len()));
            }
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let limits = DecodeLimits { max_pixels: 1 << 22, ..DecodeLimits::default() };
            if let Ok(image) = decode_rgb(&bytes, &limits) {
                prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= 1 << 22);
            }
        }

        #[test]
        fn arbitrary_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0..7) {
            let magic: [&[u8]; 7] =
                [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0",
                 b"RIFF\xff\0\0\0WEBPVP8L"];
            bytes.splice(0..0, magic[which as usize].iter().copied());
            let _ = decode_rgb(&bytes, &DecodeLimits { max_pixels: 1 << 22, ..Default::default() });
        }
    }
}
