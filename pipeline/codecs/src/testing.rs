//! For tests and benchmarks: pictures that look like photographs to a codec, and JPEG files of
//! every kind that libjpeg-turbo writes.

use crate::jpeg::Error;

/// Chroma subsampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// None.
    S444 = 0,
    /// Half the columns.
    S422 = 1,
    /// Half the columns and rows.
    S420 = 2,
    /// No chroma: grey.
    Grey = 3,
    /// Half the rows.
    S440 = 4,
    /// A quarter of the columns.
    S411 = 5,
}

/// What kind of file to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// 1 to 100.
    pub quality: u8,
    /// Chroma subsampling.
    pub sampling: Sampling,
    /// Progressive instead of sequential.
    pub progressive: bool,
    /// Arithmetic instead of Huffman coding.
    pub arithmetic: bool,
    /// Huffman codes made for this picture, instead of the standard's.
    pub optimized: bool,
    /// Blocks between restart markers; 0 for none.
    pub restart_blocks: u16,
    /// Four channels (CMYK) instead of three (RGB); stored as YCCK if subsampled, else as CMYK.
    pub cmyk: bool,
    /// Samples of 12 bits instead of 8.
    pub twelve_bits: bool,
}

impl Default for Encoding {
    /// A camera's: 4:2:0, quality 90, sequential Huffman.
    fn default() -> Encoding {
        Encoding {
            quality: 90,
            sampling: Sampling::S420,
            progressive: false,
            arithmetic: false,
            optimized: false,
            restart_blocks: 0,
            cmyk: false,
            twelve_bits: false,
        }
    }
}

/// `[height, width, channels]` u8 of noise that has as much at every scale, as photographs have,
/// with edges; another picture for each seed.
pub fn photograph(width: u32, height: u32, channels: u32, seed: u32) -> Vec<u8> {
    let mut pixels = Vec::with_capacity((width * height * channels) as usize);
    for y in 0..height {
        for x in 0..width {
            // An edge: two surfaces of different light meet along a wavy line.
            let wave = noise(x / 4, y, 96, seed ^ 77) * 0.8 + f32::from(x > width / 2) * 0.2;
            let light = if wave > 0.5 { 60.0 } else { -40.0 };
            // Luminance is shared, colour varies slowly.
            let texture: f32 = [(64, 90.0), (24, 50.0), (9, 26.0), (3, 12.0), (1, 8.0)]
                .iter()
                .map(|&(cell, height)| (noise(x, y, cell, seed) - 0.5) * height)
                .sum();
            for channel in 0..channels {
                let colour = noise(x, y, 80, seed.wrapping_add(channel + 1)) * 120.0;
                pixels.push((60.0 + light + colour + texture).clamp(0.0, 255.0) as u8);
            }
        }
    }
    pixels
}

/// Numbers that look random, the same in each run (Knuth's MMIX generator).
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one, below `end`; 0 if that is 0.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as u32) % end.max(1)
    }
}

/// Value noise in 0–1 on a grid of `cell` pixels.
fn noise(x: u32, y: u32, cell: u32, seed: u32) -> f32 {
    let hash = |x: u32, y: u32| {
        let mut bits = x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77);
        bits = (bits ^ seed.wrapping_mul(0xc2b2_ae3d) ^ cell).wrapping_mul(0x27d4_eb2f);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x2c1b_3c6d);
        f32::from((bits >> 16) as u16) / 65_535.0
    };
    let (column, row) = (x / cell, y / cell);
    let ease = |at: u32| {
        let t = (at % cell) as f32 / cell as f32;
        t * t * (3.0 - 2.0 * t)
    };
    let (u, v) = (ease(x), ease(y));
    let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
    let top = mix(hash(column, row), hash(column + 1, row), u);
    let bottom = mix(hash(column, row + 1), hash(column + 1, row + 1), u);
    mix(top, bottom, v)
}

/// Encodes `[height, width, 3]` RGB, or 4 channels of CMYK, to a JPEG file.
///
/// # Errors
/// [`Error::Broken`] with libjpeg-turbo's message.
pub fn encode(
    pixels: &[u8],
    width: u32,
    height: u32,
    encoding: Encoding,
) -> Result<Vec<u8>, Error> {
    let channels = if encoding.cmyk { 4 } else { 3 };
    let expected = u64::from(width) * u64::from(height) * channels;
    if pixels.is_empty() || pixels.len() as u64 != expected {
        return Err(Error::Broken(format!("{} bytes of pixels", pixels.len())));
    }
    ffi::encode(pixels, width, height, encoding)
}

/// Encodes `[height, width, 3]` RGB to a lossy WebP file.
///
/// # Errors
/// [`Error::Broken`] when libwebp fails.
pub fn encode_webp(pixels: &[u8], width: u32, height: u32, quality: u8) -> Result<Vec<u8>, Error> {
    if pixels.is_empty() || pixels.len() as u64 != u64::from(width) * u64::from(height) * 3 {
        return Err(Error::Broken(format!("{} bytes of pixels", pixels.len())));
    }
    ffi::encode_webp(pixels, width, height, quality)
}

