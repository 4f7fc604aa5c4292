//! Decodes a crop of an opened image.

mod components;

use qf_codecs::jpeg::{ComponentStrip, Decompressor, Entropy, Outcome, Part, Region, Scale, Strip};
use qf_codecs::resample::{Area, STRIP_ROWS};

use super::buffers::grow;
use super::memory::{Pixels, Reservation};
use super::opened::{Content, RowHeader};
use super::orientation::{self, Turn};
use super::samples::ink_on;
use super::{
    jpeg, webp, CropBox, DecodeError, DecodeLimits, DecodeQuality, ForeignFormat, ImageFormat,
    OnTruncated, OpenedImage,
};
use crate::guard::guarded;
use crate::image_format::describe_unknown;
use crate::pixels::RgbImage;

/// Decoded pixels that hold a crop: stored orientation, perhaps reduced, perhaps with columns and
/// rows beside the crop. Memory of a large one goes back to the decoders' budget when it is dropped.
#[derive(Debug)]
pub struct DecodedCrop<'a> {
    /// `[rows, columns, 3]` u8, RGB.
    pub(crate) pixels: Pixels<'a>,
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
            pixels: Pixels::Kept(&image.data),
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
    /// How to turn it upright; never a transposition.
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
    /// Pixels of pictures that take little, from one to the next.
    pixels: Vec<u8>,
}

impl Decoder {
    /// A decoder with these bounds; those whose limits are clones share the memory they allow.
    pub fn new(limits: DecodeLimits, on_truncated: OnTruncated) -> Decoder {
        Decoder {
            limits,
            on_truncated,
            jpeg: None,
            pixels: Vec::new(),
        }
    }

