//! Pixels to JPEG (libjpeg-turbo) and lossy WebP (libwebp).

use crate::ycc::{Picture420, Plane};

/// Why there is no file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The pixels are not `height` rows of `width * 3` bytes, or a side is beyond the format's limit.
    #[error("{0}×{1} pixels cannot be written as {2}")]
    Size(u32, u32, &'static str),
    /// The encoder refused.
    #[error("{0}")]
    Failed(String),
}

/// Longest side of a JPEG, as libjpeg-turbo writes it.
const MAX_SIDE: u32 = 65_500;

/// Encodes JPEGs; holds libjpeg-turbo's state between calls.
pub struct JpegEncoder {
    handle: ffi::Handle,
    /// Room for the largest file so far.
    memory: Vec<u8>,
}

impl std::fmt::Debug for JpegEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JpegEncoder")
    }
}

impl JpegEncoder {
    /// An encoder.
    ///
    /// # Errors
    /// [`Error::Failed`] where there is no memory.
    pub fn new() -> Result<JpegEncoder, Error> {
        Ok(JpegEncoder {
            handle: ffi::Handle::new()?,
            memory: Vec::new(),
        })
    }

    /// Encodes `[height, width, 3]` u8 at a quality of 1 to 100 with chroma halved both ways (4:2:0),
    /// the accurate integer transform and the standard Huffman tables: what OpenCV and PIL write
    /// without further options.
    ///
    /// # Errors
    /// [`Error::Size`] for pixels of another number and sides beyond 65,500; [`Error::Failed`].
    pub fn encode(&mut self, rgb: &[u8], size: (u32, u32), quality: u8) -> Result<Vec<u8>, Error> {
        let (width, height) = checked(rgb, size, MAX_SIDE, "JPEG")?;
        let len = self.handle.encode(
            rgb,
            (width, height),
            quality.clamp(1, 100),
            &mut self.memory,
        )?;
        Ok(self.memory[..len].to_vec())
    }

    /// Encodes a picture in luma and chroma as [`JpegEncoder::encode`] does its pixels.
    ///
    /// # Errors
    /// [`Error::Size`] for sides of 0 or beyond 65,500; [`Error::Failed`].
    pub fn encode_420(&mut self, picture: &Picture420, quality: u8) -> Result<Vec<u8>, Error> {
        let (width, height) = picture.size;
        let whole = |plane: &Plane| plane.samples.len() >= plane.pitch * plane.height;
        let [luma, chroma @ ..] = &picture.planes;
        let (columns, rows) = (width.div_ceil(2) as usize, height.div_ceil(2) as usize);
        let fits = (1..=MAX_SIDE).contains(&width)
            && (1..=MAX_SIDE).contains(&height)
            && picture.planes.iter().all(whole)
            && (luma.width, luma.height) == (2 * columns, 2 * rows)
            && chroma
                .iter()
                .all(|plane| (plane.width, plane.height) == (columns, rows));
        if !fits {
            return Err(Error::Size(width, height, "JPEG"));
        }
        let planes = &picture.planes;
        let size = (width as i32, height as i32);
        let quality = quality.clamp(1, 100);
        let len = self
            .handle
            .encode_420(planes, size, quality, &mut self.memory)?;
        Ok(self.memory[..len].to_vec())
    }
}

/// Encodes `[height, width, 3]` u8 as lossy WebP at a quality of 0 to 100.
///
/// # Errors
/// [`Error::Size`] for pixels of another number and sides beyond 16,383; [`Error::Failed`].
pub fn webp(rgb: &[u8], size: (u32, u32), quality: u8) -> Result<Vec<u8>, Error> {
    const MAX_SIDE: u32 = 16_383;
    let size = checked(rgb, size, MAX_SIDE, "WebP")?;
    ffi::webp(rgb, size, f32::from(quality.min(100)))
}

/// The sides as C numbers, if they are those of the pixels.
fn checked(
    rgb: &[u8],
    (width, height): (u32, u32),
    max_side: u32,
    format: &'static str,
) -> Result<(i32, i32), Error> {
    let bytes = u64::from(width) * u64::from(height) * 3;
    let fits = width > 0 && height > 0 && width.max(height) <= max_side;
    match (i32::try_from(width), i32::try_from(height)) {
        (Ok(w), Ok(h)) if fits && u64::try_from(rgb.len()) == Ok(bytes) => Ok((w, h)),
        _ => Err(Error::Size(width, height, format)),
    }
}

#[allow(unsafe_code)]
mod ffi {
    use std::ffi::{c_int, CStr};
    use std::ptr::{self, NonNull};

    use turbojpeg_sys as tj;

    use super::{Error, Plane};

    pub(super) struct Handle(NonNull<std::ffi::c_void>);

    // SAFETY: the handle is plain memory without ties to a thread, and used through `&mut` only.
    unsafe impl Send for Handle {}

