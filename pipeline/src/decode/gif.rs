//! GIF: the first frame, on its screen.
//!
//! Where the frame does not cover the screen there is its transparent colour or else its first one,
//! and a frame beyond the screen enlarges it, both as in PIL. Rows come as they are decoded; only of
//! an interlaced frame all are held.

use weezl::decode::Decoder;
use weezl::{BitOrder, LzwStatus};

use super::buffers::{memory_for, RowSink};
use super::samples::{grey_palette, palette, Colour, Layout};
use super::{CropBox, DecodeError, DecodeLimits, ImageFormat, OnTruncated};

/// Most pixels that a byte of data can stand for: a code of 12 bits for a string of 4,096.
const MAX_PIXELS_PER_BYTE: u64 = 2731;

/// What the blocks before the data tell.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    /// Left, top, width, height.
    frame: (usize, usize, usize, usize),
    interlaced: bool,
    layout: Layout,
    /// The index of what the frame does not cover.
    fill: u8,
    code_size: u8,
    /// Offset of the first block of data.
    data: usize,
}

impl Header {
    pub(super) fn read(
        bytes: &[u8],
        limits: &DecodeLimits,
        on_truncated: OnTruncated,
    ) -> Result<Header, DecodeError> {
        let mut cursor = Cursor { bytes, at: 6 };
        let &[w0, w1, h0, h1, flags, _, _] = cursor.take()?;
        let global = cursor.colours(flags)?;
        let mut transparent = None;
        loop {
            match cursor.byte()? {
                b'!' => {
                    let label = cursor.byte()?;
                    let block = cursor.block()?;
                    if let (0xf9, [flags, _, _, index, ..]) = (label, block) {
                        if flags & 1 != 0 {
                            transparent = Some(*index);
                        }
                    }
                    let mut last = block;
                    while !last.is_empty() {
                        last = cursor.block()?;
                    }
                }
                b',' => break,
                b';' => return Err(broken("it holds no picture")),
                _ => {} // PIL passes over what is between blocks.
            }
        }
        let &[x0, x1, y0, y1, fw0, fw1, fh0, fh1, frame_flags] = cursor.take()?;
        let local = cursor.colours(frame_flags)?;
        let code_size = cursor.byte()?;
        if !(1..=11).contains(&code_size) {
            return Err(broken(format!(
                "its codes begin with {code_size} bits, expected 1 to 11"
            )));
        }
        let word = |low, high| u16::from_le_bytes([low, high]);
        let (x, y) = (word(x0, x1), word(y0, y1));
        let (frame_width, frame_height) = (word(fw0, fw1), word(fh0, fh1));
        if frame_width == 0 || frame_height == 0 {
            return Err(broken(format!(
                "its first frame is of {frame_width}×{frame_height} pixels"
            )));
        }
        let width = u32::from(word(w0, w1)).max(u32::from(x) + u32::from(frame_width));
        let height = u32::from(word(h0, h1)).max(u32::from(y) + u32::from(frame_height));
        limits.check(ImageFormat::Gif, width, height)?;
        let colours = local.or(global).map_or_else(grey_palette, palette);
        let header = Header {
            width,
            height,
            frame: (x.into(), y.into(), frame_width.into(), frame_height.into()),
            interlaced: frame_flags & 0x40 != 0,
            layout: Layout {
                bits: 8,
                samples: 1,
                big_endian: true,
                colour: Colour::Palette(colours),
            },
            fill: transparent.unwrap_or(0),
            code_size,
            data: cursor.at,
        };
        let pixels = u64::from(frame_width) * u64::from(frame_height);
        let left = bytes.len() - cursor.at;
        if on_truncated == OnTruncated::Error && pixels / MAX_PIXELS_PER_BYTE > left as u64 {
            return Err(broken(format!(
                "{left} bytes of data cannot hold {frame_width}×{frame_height} pixels"
            )));
        }
        Ok(header)
    }

    /// Bytes of all indices, where they are all held.
    pub(super) fn held_bytes(&self) -> u64 {
        match self.interlaced {
            true => (self.frame.2 * self.frame.3) as u64,
            false => 0,
        }
    }

