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
/// how far apart its rows are, in bytes: cropping begins at even positions, so a column or a row
/// more may come.
///
/// # Errors
/// [`Error`]; `pixels` then holds nothing of use.
pub fn decode_rgb(
    bytes: &[u8],
    size: (u32, u32),
    region: Region,
    pixels: &mut Vec<u8>,
) -> Result<(usize, usize), Error> {
    let (x, y) = (region.x & !1, region.y & !1);
    let (beside, above) = ((region.x - x) as usize, (region.y - y) as usize);
    let (width, height) = (
        region.width as usize + beside,
        region.height as usize + above,
    );
    let inside = region.width > 0
        && region.height > 0
        && u64::from(x) + width as u64 <= u64::from(size.0)
        && u64::from(y) + height as u64 <= u64::from(size.1);
    if !inside {
        return Err(Error::Broken("a region beyond the picture"));
    }
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
