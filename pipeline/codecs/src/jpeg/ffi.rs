//! The functions of `jpeg.c`.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::ptr::NonNull;

use super::components::{Components, Geometry};
use super::part::{Error, Options, Region, Scale};
use crate::strip::ComponentStrip;
use crate::{huffman, inverse};
// The archive is named in its build script; this keeps the crate linked.
use turbojpeg_sys as _;

/// `QF_GIVEN_UP`.
const GIVEN_UP: c_int = 4;

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

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Block {
    component: u8,
    dc: u8,
    ac: u8,
    wants_ac: u8,
}

/// What libjpeg knows of a component; `factors` points to 64 of them, which live as long as the
/// picture.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plane {
    index: u32,
    across: u32,
    down: u32,
    side: u32,
    factors: *const [u16; 64],
}

/// Pointers to the counts (17) and symbols (256) of codes, which live as long as the picture.
#[repr(C)]
#[derive(Clone, Copy)]
struct Scan {
    offset: usize,
    dc_counts: [*const [u8; 17]; 4],
    dc_symbols: [*const [u8; 256]; 4],
    ac_counts: [*const [u8; 17]; 4],
    ac_symbols: [*const [u8; 256]; 4],
    mcus_per_row: u32,
    first_mcu: u32,
    last_mcu: u32,
    restart_interval: u32,
    block_count: u32,
    blocks: [Block; huffman::MAX_BLOCKS],
    mcu_rows: u32,
    is_ycc: u32,
    plane_count: u32,
    planes: [Plane; inverse::PLANES],
}

impl Default for Scan {
    fn default() -> Scan {
        Scan {
            offset: 0,
            dc_counts: [std::ptr::null(); 4],
            dc_symbols: [std::ptr::null(); 4],
            ac_counts: [std::ptr::null(); 4],
            ac_symbols: [std::ptr::null(); 4],
            mcus_per_row: 0,
            first_mcu: 0,
            last_mcu: 0,
            restart_interval: 0,
            block_count: 0,
            blocks: Default::default(),
            mcu_rows: 0,
            is_ycc: 0,
            plane_count: 0,
            planes: [Plane {
                index: 0,
                across: 0,
                down: 0,
                side: 0,
                factors: std::ptr::null(),
            }; inverse::PLANES],
        }
    }
}

impl Scan {
    fn plan(&self) -> huffman::ScanPlan {
        huffman::ScanPlan {
            blocks: self.blocks.map(|block| huffman::BlockPlan {
                component: block.component,
                dc: block.dc,
                ac: block.ac,
                wants_ac: block.wants_ac != 0,
            }),
            block_count: self.block_count as usize,
            mcus_per_row: self.mcus_per_row,
            wanted_mcus: (self.first_mcu, self.last_mcu),
            restart_interval: self.restart_interval,
        }
    }

    /// Its three components, where they can be transformed by our code.
    fn planes(&self) -> Option<[inverse::PlanePlan; inverse::PLANES]> {
        let planes = self.planes.get(..self.plane_count as usize)?;
        let plan = |plane: &Plane| {
            Some(inverse::PlanePlan {
                index: plane.index as usize,
                across: plane.across as usize,
                down: plane.down as usize,
                side: plane.side as usize,
                // SAFETY: it points into libjpeg's tables, which are there until the picture
                // ends, or nowhere. libjpeg multiplies in 16 bits, too.
                factors: unsafe { plane.factors.as_ref()? }.map(|factor| factor as i16),
            })
        };
        let [a, b, c] = planes else {
            return None;
        };
        Some([plan(a)?, plan(b)?, plan(c)?])
    }
}

/// What C calls for MCUs: their scan, and the number of their blocks.
struct Caller<'a> {
    scan: huffman::Scan<'a>,
    block_count: usize,
}

type NextMcu = unsafe extern "C" fn(*mut c_void, *mut huffman::Block) -> c_int;

/// # Safety
/// `caller` points to a [`Caller`], and `blocks` to as many blocks as its MCUs have, or nowhere.
unsafe extern "C" fn next_mcu(caller: *mut c_void, blocks: *mut huffman::Block) -> c_int {
    // SAFETY: the caller's promise.
    let (caller, blocks) = unsafe {
        let caller = &mut *caller.cast::<Caller<'_>>();
        let blocks = match blocks.is_null() {
            true => None,
            false => Some(std::slice::from_raw_parts_mut(blocks, caller.block_count)),
        };
        (caller, blocks)
    };
    caller.scan.next_mcu(blocks).is_some().into()
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
        scan: *mut Scan,
    ) -> c_int;
    fn qf_jpeg_rows(
        jpeg: *mut Opaque,
        skipped: u32,
        rows: u32,
        out: *mut u8,
        stride: usize,
        next_mcu: Option<NextMcu>,
        scan: *mut c_void,
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
            bytes,
            layout: Layout::default(),
            scan: Scan::default(),
        };
        // SAFETY: the handle is valid; `bytes`, `layout` and `scan` are valid for the call. The handle
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
                &mut picture.scan,
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
    bytes: &'a [u8],
    layout: Layout,
    scan: Scan,
}

