//! A region of a JPEG at one, two, four or eight eighths of its size.
//!
//! Entropy decoding is sequential, so everything above the region is decoded that far; the inverse
//! transform, upsampling and colour conversion run for the region alone, and nothing below it is
//! touched. The inverse transform is libjpeg's accurate integer one with its smooth chroma
//! upsampling: the settings of PIL.

use std::ffi::CStr;
use std::fmt;

/// Columns that smooth upsampling of chroma looks at beside a pixel. A region is decoded with as
/// many more on each side, so that its pixels are those of the whole picture.
const CHROMA_CONTEXT: u32 = 4;

/// What a decoder needs to know beside the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether missing and damaged data becomes grey, as with PIL's `LOAD_TRUNCATED_IMAGES`,
    /// instead of an error.
    pub lenient: bool,
    /// Most scans of one picture.
    pub max_scans: u16,
}

/// How much a picture is reduced while it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// 1/8: the mean of each block.
    Eighth = 1,
    /// 2/8.
    Quarter = 2,
    /// 4/8.
    Half = 4,
    /// As stored.
    Full = 8,
}

impl Scale {
    /// All of them, the smallest picture first.
    pub const ALL: [Scale; 4] = [Scale::Eighth, Scale::Quarter, Scale::Half, Scale::Full];

    /// Stored pixels per decoded pixel, along a side.
    pub fn reduction(self) -> u32 {
        8 / self as u32
    }
}

/// A rectangle of a scaled picture, in its pixels.
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

/// Where a decoded region lies in the buffer it was decoded into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Offset of the region's first pixel, in bytes. Columns beside the region came with it.
    pub offset: usize,
    /// Bytes per pixel: 3 for RGB; 4 for CMYK, inverted as Adobe stores it.
    pub channels: usize,
}

/// Why there are no pixels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not decodable.
    #[error("{0}")]
    Broken(String),
    /// Ends before the region does.
    #[error("{0}")]
    Truncated(String),
    /// Coded data that does not decode.
    #[error("{0}")]
    Damaged(String),
    /// The frame that the decoder found has another size than the caller.
    #[error("it declares two sizes, {0}×{1} and {2}×{3}")]
    OtherSize(u32, u32, u32, u32),
    /// The region needs more memory than there is, in bytes.
    #[error("no memory for {0} bytes of pixels")]
    NoMemory(usize),
}

/// A decoder of one thread; it holds libjpeg's state between calls.
pub struct Decompressor(ffi::Handle);

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// A decoder.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    pub fn new() -> Result<Decompressor, Error> {
        ffi::Handle::new().map(Decompressor)
    }

    /// Decodes `region` of the picture of `size` (width, height as its header declares) reduced to
    /// `scale`, into `pixels`, which grows as needed and is never shrunk.
    ///
    /// # Errors
    /// [`Error`]; `pixels` then holds nothing of use.
    pub fn decode(
        &mut self,
        bytes: &[u8],
        size: (u32, u32),
        scale: Scale,
        region: Region,
        options: Options,
        pixels: &mut Vec<u8>,
    ) -> Result<Placed, Error> {
        let scaled_width = size.0.div_ceil(scale.reduction());
        let left = region.x.saturating_sub(CHROMA_CONTEXT);
        let right = region
            .x
            .saturating_add(region.width)
            .saturating_add(CHROMA_CONTEXT)
            .min(scaled_width);
        let columns = right.saturating_sub(left);
        let picture = self.0.begin(bytes, options, scale, left, columns)?;
        let layout = picture.layout();
        if (layout.width, layout.height) != size {
            let (width, height) = size;
            return Err(Error::OtherSize(width, height, layout.width, layout.height));
        }
        let inside = region.width > 0
            && region.height > 0
            && region.x >= layout.first_column
            && u64::from(region.x) + u64::from(region.width)
                <= u64::from(layout.first_column) + u64::from(layout.columns)
            && u64::from(region.y) + u64::from(region.height) <= u64::from(layout.scaled_height);
        if !inside {
            return Err(Error::Broken("a region beyond the picture".into()));
        }
        let channels = layout.channels as usize;
        let stride = layout.columns as usize * channels;
        let needed = stride.saturating_mul(region.height as usize);
        if pixels.len() < needed {
            pixels
                .try_reserve_exact(needed - pixels.len())
                .map_err(|_| Error::NoMemory(needed))?;
            pixels.resize(needed, 0);
        }
        picture.rows(region.y, region.height, &mut pixels[..needed], stride)?;
        Ok(Placed {
            stride,
            offset: (region.x - layout.first_column) as usize * channels,
            channels,
        })
    }
}

#[allow(unsafe_code)]
mod ffi {
    //! The functions of `jpeg.c`.

    use std::ffi::{c_char, c_int};
    use std::ptr::NonNull;

    use super::{CStr, Error, Options, Scale};
    // The archive is named in its build script; this keeps the crate linked.
    use turbojpeg_sys as _;

