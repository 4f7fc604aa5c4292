//! WebP: a region through libwebp; of an animation the first frame, on its canvas.

use std::borrow::Cow;
use std::ops::Range;

use image::metadata::Orientation;
use qf_codecs::webp::{decode_rgb, features, Region};

use super::metadata::Metadata;
use super::{CropBox, DecodeError, DecodeLimits, ImageFormat};

/// What the chunks of a file tell.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    /// Where the picture lies on the canvas, in pixels: all of it, but for some animations.
    picture: CropBox,
    /// The chunks that libwebp decodes.
    data: Range<usize>,
    /// Bytes that libwebp needs for a pixel of the picture, beside those that come out.
    bytes_per_pixel: u64,
}

/// A decoded region.
pub(super) struct Placed {
    /// Columns that were decoded, and those and the rows before the region.
    pub(super) columns: u32,
    pub(super) before: (u32, u32),
}

impl Header {
    pub(super) fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Header, DecodeError> {
        let chunks = Chunks::read(bytes);
        let frame = chunks.frame.clone().map(|at| &bytes[at]);
        let (data, at) = match (&chunks.frame, frame) {
            (Some(range), Some([x0, x1, x2, y0, y1, y2, ..])) => {
                let word = |bytes: [&u8; 3]| {
                    bytes
                        .iter()
                        .rev()
                        .fold(0, |word, byte| word << 8 | u32::from(**byte))
                };
                // Offsets are in pairs of pixels.
                let (x, y) = (word([x0, x1, x2]) * 2, word([y0, y1, y2]) * 2);
                (range.start + FRAME_HEADER..range.end, (x, y))
            }
            _ if chunks.animated => return Err(broken("its animation has no frame")),
            _ => (0..bytes.len(), (0, 0)),
        };
        let found = features(&bytes[data.clone()]).map_err(broken)?;
        let canvas = chunks.canvas.filter(|_| chunks.animated);
        let (width, height) = canvas.unwrap_or((found.width, found.height));
        limits.check(ImageFormat::WebP, width, height)?;
        let picture = CropBox {
            x: at.0,
            y: at.1,
            width: found.width,
            height: found.height,
        };
        if picture.x + picture.width > width || picture.y + picture.height > height {
            return Err(broken("its first frame is beyond its canvas"));
        }
        Ok(Header {
            width,
            height,
            orientation: chunks.metadata.orientation(),
            picture,
            data,
            // Lossless pixels are held as 32 bits each, alpha as a byte, twice.
            bytes_per_pixel: if found.lossless {
                4
            } else {
                2 * u64::from(found.alpha)
            },
        })
    }

    /// Bytes that decoding takes beside the region.
    pub(super) fn held_bytes(&self, region: CropBox) -> u64 {
        let pixels = u64::from(self.picture.width) * u64::from(self.picture.height);
        let copied = match self.covers(region) {
            true => 0,
            false => u64::from(region.width) * u64::from(region.height) * 3,
        };
        pixels * self.bytes_per_pixel + copied
    }

    fn covers(&self, region: CropBox) -> bool {
        self.inside(region) == Some(region)
    }

    /// The part of a region that the picture covers.
    fn inside(&self, region: CropBox) -> Option<CropBox> {
        let picture = self.picture;
        let (x, y) = (region.x.max(picture.x), region.y.max(picture.y));
        let right = (region.x + region.width).min(picture.x + picture.width);
        let bottom = (region.y + region.height).min(picture.y + picture.height);
        (x < right && y < bottom).then(|| CropBox {
            x,
            y,
            width: right - x,
            height: bottom - y,
        })
    }

