//! A region of a WebP picture, lossy or lossless. Animations are not libwebp's plain decoder's.

/// Why there are no pixels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not decodable.
    #[error("{0}")]
    Broken(&'static str),
    /// The region needs more memory than there is, in bytes.
    #[error("no memory for {0} bytes of pixels")]
    NoMemory(usize),
}

/// A rectangle of the picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
}

/// What the header of a picture tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Whether there is an alpha channel.
    pub alpha: bool,
    /// Whether it is coded without loss.
    pub lossless: bool,
}

/// Reads the header of a file, or of the chunks of an animation's frame.
///
/// # Errors
/// [`Error::Broken`] for what is no WebP picture.
pub fn features(bytes: &[u8]) -> Result<Features, Error> {
    ffi::features(bytes)
}

/// Decodes `region` of the picture of `size` (width, height) to RGB in `pixels`, which grows as
/// needed and is never shrunk; alpha is dropped. Returns where the region's first pixel stands and
/// how far apart its rows are, in bytes: the pixels around it that its own depend on come with it.
///
/// # Errors
/// [`Error`]; `pixels` then holds nothing of use.
pub fn decode_rgb(
    bytes: &[u8],
    size: (u32, u32),
    region: Region,
    pixels: &mut Vec<u8>,
) -> Result<(usize, usize), Error> {
    let beyond = Error::Broken("a region beyond the picture");
    let columns = span(region.x, region.width, size.0).ok_or(beyond.clone())?;
    let rows = span(region.y, region.height, size.1).ok_or(beyond)?;
    let (x, y) = (columns.start, rows.start);
    let (beside, above) = ((region.x - x) as usize, (region.y - y) as usize);
    let (width, height) = (columns.len(), rows.len());
    let stride = width * 3;
    let needed = stride.saturating_mul(height);
    if pixels.len() < needed {
        pixels
            .try_reserve_exact(needed - pixels.len())
            .map_err(|_| Error::NoMemory(needed))?;
        pixels.resize(needed, 0);
    }
    ffi::decode(bytes, size, (x, y), (width, height), &mut pixels[..needed])?;
    Ok((above * stride + beside * 3, stride))
}

/// What is decoded of one axis, so that pixels from `first` on have the values that they have in the
/// whole picture; `None` if it has not so many.
///
/// Chroma has half the resolution: pixels 2i - 1 and 2i are mixed from samples i - 1 and i. libwebp takes
/// the sample at the border of a crop for the one beyond it, and lets crops begin at even positions only.
fn span(first: u32, count: u32, size: u32) -> Option<std::ops::Range<u32>> {
    let end = first
        .checked_add(count)
        .filter(|&end| count > 0 && end <= size)?;
    let start = first.saturating_sub(1) & !1;
    Some(start..(end + (end + 1) % 2).min(size))
}

#[allow(unsafe_code)]
mod ffi {
    use std::ffi::c_int;

    use libwebp_sys::{
        VP8StatusCode, WebPDecode, WebPDecoderConfig, WebPGetFeatures, WebPRGBABuffer,
        WEBP_CSP_MODE,
    };

    use super::{Error, Features};

    pub(super) fn features(bytes: &[u8]) -> Result<Features, Error> {
        let mut config = WebPDecoderConfig::new()
            .map_err(|()| Error::Broken("libwebp of another version than its headers"))?;
        // SAFETY: `bytes` is valid for its length, `config.input` for writing.
        check(unsafe { WebPGetFeatures(bytes.as_ptr(), bytes.len(), &mut config.input) })?;
        let side = |side: c_int| {
            let side = u32::try_from(side).ok().filter(|&side| side > 0);
            side.ok_or(Error::Broken("a side of no pixels"))
        };
        const LOSSLESS: c_int = 2;
        Ok(Features {
            width: side(config.input.width)?,
            height: side(config.input.height)?,
            alpha: config.input.has_alpha != 0,
            lossless: config.input.format == LOSSLESS,
        })
    }

