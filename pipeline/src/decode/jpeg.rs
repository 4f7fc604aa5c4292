//! JPEG through libjpeg-turbo.
//!
//! [`Header`] is read here, in one pass over the markers up to the coded data: size, orientation
//! and what decoding will take are known before libjpeg sees a byte. Its warnings about lost data
//! (codes that do not exist, restart markers out of order, data that ends early) are errors under
//! [`OnTruncated::Error`]; its warnings about sloppy headers are not. PIL takes no notice of either
//! and delivers a partly grey picture: that is [`OnTruncated::Grey`].

use std::borrow::Cow;

use image::metadata::Orientation;
use qf_codecs::jpeg::{Decompressor, Entropy, Error, Options, Part, Region, Scale, Strip};

use super::metadata::Metadata;
use super::{DecodeError, DecodeLimits, ImageFormat, OnTruncated};

/// Most scans of one file. Encoders write about ten; hundreds are an attack on decoding time.
const MAX_SCANS: u64 = 100;

/// Most visits of 8×8 blocks over all scans, a second or two of decoding. Progressive pictures of
/// 4:2:0 sampling reach it with 30 scans of 178 megapixels.
const MAX_BLOCK_VISITS: u64 = 1 << 27;

/// Bytes that may follow the end-of-image marker without its being looked for from the start.
const MAX_PADDING: usize = 16;

/// What to decode of a file that has this header.
pub(super) fn part<'a>(
    (bytes, header): (&'a [u8], &Header),
    (scale, region): (Scale, Region),
    on_truncated: OnTruncated,
) -> Part<'a> {
    let scans = (MAX_BLOCK_VISITS / header.blocks.max(1)).clamp(1, MAX_SCANS);
    Part {
        bytes,
        size: (u32::from(header.width), u32::from(header.height)),
        scale,
        region,
        options: Options {
            lenient: on_truncated == OnTruncated::Grey,
            max_scans: scans as u16,
            entropy: Entropy::Fast,
        },
    }
}

/// Decodes a part of a picture; see [`Decompressor::decode_strips`].
pub(super) fn decode(
    decompressor: &mut Decompressor,
    part: &Part<'_>,
    rows_at_once: u32,
    memory: &mut Vec<u8>,
    sink: &mut dyn FnMut(Strip<'_>),
) -> Result<(), DecodeError> {
    decompressor
        .decode_strips(part, rows_at_once, memory, sink)
        .map_err(|error| match error {
            Error::Truncated(message) => broken(format!(
                "its data ends before the picture does ({message}); on_truncated = \"grey\" takes \
                 what there is"
            )),
            Error::Damaged(message) => broken(format!("its data is damaged ({message})")),
            Error::NoMemory(bytes) => DecodeError::NoMemory {
                format: ImageFormat::Jpeg,
                bytes,
            },
            other => broken(other.to_string()),
        })
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::broken(ImageFormat::Jpeg, message)
}

/// What the markers of a file tell before a coefficient is decoded.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u16,
    pub(super) height: u16,
    /// 1, 3 or 4 components.
    pub(super) components: u8,
    pub(super) orientation: Orientation,
    /// Blocks of 64 samples in the whole picture, all components together.
    blocks: u64,
    /// Whether a decoder must hold all coefficients: progressive, or a scan per component.
    buffered: bool,
}

impl Header {
    /// Reads the markers up to the first scan, and checks what can be checked. Garbage between
    /// segments is passed over, as all decoders do.
    pub(super) fn read(
        bytes: &[u8],
        limits: &DecodeLimits,
        on_truncated: OnTruncated,
    ) -> Result<Header, DecodeError> {
        let header = Header::read_markers(bytes)?;
        let (width, height) = (u32::from(header.width), u32::from(header.height));
        limits.check(ImageFormat::Jpeg, width, height)?;
        limits.check_memory(ImageFormat::Jpeg, (width, height), header.alloc_bytes(0))?;
        if on_truncated == OnTruncated::Grey {
            return Ok(header);
        }
        if !is_ended(bytes) {
            return Err(truncated(bytes.len()));
        }
        // Every block takes at least one bit, that of its DC coefficient.
        if (bytes.len() as u64).saturating_mul(8) < header.blocks {
            return Err(broken(format!(
                "{} bytes of data cannot hold {width}×{height} pixels",
                bytes.len()
            )));
        }
        Ok(header)
    }

    fn read_markers(bytes: &[u8]) -> Result<Header, DecodeError> {
        let mut frame: Option<Frame> = None;
        let mut metadata = Metadata::default();
        let mut at = 2;
        while let Some((marker, after)) = next_marker(bytes, at) {
            // Restart markers, start-of-image and TEM have no length.
            if matches!(marker, 0x01 | 0xd0..=0xd8) {
                at = after;
                continue;
            }
            if marker == 0xd9 {
                return Err(broken("it holds no picture"));
            }
            let Some(segment) = segment(bytes, after) else {
                break;
            };
            at = after + 2 + segment.len();
            match marker {
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    if frame.is_some() {
                        return Err(broken("it declares two frames"));
                    }
                    frame = Some(Frame::read(marker, segment)?);
                }
                0xe1 => read_application(segment, &mut metadata),
                0xda => {
                    let frame = frame.ok_or_else(|| broken("it holds no picture"))?;
                    let in_scan = segment.first().copied().unwrap_or(0);
                    return Ok(Header {
                        width: frame.width,
                        height: frame.height,
                        components: frame.components,
                        orientation: metadata.orientation(),
                        blocks: frame.blocks,
                        buffered: frame.progressive || in_scan < frame.components,
                    });
                }
                _ => {}
            }
        }
        Err(truncated(bytes.len()))
    }

    /// Whether it may be of a kind that comes as components.
    pub(super) fn may_be_components(&self) -> bool {
        self.components == 3 && !self.buffered
    }

    /// Memory that decoding takes: the pixels, and the coefficients (2 bytes each) where they are
    /// all held.
    pub(super) fn alloc_bytes(&self, pixels: u64) -> u64 {
        let coefficients = if self.buffered { self.blocks * 128 } else { 0 };
        let channels = if self.components == 4 { 4 } else { 3 };
        pixels.saturating_mul(channels).saturating_add(coefficients)
    }
}