    /// Reads the header of an image.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]: bytes of no known format, a damaged or truncated image, one beyond the
    /// limits.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<OpenedImage<'a>, DecodeError> {
        let Some(format) = ImageFormat::sniff(bytes) else {
            return Err(match ForeignFormat::sniff(bytes) {
                Some(format) => DecodeError::Foreign { format },
                None => DecodeError::UnknownFormat {
                    len_bytes: bytes.len(),
                    looks_like: describe_unknown(bytes),
                },
            });
        };
        guard(format, || {
            OpenedImage::read(format, bytes, &self.limits, self.on_truncated)
        })
    }

    /// Decodes `crop`, a region of the upright picture, to be resized to `size` × `size`. A large one
    /// waits for memory that other decoders use.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Broken`] for data that does not decode down to the crop's last row, and for a
    /// crop that is not within the picture; [`DecodeError::TooLarge`] for one beyond the limits.
    pub fn decode<'a>(
        &'a mut self,
        image: &OpenedImage<'_>,
        crop: CropBox,
        size: u32,
        quality: DecodeQuality,
    ) -> Result<DecodedCrop<'a>, DecodeError> {
        image.check_crop(crop)?;
        let stored = image.turn.stored(crop, image.stored_size);
        guard(image.format, || match &image.content {
            Content::Rows(header) => self.decode_rows(image, header, stored, size),
            Content::WebP(header) => self.decode_webp(image, header, stored, size),
            Content::Jpeg(header) => {
                let scale = quality.scale((stored.width, stored.height), size);
                self.decode_jpeg(image, header, ReducedCrop::new(stored, scale), size)
            }
        })
    }

    /// Memory for a picture that takes `bytes`: what is kept, or of a large one new memory.
    fn memory(
        &mut self,
        image: &OpenedImage<'_>,
        bytes: u64,
    ) -> Result<(Vec<u8>, Option<Reservation>), DecodeError> {
        let reservation = self
            .limits
            .reserve(image.format, image.stored_size, bytes)?;
        Ok(match &reservation {
            None => (std::mem::take(&mut self.pixels), None),
            Some(_) => (Vec::new(), reservation),
        })
    }

    /// Runs another decoder of a picture, which takes about `bytes` of memory, within the bounds of this one.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] for a picture that needs more memory than all decoders may use together,
    /// [`DecodeError::Broken`] for one over which that decoder panics.
    pub fn bounded<T>(
        &self,
        image: &OpenedImage<'_>,
        bytes: u64,
        decode: impl FnOnce() -> T,
    ) -> Result<T, DecodeError> {
        let _reservation = self
            .limits
            .reserve(image.format, image.stored_size, bytes)?;
        guard(image.format, || Ok(decode()))
    }

    /// The first `len` bytes of memory, which is kept unless it was for a large picture.
    fn keep(
        &mut self,
        mut memory: Vec<u8>,
        len: usize,
        reservation: Option<Reservation>,
    ) -> Pixels<'_> {
        match reservation {
            Some(reservation) => {
                memory.truncate(len);
                Pixels::Own(memory, reservation)
            }
            None => {
                self.pixels = memory;
                Pixels::Kept(&self.pixels[..len.min(self.pixels.len())])
            }
        }
    }

    fn decode_rows(
        &mut self,
        image: &OpenedImage<'_>,
        header: &RowHeader,
        stored: CropBox,
        size: u32,
    ) -> Result<DecodedCrop<'_>, DecodeError> {
        let len = stored.width as usize * 3 * stored.height as usize;
        let needed = header.held_bytes(stored) + len as u64 + halfway_bytes(stored, size);
        let (mut memory, reservation) = self.memory(image, needed)?;
        let mut filled = 0;
        let bounds = (&self.limits, self.on_truncated);
        let done = grow(&mut memory, image.format, len).and_then(|()| {
            header.rows(image.bytes, stored, bounds, &mut |row| {
                memory[filled..filled + row.len()].copy_from_slice(row);
                filled += row.len();
            })
        });
        let pixels = self.keep(memory, len, reservation);
        done?;
        if filled != len {
            return Err(DecodeError::broken(image.format, "it has too few rows"));
        }
        Ok(DecodedCrop {
            pixels,
            columns: stored.width,
            rows: stored.height,
            hull: CropBox {
                x: 0,
                y: 0,
                ..stored
            },
            crop: Area::whole(f64::from(stored.width), f64::from(stored.height)),
            turn: image.turn,
        })
    }

    fn decode_webp(
        &mut self,
        image: &OpenedImage<'_>,
        header: &webp::Header,
        stored: CropBox,
        size: u32,
    ) -> Result<DecodedCrop<'_>, DecodeError> {
        // Up to two columns and rows before the region, and one behind it.
        let pixels = (u64::from(stored.width) + 3) * (u64::from(stored.height) + 3);
        let needed = header.held_bytes(stored) + pixels * 3 + halfway_bytes(stored, size);
        let (mut memory, reservation) = self.memory(image, needed)?;
        let done = header.decode(image.bytes, stored, &mut memory);
        let len = match &done {
            Ok(placed) => placed.columns as usize * 3 * (placed.before.1 + stored.height) as usize,
            Err(_) => 0,
        };
        let pixels = self.keep(memory, len, reservation);
        let webp::Placed { columns, before } = done?;
        Ok(DecodedCrop {
            pixels,
            columns,
            rows: before.1 + stored.height,
            hull: CropBox {
                x: before.0,
                y: before.1,
                ..stored
            },
            crop: Area::whole(f64::from(stored.width), f64::from(stored.height)),
            turn: image.turn,
        })
    }

    fn decode_jpeg(
        &mut self,
        image: &OpenedImage<'_>,
        header: &jpeg::Header,
        reduced: ReducedCrop,
        size: u32,
    ) -> Result<DecodedCrop<'_>, DecodeError> {
        let rows = reduced.region.height;
        let stored = CropBox {
            x: reduced.region.x,
            y: reduced.region.y,
            width: reduced.region.width,
            height: rows,
        };
        let needed = reduced.needed_bytes(image, header, rows) + halfway_bytes(stored, size);
        let (mut memory, reservation) = self.memory(image, needed)?;
        let part = reduced.part(image, header, self.on_truncated);
        let mut placed = None;
        let mut sink = |strip: Strip<'_>| placed = Some(strip.placed);
        let done = self
            .decompressor()
            .and_then(|jpeg| jpeg::decode(jpeg, &part, rows, &mut memory, &mut sink));
        let (columns, first) = placed.map_or((0, 0), |placed| {
            let columns = placed.stride / placed.channels;
            let pixels = columns * rows as usize;
            if placed.channels == 4 && done.is_ok() {
                cmyk_to_rgb(&mut memory[..pixels * 4]);
            }
            (columns, placed.offset / placed.channels)
        });
        let pixels = self.keep(memory, columns * rows as usize * 3, reservation);
        done?;
        if columns == 0 {
            return Err(DecodeError::broken(ImageFormat::Jpeg, "it has no rows"));
        }
        Ok(DecodedCrop {
            pixels,
            columns: columns as u32,
            rows,
            hull: CropBox {
                x: first as u32,
                y: 0,
                width: reduced.region.width,
                height: rows,
            },
            crop: reduced.crop,
            turn: image.turn,
        })
    }

    /// Decodes `crop` as [`Decoder::decode`] does, [`STRIP_ROWS`] rows at a time; should a JPEG turn
    /// out to be damaged, they may come once more, from the first row. Returns false, with nothing done,
    /// for what only comes as a whole: WebP, JPEGs of four channels, and transposed pictures.
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
        if image.turn.transposed {
            return Ok(false);
        }
        image.check_crop(crop)?;
        let stored = image.turn.stored(crop, image.stored_size);
        match &image.content {
            Content::WebP(_) => return Ok(false),
            Content::Jpeg(header) if header.components == 4 => return Ok(false),
            Content::Jpeg(header) => {
                let scale = quality.scale((stored.width, stored.height), size);
                let reduced = ReducedCrop::new(stored, scale);
                guard(image.format, || {
                    self.strips_of_jpeg(image, header, &reduced, sink)
                })
            }
            Content::Rows(header) => guard(image.format, || {
                self.strips_of_rows(image, header, stored, sink)
            }),
        }?;
        Ok(true)
    }

    fn strips_of_jpeg(
        &mut self,
        image: &OpenedImage<'_>,
        header: &jpeg::Header,
        reduced: &ReducedCrop,
        sink: &mut dyn FnMut(&DecodedStrip<'_>),
    ) -> Result<(), DecodeError> {
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
        let rows_at_once = STRIP_ROWS as u32;
        let needed = reduced.needed_bytes(image, header, rows_at_once);
        let _reservation = self
            .limits
            .reserve(image.format, image.stored_size, needed)?;
        let mut part = reduced.part(image, header, self.on_truncated);
        if header.may_be_components() {
            let mut components = |strip: &ComponentStrip<'_>| {
                let rows = StripRows::Components(strip);
                hand_over(strip.first_row, strip.before, rows);
            };
            let outcome = self
                .decompressor()?
                .decode_components(&part, &mut components);
            match outcome {
                Outcome::Complete => return Ok(()),
                Outcome::OtherKind => {}
                Outcome::Corrupt => part.options.entropy = Entropy::Libjpeg,
            }
        }
        let mut pixels = |strip: Strip<'_>| {
            let rows = StripRows::Pixels {
                pixels: strip.pixels.get(strip.placed.offset..).unwrap_or_default(),
                stride: strip.placed.stride,
            };
            hand_over(strip.first_row, (0, 0), rows);
        };
        let mut memory = std::mem::take(&mut self.pixels);
        let done = self
            .decompressor()
            .and_then(|jpeg| jpeg::decode(jpeg, &part, rows_at_once, &mut memory, &mut pixels));
        self.pixels = memory;
        done
    }

    fn strips_of_rows(
        &mut self,
        image: &OpenedImage<'_>,
        header: &RowHeader,
        stored: CropBox,
        sink: &mut dyn FnMut(&DecodedStrip<'_>),
    ) -> Result<(), DecodeError> {
        let needed = header.held_bytes(stored);
        let _reservation = self
            .limits
            .reserve(image.format, image.stored_size, needed)?;
        let stride = stored.width as usize * 3;
        let mut memory = std::mem::take(&mut self.pixels);
        grow(&mut memory, image.format, stride * STRIP_ROWS)?;
        let (mut first_row, mut filled) = (0u32, 0);
        let mut gather = |row: &[u8]| {
            memory[filled * stride..][..stride].copy_from_slice(row);
            filled += 1;
            let is_last = first_row + filled as u32 == stored.height;
            if filled < STRIP_ROWS && !is_last {
                return;
            }
            sink(&DecodedStrip {
                first_row,
                rows: StripRows::Pixels {
                    pixels: &memory[..filled * stride],
                    stride,
                },
                before: (0, 0),
                width: stored.width,
                height: stored.height,
                crop: Area::whole(f64::from(stored.width), f64::from(stored.height)),
                turn: image.turn,
            });
            first_row += filled as u32;
            filled = 0;
        };
        let bounds = (&self.limits, self.on_truncated);
        let done = header.rows(image.bytes, stored, bounds, &mut gather);
        self.pixels = memory;
        done?;
        match first_row == stored.height {
            true => Ok(()),
            false => Err(DecodeError::broken(image.format, "it has too few rows")),
        }
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

    /// Decodes a whole image to upright RGB. The picture is the caller's: it does not count as memory
    /// of decoders any more.
    ///
    /// # Errors
    ///
    /// As [`Decoder::open`].
    pub fn decode_whole(&mut self, bytes: &[u8]) -> Result<RgbImage, DecodeError> {
        let opened = self.open(bytes)?;
        let all = CropBox {
            x: 0,
            y: 0,
            width: opened.width(),
            height: opened.height(),
        };
        let patch = self.decode(&opened, all, 1, DecodeQuality::Exact)?;
        let data = match patch.pixels {
            Pixels::Kept(pixels) => pixels.to_vec(),
            Pixels::Own(pixels, _) => pixels,
        };
        // Of a whole picture no columns come beside the crop.
        let image = RgbImage::new(patch.columns, patch.rows, data)
            .ok_or_else(|| DecodeError::broken(opened.format, "its size changed on the way"))?;
        Ok(orientation::apply(image, patch.turn))
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

    /// What to decode.
    fn part<'a>(
        &self,
        image: &OpenedImage<'a>,
        header: &jpeg::Header,
        on_truncated: OnTruncated,
    ) -> Part<'a> {
        let what = (self.scale, self.region);
        jpeg::part((image.bytes, header), what, on_truncated)
    }

    /// Memory that decoding takes, `rows` at a time.
    fn needed_bytes(&self, image: &OpenedImage<'_>, header: &jpeg::Header, rows: u32) -> u64 {
        // Whole blocks come beside the region, at most the picture's width.
        let width = image.stored_size.0.div_ceil(self.scale.reduction());
        header.alloc_bytes(u64::from(width) * u64::from(rows))
    }
}

/// Runs a decoder; its panic is an error of the image.
fn guard<T>(
    format: ImageFormat,
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let broken = |what: String| DecodeError::broken(format, format!("its decoder {what}"));
    guarded(decode).map_err(broken)?
}

/// Bytes of a crop that was resized to `size` along one side.
fn halfway_bytes(crop: CropBox, size: u32) -> u64 {
    u64::from(crop.width.max(crop.height)) * u64::from(size) * 3
}

/// Inverted CMYK to RGB in place, four bytes to three.
fn cmyk_to_rgb(pixels: &mut [u8]) {
    for at in 0..pixels.len() / 4 {
        let light = pixels[at * 4 + 3];
        for channel in 0..3 {
            pixels[at * 3 + channel] = ink_on(255 - pixels[at * 4 + channel], light);
        }
    }
}

/// Decodes an image to upright RGB.
///
/// # Errors
///
/// [`DecodeError`]: bytes of no known format, a damaged or truncated image, one beyond `limits`.
pub fn decode_rgb(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    Decoder::new(limits.clone(), OnTruncated::Error).decode_whole(bytes)
}