#[allow(unsafe_code)]
mod ffi {
    use std::ffi::{c_int, CStr};

    use turbojpeg_sys::*;

    use super::{Encoding, Error, Sampling};

    pub(super) fn encode_webp(
        pixels: &[u8],
        width: u32,
        height: u32,
        quality: u8,
    ) -> Result<Vec<u8>, Error> {
        let int = |value: u32| {
            c_int::try_from(value).map_err(|_| Error::Broken(format!("a side of {value} pixels")))
        };
        let (width, height) = (int(width)?, int(height)?);
        let mut file = std::ptr::null_mut();
        // SAFETY: `pixels` holds width × height RGB pixels (checked by the caller) in rows without
        // gaps; `file` receives memory of the length that is returned, which is copied and freed.
        unsafe {
            let (rgb, quality) = (pixels.as_ptr(), f32::from(quality));
            let len = libwebp_sys::WebPEncodeRGB(rgb, width, height, width * 3, quality, &mut file);
            if len == 0 || file.is_null() {
                return Err(Error::Broken("libwebp does not encode it".into()));
            }
            let bytes = std::slice::from_raw_parts(file, len).to_vec();
            libwebp_sys::WebPFree(file.cast());
            Ok(bytes)
        }
    }

    pub(super) fn encode(
        pixels: &[u8],
        width: u32,
        height: u32,
        encoding: Encoding,
    ) -> Result<Vec<u8>, Error> {
        let int = |value: u32| {
            c_int::try_from(value).map_err(|_| Error::Broken(format!("a side of {value} pixels")))
        };
        let (width, height) = (int(width)?, int(height)?);
        let colours = match (encoding.cmyk, encoding.sampling) {
            (true, Sampling::S444) => TJCS_TJCS_CMYK,
            (true, _) => TJCS_TJCS_YCCK,
            (false, Sampling::Grey) => TJCS_TJCS_GRAY,
            (false, _) => TJCS_TJCS_YCbCr,
        };
        let settings = [
            (TJPARAM_TJPARAM_QUALITY, c_int::from(encoding.quality)),
            (TJPARAM_TJPARAM_SUBSAMP, encoding.sampling as c_int),
            (TJPARAM_TJPARAM_COLORSPACE, colours as c_int),
            (
                TJPARAM_TJPARAM_PROGRESSIVE,
                c_int::from(encoding.progressive),
            ),
            (TJPARAM_TJPARAM_ARITHMETIC, c_int::from(encoding.arithmetic)),
            (TJPARAM_TJPARAM_OPTIMIZE, c_int::from(encoding.optimized)),
            (
                TJPARAM_TJPARAM_RESTARTBLOCKS,
                c_int::from(encoding.restart_blocks),
            ),
        ];
        let format = if encoding.cmyk {
            TJPF_TJPF_CMYK
        } else {
            TJPF_TJPF_RGB
        };
        // The whole range stays the whole range.
        let wide = |&sample: &u8| i16::from(sample) << 4 | i16::from(sample) >> 4;
        let wide: Vec<i16> = match encoding.twelve_bits {
            true => pixels.iter().map(wide).collect(),
            false => Vec::new(),
        };
        // SAFETY: the handle is used on this thread and destroyed at the end; `pixels`, and `wide` where it
        // is used, hold width × height pixels of the format (checked by the caller), a pitch of 0 means rows
        // without gaps; `file` is null, so libjpeg-turbo allocates it and says how long it is; it is
        // copied before it is freed.
        unsafe {
            let handle = tj3Init(TJINIT_TJINIT_COMPRESS as c_int);
            let mut file = std::ptr::null_mut();
            let mut len = 0;
            let mut failed = handle.is_null();
            for (setting, value) in settings {
                failed = failed || tj3Set(handle, setting as c_int, value) != 0;
            }
            let (format, file_at, len_at) = (format as c_int, &mut file, &mut len);
            failed = failed
                || 0 != match encoding.twelve_bits {
                    true => {
                        let wide = wide.as_ptr();
                        tj3Compress12(handle, wide, width, 0, height, format, file_at, len_at)
                    }
                    false => {
                        let pixels = pixels.as_ptr();
                        tj3Compress8(handle, pixels, width, 0, height, format, file_at, len_at)
                    }
                };
            let result = if failed {
                let message = CStr::from_ptr(tj3GetErrorStr(handle));
                Err(Error::Broken(message.to_string_lossy().into_owned()))
            } else {
                Ok(std::slice::from_raw_parts(file, len as usize).to_vec())
            };
            tj3Free(file.cast());
            tj3Destroy(handle);
            result
        }
    }
}