    /// Decodes a region of the canvas to RGB; what the picture does not cover is black.
    pub(super) fn decode(
        &self,
        bytes: &[u8],
        region: CropBox,
        pixels: &mut Vec<u8>,
    ) -> Result<Placed, DecodeError> {
        if self.covers(region) {
            let (offset, stride) = self.decode_inside(bytes, region, pixels)?;
            return Ok(Placed {
                columns: (stride / 3) as u32,
                before: ((offset % stride / 3) as u32, (offset / stride) as u32),
            });
        }
        let row_bytes = region.width as usize * 3;
        pixels.clear();
        pixels
            .try_reserve_exact(row_bytes * region.height as usize)
            .map_err(|_| no_memory(row_bytes * region.height as usize))?;
        pixels.resize(row_bytes * region.height as usize, 0);
        if let Some(inside) = self.inside(region) {
            let mut decoded = Vec::new();
            let (offset, stride) = self.decode_inside(bytes, inside, &mut decoded)?;
            let first =
                (inside.y - region.y) as usize * row_bytes + (inside.x - region.x) as usize * 3;
            let len = inside.width as usize * 3;
            let rows = decoded[offset..].chunks(stride);
            for (row, out) in rows
                .zip(pixels[first..].chunks_mut(row_bytes))
                .take(inside.height as usize)
            {
                out[..len].copy_from_slice(&row[..len]);
            }
        }
        Ok(Placed {
            columns: region.width,
            before: (0, 0),
        })
    }

    /// Offset of the first pixel and stride, in bytes, of a region that the picture covers.
    fn decode_inside(
        &self,
        bytes: &[u8],
        region: CropBox,
        pixels: &mut Vec<u8>,
    ) -> Result<(usize, usize), DecodeError> {
        let size = (self.picture.width, self.picture.height);
        let region = Region {
            x: region.x - self.picture.x,
            y: region.y - self.picture.y,
            width: region.width,
            height: region.height,
        };
        decode_rgb(&bytes[self.data.clone()], size, region, pixels).map_err(broken)
    }
}

/// Bytes of an animation's frame before its chunks: where it lies, how long it is shown.
const FRAME_HEADER: usize = 16;

/// The chunks of a file that are looked at.
#[derive(Debug, Default)]
struct Chunks<'a> {
    canvas: Option<(u32, u32)>,
    animated: bool,
    /// The first frame of an animation.
    frame: Option<Range<usize>>,
    metadata: Metadata<'a>,
}

impl<'a> Chunks<'a> {
    fn read(bytes: &'a [u8]) -> Chunks<'a> {
        const ANIMATION: u8 = 0x02;
        const XMP: u8 = 0x04;
        const EXIF: u8 = 0x08;
        let mut chunks = Chunks::default();
        let mut flags = 0;
        let mut at = 12;
        while let Some(start) = bytes.get(at..at + 8) {
            let len = u32::from_le_bytes([start[4], start[5], start[6], start[7]]) as usize;
            let content = at + 8..(at + 8 + len).min(bytes.len());
            let data = &bytes[content.clone()];
            match (&start[..4], data) {
                (b"VP8X", [first, _, _, _, w0, w1, w2, h0, h1, h2, ..]) => {
                    flags = *first;
                    let side = |low, middle, high| u32::from_le_bytes([low, middle, high, 0]) + 1;
                    chunks.canvas = Some((side(*w0, *w1, *w2), side(*h0, *h1, *h2)));
                }
                (b"ANMF", _) if chunks.frame.is_none() && data.len() > FRAME_HEADER => {
                    chunks.frame = Some(content);
                }
                (b"EXIF", exif) if flags & EXIF != 0 && chunks.metadata.exif.is_none() => {
                    chunks.metadata.exif = Some(Cow::Borrowed(exif));
                }
                (b"XMP ", xmp) if flags & XMP != 0 && chunks.metadata.xmp.is_none() => {
                    chunks.metadata.xmp = Some(Cow::Borrowed(xmp));
                }
                _ => {}
            }
            at += 8 + len + len % 2;
        }
        chunks.animated = flags & ANIMATION != 0;
        chunks
    }
}

fn broken(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::broken(ImageFormat::WebP, error.to_string())
}

fn no_memory(bytes: usize) -> DecodeError {
    DecodeError::NoMemory {
        format: ImageFormat::WebP,
        bytes,
    }
}