    /// Hands over the rows of a region of the screen. Data is decoded to the frame's end, so that a
    /// file that is cut off is found out whatever the region.
    pub(super) fn rows(
        &self,
        bytes: &[u8],
        region: CropBox,
        on_truncated: OnTruncated,
        sink: RowSink<'_>,
    ) -> Result<(), DecodeError> {
        let (left, top, width, height) = self.frame;
        let mut indices = Indices::new(&bytes[self.data..], self.code_size);
        let mut screen = memory_for(ImageFormat::Gif, self.width as usize)?;
        screen.fill(self.fill);
        let mut out = memory_for(ImageFormat::Gif, region.width as usize * 3)?;
        let (mut scratch, first) = (Vec::new(), region.x as usize);
        let rows = region.y as usize..(region.y + region.height) as usize;
        // Of a row that is not whole there is what was decoded, as in PIL.
        let mut read = |row: &mut [u8]| {
            row.fill(self.fill);
            match (indices.read(row), on_truncated) {
                (Err(_), OnTruncated::Grey) => Ok(()),
                (result, _) => result,
            }
        };
        let frame = match self.interlaced {
            false => None,
            true => {
                let mut all = memory_for(ImageFormat::Gif, width * height)?;
                all.fill(self.fill);
                for row in interlaced(height) {
                    read(&mut all[row * width..][..width])?;
                }
                Some(all)
            }
        };
        for at in 0..rows.end.max(top + height) {
            let row = &mut screen[left..left + width];
            let in_frame = (top..top + height).contains(&at);
            match &frame {
                Some(all) if in_frame => row.copy_from_slice(&all[(at - top) * width..][..width]),
                None if in_frame => read(row)?,
                _ => row.fill(self.fill),
            }
            if rows.contains(&at) {
                self.layout.to_rgb(&screen, first, &mut scratch, &mut out);
                sink(&out);
            }
        }
        Ok(())
    }
}

/// The rows of an interlaced frame in the order in which they come.
fn interlaced(height: usize) -> impl Iterator<Item = usize> {
    let passes = [(0, 8), (4, 8), (2, 4), (1, 2)];
    passes
        .into_iter()
        .flat_map(move |(first, step)| (first..height).step_by(step))
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::broken(ImageFormat::Gif, message)
}

fn truncated() -> DecodeError {
    broken("its data ends before the picture does; on_truncated = \"grey\" takes what there is")
}

/// Decoded indices, a row at a time.
struct Indices<'a> {
    decoder: Decoder,
    cursor: Cursor<'a>,
    block: &'a [u8],
    ended: bool,
}

impl<'a> Indices<'a> {
    fn new(data: &'a [u8], code_size: u8) -> Indices<'a> {
        Indices {
            decoder: Decoder::new(BitOrder::Lsb, code_size),
            cursor: Cursor { bytes: data, at: 0 },
            block: &[],
            ended: false,
        }
    }

    /// Fills a row.
    fn read(&mut self, row: &mut [u8]) -> Result<(), DecodeError> {
        let mut done = 0;
        while done < row.len() {
            if self.ended {
                return Err(truncated());
            }
            if self.block.is_empty() {
                // Behind the last block the decoder may still hold what it has not given out.
                self.block = self.cursor.whole_block();
            }
            let result = self.decoder.decode_bytes(self.block, &mut row[done..]);
            self.block = &self.block[result.consumed_in..];
            done += result.consumed_out;
            match result.status {
                Ok(LzwStatus::Ok) => {}
                Ok(LzwStatus::NoProgress) if !self.cursor.is_over() => {}
                Ok(LzwStatus::NoProgress | LzwStatus::Done) => {
                    self.ended = result.consumed_out == 0;
                }
                Err(error) => {
                    self.ended = true;
                    return Err(broken(format!("its data is damaged ({error})")));
                }
            }
        }
        Ok(())
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.first_chunk());
        self.at += N;
        taken.ok_or_else(|| {
            broken(format!(
                "it is truncated, it ends after {} bytes",
                self.bytes.len()
            ))
        })
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|byte| byte[0])
    }

    /// A block of data behind its length; an empty one ends a series.
    fn block(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = usize::from(self.byte()?);
        let block = self.bytes.get(self.at..self.at + len);
        self.at += len;
        block.ok_or_else(truncated)
    }

    /// The next block of data, empty from the end of the series on. A block that is cut off is not
    /// looked at, as in PIL.
    fn whole_block(&mut self) -> &'a [u8] {
        let block = self.block().unwrap_or_default();
        if block.is_empty() {
            self.at = self.bytes.len();
        }
        block
    }

    fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The colours that flags announce.
    fn colours(&mut self, flags: u8) -> Result<Option<&'a [u8]>, DecodeError> {
        if flags & 0x80 == 0 {
            return Ok(None);
        }
        let len = 3 << ((flags & 7) + 1);
        let colours = self.bytes.get(self.at..self.at + len);
        self.at += len;
        colours.map(Some).ok_or_else(truncated)
    }
}
