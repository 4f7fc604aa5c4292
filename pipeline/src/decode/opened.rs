//! An image whose header has been read, of whatever format.

use image::metadata::Orientation;

use super::buffers::RowSink;
use super::orientation::Turn;
use super::{
    bmp, gif, jpeg, png, tiff, webp, CropBox, DecodeError, DecodeLimits, ImageFormat, OnTruncated,
};

/// An image whose header has been read.
#[derive(Debug)]
pub struct OpenedImage<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) format: ImageFormat,
    pub(super) stored_size: (u32, u32),
    pub(super) turn: Turn,
    pub(super) content: Content,
}

/// What its header told.
#[derive(Debug)]
pub(super) enum Content {
    Jpeg(jpeg::Header),
    WebP(webp::Header),
    /// Formats whose rows come one by one.
    Rows(RowHeader),
}

#[derive(Debug)]
pub(super) enum RowHeader {
    Png(Box<png::Header>),
    Gif(Box<gif::Header>),
    Bmp(bmp::Header),
    Tiff(Box<tiff::Header>),
}

impl<'a> OpenedImage<'a> {
    /// Reads the header of a file of this format.
    pub(super) fn read(
        format: ImageFormat,
        bytes: &'a [u8],
        limits: &DecodeLimits,
        on_truncated: OnTruncated,
    ) -> Result<OpenedImage<'a>, DecodeError> {
        const UPRIGHT: Orientation = Orientation::NoTransforms;
        let ((width, height), orientation, content) = match format {
            ImageFormat::Jpeg => {
                let header = jpeg::Header::read(bytes, limits, on_truncated)?;
                let size = (u32::from(header.width), u32::from(header.height));
                (size, header.orientation, Content::Jpeg(header))
            }
            ImageFormat::WebP => {
                let header = webp::Header::read(bytes, limits)?;
                let size = (header.width, header.height);
                (size, header.orientation, Content::WebP(header))
            }
            ImageFormat::Png => {
                let header = png::Header::read(bytes, limits, on_truncated)?;
                let (size, orientation) = ((header.width, header.height), header.orientation);
                let rows = RowHeader::Png(Box::new(header));
                (size, orientation, Content::Rows(rows))
            }
            ImageFormat::Gif => {
                let header = gif::Header::read(bytes, limits, on_truncated)?;
                let size = (header.width, header.height);
                let rows = RowHeader::Gif(Box::new(header));
                (size, UPRIGHT, Content::Rows(rows))
            }
            ImageFormat::Bmp => {
                let header = bmp::Header::read(bytes, limits)?;
                let size = (header.width, header.height);
                (size, UPRIGHT, Content::Rows(RowHeader::Bmp(header)))
            }
            ImageFormat::Tiff => {
                let header = tiff::Header::read(bytes, limits)?;
                let (size, orientation) = ((header.width, header.height), header.orientation);
                let rows = RowHeader::Tiff(Box::new(header));
                (size, orientation, Content::Rows(rows))
            }
        };
        Ok(OpenedImage {
            bytes,
            format,
            stored_size: (width, height),
            turn: orientation.into(),
            content,
        })
    }

    /// Told by content.
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// Whether the picture as stored lies on its side, upside down or mirrored, and EXIF or XMP says so.
    pub fn is_turned(&self) -> bool {
        self.turn != Turn::default()
    }

    /// Width of the upright picture in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.turn.size(self.stored_size).0
    }

    /// Height of the upright picture in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.turn.size(self.stored_size).1
    }

    /// Refuses a crop that is not within the picture.
    pub(super) fn check_crop(&self, crop: CropBox) -> Result<(), DecodeError> {
        let ends = (
            crop.x.checked_add(crop.width),
            crop.y.checked_add(crop.height),
        );
        let inside = crop.width > 0
            && crop.height > 0
            && ends.0.is_some_and(|end| end <= self.width())
            && ends.1.is_some_and(|end| end <= self.height());
        match inside {
            true => Ok(()),
            false => Err(DecodeError::broken(
                self.format,
                "a crop beyond the picture",
            )),
        }
    }
}

impl RowHeader {
    /// Bytes that decoding a region takes beside its rows.
    pub(super) fn held_bytes(&self, region: CropBox) -> u64 {
        match self {
            RowHeader::Png(header) => header.held_bytes(),
            RowHeader::Gif(header) => header.held_bytes(),
            RowHeader::Bmp(header) => header.held_bytes(),
            RowHeader::Tiff(header) => header.held_bytes(region),
        }
    }

    /// Hands over the rows of a region in stored orientation, all of them unless it fails.
    pub(super) fn rows(
        &self,
        bytes: &[u8],
        region: CropBox,
        (limits, on_truncated): (&DecodeLimits, OnTruncated),
        sink: RowSink<'_>,
    ) -> Result<(), DecodeError> {
        match self {
            RowHeader::Png(header) => header.rows(bytes, region, on_truncated, sink),
            RowHeader::Gif(header) => header.rows(bytes, region, on_truncated, sink),
            RowHeader::Bmp(header) => header.rows(bytes, region, sink),
            RowHeader::Tiff(header) => header.rows(bytes, region, limits, sink),
        }
    }
}