fn unsupported(kind: impl Into<String>) -> DecodeError {
    DecodeError::unsupported(ImageFormat::Jpeg, kind)
}

/// EXIF or XMP of an APP1 segment. An EXIF block that is too long for a segment goes on in the next;
/// of XMP packets the last counts, as in PIL.
fn read_application<'a>(segment: &'a [u8], metadata: &mut Metadata<'a>) {
    if let Some(exif) = segment.strip_prefix(b"Exif\0\0") {
        match &mut metadata.exif {
            Some(begun) => begun.to_mut().extend_from_slice(exif),
            none => *none = Some(Cow::Borrowed(exif)),
        }
    } else if let Some(xmp) = segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
        metadata.xmp = Some(Cow::Borrowed(xmp));
    }
}

fn truncated(len_bytes: usize) -> DecodeError {
    broken(format!("it is truncated, it ends after {len_bytes} bytes"))
}

/// The start-of-frame segment.
struct Frame {
    width: u16,
    height: u16,
    components: u8,
    blocks: u64,
    progressive: bool,
}

impl Frame {
    fn read(marker: u8, segment: &[u8]) -> Result<Frame, DecodeError> {
        let &[precision, h1, h0, w1, w0, components, ref sampling @ ..] = segment else {
            return Err(broken("its frame header is too short"));
        };
        let coding = match marker {
            0xc0..=0xc2 | 0xc9 | 0xca => None,
            0xc3 | 0xcb => Some("lossless coding"),
            _ => Some("hierarchical coding"),
        };
        if let Some(coding) = coding {
            return Err(unsupported(coding));
        }
        if !matches!(precision, 8 | 12) {
            return Err(unsupported(format!("{precision}-bit samples")));
        }
        if !matches!(components, 1 | 3 | 4) {
            return Err(unsupported(format!(
                "{components} components, expected 1, 3 or 4"
            )));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        if width == 0 || height == 0 {
            return Err(broken(format!("its size is {width}×{height}")));
        }
        // A single component is never subsampled, whatever its factors say.
        let mut factors = [(1, 1); 4];
        let counted = factors.iter_mut().take(usize::from(components));
        let declared = sampling.chunks_exact(3);
        if declared.len() < usize::from(components) {
            return Err(broken("its frame header is too short"));
        }
        if components > 1 {
            for (factor, component) in counted.zip(declared) {
                *factor = (u64::from(component[1] >> 4), u64::from(component[1] & 15));
            }
        }
        let factors = &factors[..usize::from(components)];
        let valid = |factor: u64| (1..=4).contains(&factor);
        if !factors.iter().all(|&(h, v)| valid(h) && valid(v)) {
            return Err(broken("its frame header has invalid sampling factors"));
        }
        let h_max = factors.iter().map(|(h, _)| *h).max().unwrap_or(1);
        let v_max = factors.iter().map(|(_, v)| *v).max().unwrap_or(1);
        let mcus = u64::from(width).div_ceil(8 * h_max) * u64::from(height).div_ceil(8 * v_max);
        Ok(Frame {
            width,
            height,
            components,
            blocks: mcus * factors.iter().map(|(h, v)| h * v).sum::<u64>(),
            progressive: matches!(marker, 0xc2 | 0xca),
        })
    }
}

/// Whether the file has its end-of-image marker. In nearly all files it is the last thing; where it
/// is not, the markers are followed from the start.
fn is_ended(bytes: &[u8]) -> bool {
    let padding = bytes.iter().rev().take(MAX_PADDING);
    let padding = padding.take_while(|&&byte| byte != 0xd9).count();
    let end = bytes.len().saturating_sub(padding);
    if bytes[..end].ends_with(&[0xff, 0xd9]) {
        return true;
    }
    let mut at = 2;
    while let Some((marker, after)) = next_marker(bytes, at) {
        at = match marker {
            0xd9 => return true,
            // Coded data follows a scan header: what looks like a marker there is a stuffed zero
            // or a restart.
            0x01 | 0xd0..=0xd8 => after,
            _ => match segment(bytes, after) {
                Some(segment) => after + 2 + segment.len(),
                None => return false,
            },
        };
    }
    false
}

/// The next marker at or after `at`, and the position behind it.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += memchr::memchr(0xff, bytes.get(at..)?)? + 1;
        match *bytes.get(at)? {
            0x00 | 0xff => {}
            marker => return Some((marker, at + 1)),
        }
    }
}

/// The payload of the segment whose two length bytes stand at `at`; `None` if it is cut off.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
    bytes.get(at + 2..at + usize::from(length.max(2)))
}