    impl Handle {
        pub(super) fn new() -> Result<Handle, Error> {
            // SAFETY: it takes a constant and returns an owned handle or null.
            let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int) };
            let handle = NonNull::new(handle.cast());
            handle
                .map(Handle)
                .ok_or_else(|| Error::Failed("no memory for a JPEG encoder".into()))
        }

        /// `rgb` holds `height` rows of `width * 3` bytes. Returns how much of `memory` is the file.
        pub(super) fn encode(
            &mut self,
            rgb: &[u8],
            (width, height): (c_int, c_int),
            quality: u8,
            memory: &mut Vec<u8>,
        ) -> Result<usize, Error> {
            let most = self.set((width, height), quality, memory)?;
            let mut out = memory.as_mut_ptr();
            let mut len = most as _;
            // SAFETY: the caller vouches for `rgb` (`checked`); `out` has room for the largest file of
            // this size, as libjpeg-turbo says, and it was told not to replace it.
            let status = unsafe {
                tj::tj3Compress8(
                    self.raw(),
                    rgb.as_ptr(),
                    width,
                    0,
                    height,
                    tj::TJPF_TJPF_RGB as c_int,
                    &mut out,
                    &mut len,
                )
            };
            match (status, usize::try_from(len)) {
                (0, Ok(len)) if len <= memory.len() => Ok(len),
                _ => Err(self.error()),
            }
        }

        /// `planes` are whole, and of the size that 4:2:0 has. Returns how much of `memory` is the file.
        pub(super) fn encode_420(
            &mut self,
            planes: &[Plane; 3],
            (width, height): (c_int, c_int),
            quality: u8,
            memory: &mut Vec<u8>,
        ) -> Result<usize, Error> {
            let most = self.set((width, height), quality, memory)?;
            let rows = planes.each_ref().map(|plane| plane.samples.as_ptr());
            let pitches = planes.each_ref().map(|plane| plane.pitch as c_int);
            let mut out = memory.as_mut_ptr();
            let mut len = most as _;
            // SAFETY: the caller vouches for the planes, whose rows are `pitches` apart; `out` has room for
            // the largest file of this size, and libjpeg-turbo was told not to replace it.
            let status = unsafe {
                tj::tj3CompressFromYUVPlanes8(
                    self.raw(),
                    rows.as_ptr(),
                    width,
                    pitches.as_ptr(),
                    height,
                    &mut out,
                    &mut len,
                )
            };
            match (status, usize::try_from(len)) {
                (0, Ok(len)) if len <= memory.len() => Ok(len),
                _ => Err(self.error()),
            }
        }

        /// Sets the encoder up, and makes room for the largest file of this size; returns its length.
        fn set(
            &mut self,
            (width, height): (c_int, c_int),
            quality: u8,
            memory: &mut Vec<u8>,
        ) -> Result<usize, Error> {
            let parameters = [
                (tj::TJPARAM_TJPARAM_QUALITY, c_int::from(quality)),
                (tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_420 as c_int),
                (tj::TJPARAM_TJPARAM_NOREALLOC, 1),
            ];
            for (parameter, value) in parameters {
                // SAFETY: the handle is valid.
                let status = unsafe { tj::tj3Set(self.raw(), parameter as c_int, value) };
                if status != 0 {
                    return Err(self.error());
                }
            }
            // SAFETY: it takes numbers and returns one.
            let most = unsafe { tj::tj3JPEGBufSize(width, height, tj::TJSAMP_TJSAMP_420 as c_int) };
            let most = most as usize;
            if most == 0 {
                return Err(self.error());
            }
            if memory.len() < most {
                memory.resize(most, 0);
            }
            Ok(most)
        }

        fn raw(&self) -> tj::tjhandle {
            self.0.as_ptr().cast()
        }

        fn error(&self) -> Error {
            // SAFETY: the handle is valid; the text is its own, ends with a zero, and is copied here.
            let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.raw())) };
            Error::Failed(text.to_string_lossy().into_owned())
        }
    }

    impl Drop for Handle {
        fn drop(&mut self) {
            // SAFETY: the handle is valid, and not used again.
            unsafe { tj::tj3Destroy(self.raw()) }
        }
    }

    /// `rgb` holds `height` rows of `width * 3` bytes.
    pub(super) fn webp(
        rgb: &[u8],
        (width, height): (c_int, c_int),
        quality: f32,
    ) -> Result<Vec<u8>, Error> {
        let mut out: *mut u8 = ptr::null_mut();
        // SAFETY: the caller vouches for `rgb` (`checked`); `out` is valid for writing.
        let len = unsafe {
            libwebp_sys::WebPEncodeRGB(rgb.as_ptr(), width, height, width * 3, quality, &mut out)
        };
        if len == 0 || out.is_null() {
            return Err(Error::Failed("libwebp cannot encode it".into()));
        }
        // SAFETY: libwebp wrote `len` bytes there.
        let file = unsafe { std::slice::from_raw_parts(out, len) }.to_vec();
        // SAFETY: the memory is libwebp's, and not used again.
        unsafe { libwebp_sys::WebPFree(out.cast()) };
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> Vec<u8> {
        let pixel = |at: u32| {
            let (x, y) = (at % width, at / width);
            [(x * 3) as u8, (y * 5) as u8, (x + y) as u8]
        };
        (0..width * height).flat_map(pixel).collect()
    }

    #[test]
    fn files_hold_the_size_and_about_the_pixels() {
        let mut jpeg = JpegEncoder::new().unwrap();
        for (width, height) in [(64, 40), (1, 1), (17, 33), (400, 3)] {
            let pixels = picture(width, height);
            let file = jpeg.encode(&pixels, (width, height), 95).unwrap();
            assert_eq!(&file[..3], b"\xff\xd8\xff");
            assert_eq!(&file[file.len() - 2..], b"\xff\xd9");
            let webp = webp(&pixels, (width, height), 90).unwrap();
            let features = crate::webp::features(&webp).unwrap();
            assert_eq!((features.width, features.height), (width, height));
            assert!(!features.lossless);
        }
    }

    #[test]
    fn pixels_of_another_number_are_refused() {
        let mut jpeg = JpegEncoder::new().unwrap();
        for (bytes, size) in [(11, (2, 2)), (0, (0, 5)), (3 * 70_000, (70_000, 1))] {
            let pixels = vec![0; bytes];
            let error = jpeg.encode(&pixels, size, 90).unwrap_err();
            assert!(matches!(error, Error::Size(..)), "{error}");
            assert!(webp(&pixels, size, 90).is_err());
        }
    }
}
