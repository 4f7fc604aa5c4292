//! TIFF: the first page, a row of its region at a time.
//!
//! A file is a directory of tags and chunks of pixels, strips or tiles, which are compressed one by
//! one. Kinds are read that PIL reads, or else refused by name; of strips nothing is held but a row,
//! of tiles a row of them.

mod band;
mod chunks;
mod fax;
mod fields;
mod header;
mod layout;

use super::buffers::{memory_for, RowSink};
use super::{CropBox, DecodeError, DecodeLimits, ImageFormat};
use band::{Band, Chunks};
use fields::directory;
pub(super) use header::Header;

impl Header {
    pub(super) fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Header, DecodeError> {
        let directory = directory(bytes)?;
        let header = Header::of(&directory, limits)?;
        // A file that is cut off is found out here, whatever region is wanted.
        Chunks::of(&header, &directory)?.check(bytes)?;
        Ok(header)
    }

    /// Hands over the rows of a region.
    pub(super) fn rows(
        &self,
        bytes: &[u8],
        region: CropBox,
        limits: &DecodeLimits,
        sink: RowSink<'_>,
    ) -> Result<(), DecodeError> {
        let directory = directory(bytes)?;
        let chunks = Chunks::of(self, &directory)?;
        let mut out = memory_for(ImageFormat::Tiff, region.width as usize * 3)?;
        let mut scratch = Vec::new();
        let (first_tile, tiles) = self.tiles_of(region);
        let first = (region.x - first_tile * self.chunk.0) as usize;
        let end = region.y + region.height;
        for band in region.y / self.chunk.1..end.div_ceil(self.chunk.1) {
            let top = band * self.chunk.1;
            let mut rows = Band::open(&chunks, (bytes, limits), band, (first_tile, tiles))?;
            for at in top..end.min(top + self.chunk.1) {
                let row = rows.next_row()?;
                if at >= region.y {
                    self.layout.to_rgb(row, first, &mut scratch, &mut out);
                    sink(&out);
                }
            }
        }
        Ok(())
    }
}