impl Picture<'_> {
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The code of this class and number.
    fn code(&self, is_dc: bool, number: u8) -> Option<huffman::Code> {
        let scan = &self.scan;
        let (counts, symbols) = match is_dc {
            true => (&scan.dc_counts, &scan.dc_symbols),
            false => (&scan.ac_counts, &scan.ac_symbols),
        };
        let counts = *counts.get(usize::from(number))?;
        let symbols = *symbols.get(usize::from(number))?;
        // SAFETY: they point into libjpeg's tables, which are there until the picture ends, or
        // nowhere.
        let (counts, symbols) = unsafe { (counts.as_ref()?, symbols.as_ref()?) };
        Some(huffman::Code {
            counts: *counts,
            symbols: *symbols,
        })
    }

    /// Its scan at its beginning. None if it is not one that our code decodes.
    fn scan<'b>(&'b self, tables: &'b mut huffman::Tables) -> Option<huffman::Scan<'b>> {
        let plan = self.scan.plan();
        if plan.block_count == 0 {
            return None;
        }
        let data = self.bytes.get(self.scan.offset..).unwrap_or_default();
        let codes = |is_dc, number| self.code(is_dc, number);
        huffman::Scan::new(tables, plan, codes, data)
    }

    /// Hands a region over in strips of components. None if they are not of a kind that our code
    /// decodes, and nothing of that if they are not sound.
    pub(super) fn components(
        self,
        region: &Region,
        (tables, coefficients): (&mut huffman::Tables, &mut inverse::Coefficients),
        components: &mut Components,
        sink: &mut dyn FnMut(&ComponentStrip<'_>),
    ) -> Option<Option<()>> {
        if self.scan.is_ycc == 0 {
            return None;
        }
        let planes = self.scan.planes()?;
        let size = (self.layout.scaled_width, self.layout.scaled_height);
        let mcus = (self.scan.mcu_rows, self.scan.mcus_per_row);
        let wanted = (self.scan.first_mcu, self.scan.last_mcu);
        let geometry = Geometry::new(size, mcus, wanted, &planes)?;
        let mut scan = self.scan(tables)?;
        let mut inverse = inverse::Inverse::new(planes, mcus.1, wanted, coefficients)?;
        Some(components.read(&geometry, region, (&mut scan, &mut inverse), sink))
    }

    /// Passes over `skipped` rows and hands over the next ones, as many at a time as `memory`
    /// holds of `stride` bytes, with the number of the first; with `own` tables, Huffman codes
    /// are decoded by our code, where it can. Returns whether that went well.
    pub(super) fn rows(
        self,
        skipped: u32,
        rows: u32,
        memory: &mut [u8],
        stride: usize,
        own: Option<&mut huffman::Tables>,
        sink: &mut dyn FnMut(u32, &[u8]),
    ) -> Result<bool, Error> {
        let Layout {
            columns,
            channels,
            scaled_height,
            ..
        } = self.layout;
        let end = skipped.checked_add(rows);
        let at_once = memory.len() / stride.max(1);
        let fits = stride >= columns as usize * channels as usize
            && end.is_some_and(|end| end <= scaled_height)
            && at_once > 0;
        if !fits {
            return Err(Error::Broken("rows beyond the picture".into()));
        }
        let block_count = self.scan.block_count as usize;
        let own = own.and_then(|tables| self.scan(tables));
        let mut caller = own.map(|scan| Caller { scan, block_count });
        let (mut done, mut to_skip) = (0, skipped);
        while done < rows {
            let count = (rows - done).min(u32::try_from(at_once).unwrap_or(u32::MAX));
            let (mcu, context) = match &mut caller {
                Some(caller) => (
                    Some(next_mcu as NextMcu),
                    std::ptr::from_mut(caller).cast::<c_void>(),
                ),
                None => (None, std::ptr::null_mut()),
            };
            let strip = &mut memory[..count as usize * stride];
            // SAFETY: the picture is begun and its bytes are borrowed; the rows lie within it,
            // each fits its stride, and together they fit `strip`. `caller` outlives the call,
            // is used by nothing else in it, and counts the blocks that libjpeg has in an MCU.
            let status = unsafe {
                let (jpeg, out) = (self.handle.0.as_ptr(), strip.as_mut_ptr());
                qf_jpeg_rows(jpeg, to_skip, count, out, stride, mcu, context)
            };
            if status == GIVEN_UP {
                return Ok(false);
            }
            self.handle.check(status)?;
            sink(done, strip);
            done += count;
            to_skip = 0;
        }
        Ok(true)
    }
}

impl Drop for Picture<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is valid.
        unsafe { qf_jpeg_end(self.handle.0.as_ptr()) }
    }
}