    #[repr(C)]
    struct Opaque {
        _private: [u8; 0],
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(super) struct Layout {
        pub(super) width: u32,
        pub(super) height: u32,
        pub(super) scaled_width: u32,
        pub(super) scaled_height: u32,
        pub(super) first_column: u32,
        pub(super) columns: u32,
        pub(super) channels: u32,
    }

    unsafe extern "C" {
        fn qf_jpeg_new() -> *mut Opaque;
        fn qf_jpeg_free(jpeg: *mut Opaque);
        fn qf_jpeg_end(jpeg: *mut Opaque);
        fn qf_jpeg_message(jpeg: *const Opaque) -> *const c_char;
        fn qf_jpeg_begin(
            jpeg: *mut Opaque,
            bytes: *const u8,
            len: usize,
            lenient: c_int,
            max_scans: c_int,
            eighths: u32,
            first_column: u32,
            columns: u32,
            layout: *mut Layout,
        ) -> c_int;
        fn qf_jpeg_rows(
            jpeg: *mut Opaque,
            skipped: u32,
            rows: u32,
            out: *mut u8,
            stride: usize,
        ) -> c_int;
    }

    /// A decompressor, with or without a picture.
    pub(super) struct Handle(NonNull<Opaque>);

    // SAFETY: the handle is plain memory without ties to a thread, and used through `&mut` only.
    unsafe impl Send for Handle {}

    impl Handle {
        pub(super) fn new() -> Result<Handle, Error> {
            // SAFETY: it takes nothing and returns an owned handle or null.
            let jpeg = unsafe { qf_jpeg_new() };
            NonNull::new(jpeg).map(Handle).ok_or(Error::NoMemory(0))
        }

        /// Reads the header of a picture; rows of these columns come next.
        pub(super) fn begin<'a>(
            &'a mut self,
            bytes: &'a [u8],
            options: Options,
            scale: Scale,
            first_column: u32,
            columns: u32,
        ) -> Result<Picture<'a>, Error> {
            let mut picture = Picture {
                handle: self,
                _bytes: bytes,
                layout: Layout::default(),
            };
            // SAFETY: the handle is valid; `bytes` and `layout` are valid for the call. The handle
            // keeps a pointer to `bytes` that `qf_jpeg_rows` alone reads through: `Picture` is the
            // only way there, and it borrows them. If a `Picture` is leaked, the pointer is
            // replaced unread by the next `begin`, or dropped with the handle.
            let status = unsafe {
                qf_jpeg_begin(
                    picture.handle.0.as_ptr(),
                    bytes.as_ptr(),
                    bytes.len(),
                    c_int::from(options.lenient),
                    c_int::from(options.max_scans),
                    scale as u32,
                    first_column,
                    columns,
                    &mut picture.layout,
                )
            };
            picture.handle.check(status)?;
            Ok(picture)
        }

        fn check(&self, status: c_int) -> Result<(), Error> {
            if status == 0 {
                return Ok(());
            }
            // SAFETY: the message is a string within the handle, ended by a zero byte.
            let message = unsafe { CStr::from_ptr(qf_jpeg_message(self.0.as_ptr())) };
            let message = message.to_string_lossy().into_owned();
            Err(match status {
                2 => Error::Truncated(message),
                3 => Error::Damaged(message),
                _ => Error::Broken(message),
            })
        }
    }

    impl Drop for Handle {
        fn drop(&mut self) {
            // SAFETY: the handle is valid and goes away here.
            unsafe { qf_jpeg_free(self.0.as_ptr()) }
        }
    }

    /// A picture whose header is read and whose rows are not.
    pub(super) struct Picture<'a> {
        handle: &'a mut Handle,
        _bytes: &'a [u8],
        layout: Layout,
    }

    impl Picture<'_> {
        pub(super) fn layout(&self) -> Layout {
            self.layout
        }

        /// Passes over `skipped` rows and writes the next ones to `out`, `stride` bytes apart.
        pub(super) fn rows(
            self,
            skipped: u32,
            rows: u32,
            out: &mut [u8],
            stride: usize,
        ) -> Result<(), Error> {
            let Layout {
                columns,
                channels,
                scaled_height,
                ..
            } = self.layout;
            let end = skipped.checked_add(rows);
            let len = (rows as usize).checked_mul(stride);
            let fits = stride >= columns as usize * channels as usize
                && end.is_some_and(|end| end <= scaled_height)
                && len.is_some_and(|len| len <= out.len());
            if !fits {
                return Err(Error::Broken("rows beyond the picture".into()));
            }
            // SAFETY: the picture is begun and its bytes are borrowed; the rows lie within it, each
            // fits its stride, and together they fit `out`.
            let status = unsafe {
                let jpeg = self.handle.0.as_ptr();
                qf_jpeg_rows(jpeg, skipped, rows, out.as_mut_ptr(), stride)
            };
            self.handle.check(status)
        }
    }

    impl Drop for Picture<'_> {
        fn drop(&mut self) {
            // SAFETY: the handle is valid.
            unsafe { qf_jpeg_end(self.handle.0.as_ptr()) }
        }
    }
}
