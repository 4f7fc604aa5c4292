//! JPEG through zune-jpeg.
//!
//! The seam for another decoder: [`decode`] is all the rest of the crate knows, and [`Header`],
//! which it reads by itself in one pass over the markers, is what any decoder needs to be told
//! beforehand: size, orientation, memory, and whether the file is whole.

use image::metadata::Orientation;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{orientation, DecodeError, DecodeLimits, ImageFormat, RgbImage};

/// Most scans of one file. Encoders write about ten; hundreds are an attack on decoding time.
const MAX_SCANS: usize = 100;

/// Most visits of 8×8 blocks over all scans, a second or two of decoding. Progressive pictures of
/// 4:2:0 sampling reach it with 30 scans of 178 megapixels.
const MAX_BLOCK_VISITS: u64 = 1 << 27;

/// Decodes a JPEG file to upright RGB.
pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let header = Header::read(bytes)?;
    let (width, height) = (u32::from(header.width), u32::from(header.height));
    limits.check(ImageFormat::Jpeg, width, height, header.alloc_bytes())?;
    header.check_whole()?;

    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(false)
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder
        .decode_headers()
        .map_err(|error| broken(error.to_string()))?;
    if decoder.dimensions() != Some((usize::from(header.width), usize::from(header.height))) {
        return Err(broken("it declares two sizes"));
    }
    // Sloppy headers are read, but coded data that does not decode is an error: a lenient decoder
    // would fill the rest with grey.
    decoder.set_options(options.set_strict_mode(true));
    let mut data = vec![0; usize::from(header.width) * usize::from(header.height) * 3];
    decoder
        .decode_into(&mut data)
        .map_err(|error| broken(error.to_string()))?;
    let image = RgbImage {
        width,
        height,
        data,
    };
    Ok(orientation::apply(image, header.orientation))
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::broken(ImageFormat::Jpeg, message)
}

/// What the markers of a file tell before a coefficient is decoded.
struct Header {
    width: u16,
    height: u16,
    /// Blocks of 64 samples in the whole picture, all components together.
    blocks: u64,
    scans: usize,
    /// Whether a decoder must hold all coefficients: progressive, or one scan per component.
    buffered: bool,
    orientation: Orientation,
    /// Bytes of entropy-coded data over all scans.
    coded_bytes: u64,
    /// Whether the end-of-image marker was found.
    ended: bool,
    len_bytes: usize,
}

impl Header {
    /// Walks the markers from the start of the file to its end-of-image marker. Garbage between
    /// segments is passed over, as all decoders do.
    fn read(bytes: &[u8]) -> Result<Header, DecodeError> {
        let mut frame = None;
        let mut orientation = None;
        let mut scans = 0;
        let mut coded_bytes = 0;
        let mut ended = false;
        let mut at = 2;
        while let Some((marker, after)) = next_marker(bytes, at) {
            match marker {
                0xd9 => {
                    ended = true;
                    break;
                }
                // Restart markers, start-of-image and TEM have no length.
                0x01 | 0xd0..=0xd8 => {
                    at = after;
                    continue;
                }
                _ => {}
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
                0xe1 if orientation.is_none() && segment.starts_with(b"Exif\0\0") => {
                    orientation = Some(orientation::from_exif(segment));
                }
                0xda => {
                    scans += 1;
                    if scans > MAX_SCANS {
                        return Err(broken(format!("it has more than {MAX_SCANS} scans")));
                    }
                    let end = end_of_scan(bytes, at);
                    coded_bytes += (end - at) as u64;
                    at = end;
                }
                _ => {}
            }
        }
        let frame = match frame {
            Some(frame) => frame,
            None if ended => return Err(broken("it holds no picture")),
            None => return Err(truncated(bytes.len())),
        };
        Ok(Header {
            width: frame.width,
            height: frame.height,
            blocks: frame.blocks,
            scans,
            buffered: frame.progressive || scans > 1,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            coded_bytes,
            ended,
            len_bytes: bytes.len(),
        })
    }