    /// Decodes to rows of `extent.0 * 3` bytes; `out` must hold `extent.1` of them.
    pub(super) fn decode(
        bytes: &[u8],
        size: (u32, u32),
        origin: (u32, u32),
        extent: (usize, usize),
        out: &mut [u8],
    ) -> Result<(), Error> {
        const TOO_LARGE: Error = Error::Broken("a size beyond libwebp's numbers");
        let int = |value: usize| c_int::try_from(value).map_err(|_| TOO_LARGE);
        let mut config = WebPDecoderConfig::new()
            .map_err(|()| Error::Broken("libwebp of another version than its headers"))?;
        // SAFETY: `bytes` is valid for its length, `config.input` for writing.
        let status = unsafe { WebPGetFeatures(bytes.as_ptr(), bytes.len(), &mut config.input) };
        check(status)?;
        let found = (config.input.width, config.input.height);
        if found != (int(size.0 as usize)?, int(size.1 as usize)?) {
            return Err(Error::Broken("it declares two sizes"));
        }
        let (width, height) = extent;
        if width.checked_mul(3).and_then(|row| row.checked_mul(height)) != Some(out.len()) {
            return Err(Error::Broken("an output of another size"));
        }
        config.options.use_cropping = 1;
        config.options.crop_left = int(origin.0 as usize)?;
        config.options.crop_top = int(origin.1 as usize)?;
        config.options.crop_width = int(width)?;
        config.options.crop_height = int(height)?;
        config.output.colorspace = WEBP_CSP_MODE::MODE_RGB;
        config.output.is_external_memory = 1;
        config.output.u.RGBA = WebPRGBABuffer {
            rgba: out.as_mut_ptr(),
            stride: int(width * 3)?,
            size: out.len(),
        };
        // SAFETY: `config` was initialised by libwebp; its output is `out`, whose size it is told
        // and checks; `bytes` is valid for its length.
        check(unsafe { WebPDecode(bytes.as_ptr(), bytes.len(), &mut config) })
    }

    fn check(status: VP8StatusCode) -> Result<(), Error> {
        Err(Error::Broken(match status {
            VP8StatusCode::VP8_STATUS_OK => return Ok(()),
            VP8StatusCode::VP8_STATUS_OUT_OF_MEMORY => "libwebp found no memory for it",
            VP8StatusCode::VP8_STATUS_BITSTREAM_ERROR => "its data does not decode",
            VP8StatusCode::VP8_STATUS_NOT_ENOUGH_DATA => "it is truncated",
            VP8StatusCode::VP8_STATUS_UNSUPPORTED_FEATURE => "it uses a feature libwebp lacks",
            _ => "libwebp refuses it",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels of a region.
    fn decoded(bytes: &[u8], size: (u32, u32), region: Region) -> Vec<u8> {
        let mut pixels = Vec::new();
        let (offset, stride) = decode_rgb(bytes, size, region, &mut pixels).unwrap();
        let rows = pixels[offset..].chunks(stride).take(region.height as usize);
        rows.flat_map(|row| &row[..region.width as usize * 3])
            .copied()
            .collect()
    }

    /// Lossy: chroma of half the resolution is mixed across the borders of a crop.
    #[test]
    fn a_region_is_that_of_the_whole_picture() {
        let path = "../../tests/data/cases/caption-one-bad/w00_lossy.webp";
        let bytes = std::fs::read(path).unwrap();
        let found = features(&bytes).unwrap();
        assert!(!found.lossless);
        let size = (found.width, found.height);
        let all = |width, height| Region {
            x: 0,
            y: 0,
            width,
            height,
        };
        let whole = decoded(&bytes, size, all(size.0, size.1));
        for (x, width) in [(0, 9), (1, 8), (2, 8), (3, 8), (7, 1), (size.0 - 9, 9)] {
            for (y, height) in [(0, 9), (1, 8), (2, 8), (3, 9), (6, 1), (size.1 - 8, 8)] {
                let region = Region {
                    x,
                    y,
                    width,
                    height,
                };
                let rows = (y..y + height).map(|row| (row * size.0 + x) as usize * 3);
                let expected: Vec<u8> = rows
                    .flat_map(|first| &whole[first..first + width as usize * 3])
                    .copied()
                    .collect();
                assert_eq!(decoded(&bytes, size, region), expected, "{region:?}");
            }
        }
        for (x, width) in [(0, 0), (0, size.0 + 1), (size.0, 1), (u32::MAX, 2)] {
            let region = Region { x, ..all(width, 1) };
            assert!(decode_rgb(&bytes, size, region, &mut Vec::new()).is_err());
        }
    }
}