    /// Memory that decoding takes: the picture, its upright copy where it must be turned, and the
    /// coefficients (2 bytes each) where they are all held.
    fn alloc_bytes(&self) -> u64 {
        let picture = u64::from(self.width) * u64::from(self.height) * 3;
        let copies = if self.orientation.to_exif() > 4 { 2 } else { 1 };
        let coefficients = if self.buffered { self.blocks * 128 } else { 0 };
        picture * copies + coefficients
    }

    /// Refuses a file without its end, one whose data cannot hold what the header declares (every
    /// block takes at least one bit, that of its DC coefficient), and one that would take forever.
    fn check_whole(&self) -> Result<(), DecodeError> {
        if !self.ended {
            return Err(truncated(self.len_bytes));
        }
        if self.coded_bytes.saturating_mul(8) < self.blocks {
            return Err(broken(format!(
                "{} bytes of data cannot hold {}×{} pixels",
                self.coded_bytes, self.width, self.height
            )));
        }
        if self.blocks.saturating_mul(self.scans as u64) > MAX_BLOCK_VISITS {
            return Err(broken(format!(
                "it has {} scans of {}×{} pixels; convert it to baseline JPEG",
                self.scans, self.width, self.height
            )));
        }
        Ok(())
    }
}

fn truncated(len_bytes: usize) -> DecodeError {
    broken(format!("it is truncated, it ends after {len_bytes} bytes"))
}

/// The start-of-frame segment.
struct Frame {
    width: u16,
    height: u16,
    blocks: u64,
    progressive: bool,
}

impl Frame {
    fn read(marker: u8, segment: &[u8]) -> Result<Frame, DecodeError> {
        let &[precision, h1, h0, w1, w0, components, ref sampling @ ..] = segment else {
            return Err(broken("its frame header is too short"));
        };
        let coding = match marker {
            0xc0..=0xc2 => None,
            0xc3 | 0xc7 | 0xcb | 0xcf => Some("lossless coding"),
            0xc9 | 0xca | 0xcd | 0xce => Some("arithmetic coding"),
            _ => Some("hierarchical coding"),
        };
        if let Some(coding) = coding {
            return Err(broken(format!(
                "{coding} is not supported; convert it to baseline JPEG"
            )));
        }
        if precision != 8 {
            return Err(broken(format!(
                "{precision}-bit samples are not supported; convert it to 8 bits"
            )));
        }
        if !matches!(components, 1 | 3 | 4) {
            return Err(broken(format!(
                "it has {components} components, expected 1, 3 or 4"
            )));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        if width == 0 || height == 0 {
            return Err(broken(format!("its size is {width}×{height}")));
        }
        let factors: Vec<(u64, u64)> = sampling
            .chunks_exact(3)
            .take(usize::from(components))
            .map(|component| (u64::from(component[1] >> 4), u64::from(component[1] & 15)))
            .collect();
        if factors.len() != usize::from(components)
            || !factors
                .iter()
                .all(|(h, v)| (1..=4).contains(h) && (1..=4).contains(v))
        {
            return Err(broken("its frame header has invalid sampling factors"));
        }
        // A single component is never subsampled, whatever its factors say.
        let factors = if components == 1 {
            vec![(1, 1)]
        } else {
            factors
        };
        let h_max = factors.iter().map(|(h, _)| *h).max().unwrap_or(1);
        let v_max = factors.iter().map(|(_, v)| *v).max().unwrap_or(1);
        let mcus = u64::from(width).div_ceil(8 * h_max) * u64::from(height).div_ceil(8 * v_max);
        Ok(Frame {
            width,
            height,
            blocks: mcus * factors.iter().map(|(h, v)| h * v).sum::<u64>(),
            progressive: marker == 0xc2,
        })
    }
}

/// The next marker at or after `at`, and the position behind it.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)? + 1;
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

/// Where the entropy-coded data that begins at `at` ends: at the first marker that is neither a
/// stuffed zero nor a restart.
fn end_of_scan(bytes: &[u8], mut at: usize) -> usize {
    while let Some((marker, after)) = next_marker(bytes, at) {
        if !matches!(marker, 0xd0..=0xd7) {
            return after - 2;
        }
        at = after;
    }
    bytes.len()
}
