//! What to decode of a JPEG, and what becomes of it.

/// What a decoder needs to know beside the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether missing and damaged data becomes grey, as with PIL's `LOAD_TRUNCATED_IMAGES`,
    /// instead of an error.
    pub lenient: bool,
    /// Most scans of one picture.
    pub max_scans: u16,
    /// Who decodes the Huffman codes of a sequential picture.
    pub entropy: Entropy,
}

/// Who decodes Huffman codes. The pixels and the errors are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entropy {
    /// Our code, where it can: sequential pictures of one scan. Damaged ones are then decoded once
    /// more, by libjpeg.
    #[default]
    Fast,
    /// libjpeg: for tests and comparisons.
    Libjpeg,
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

/// What to decode of which file.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The file.
    pub bytes: &'a [u8],
    /// Width and height as its header declares them.
    pub size: (u32, u32),
    /// How much the picture is reduced.
    pub scale: Scale,
    /// What of the reduced picture.
    pub region: Region,
    /// How.
    pub options: Options,
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

/// Rows of a region, one below the other.
#[derive(Clone, Copy, Debug)]
pub struct Strip<'a> {
    /// The first of them, from the top of the region.
    pub first_row: u32,
    /// Whole rows of [`Placed::stride`] bytes.
    pub pixels: &'a [u8],
    /// Where the region's columns are among them.
    pub placed: Placed,
}

/// What became of a part that was to come as components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it came.
    Complete,
    /// None of it came: it is of a kind that is decoded another way.
    OtherKind,
    /// Its data is damaged, or there was no memory. What came is of no use; libjpeg alone
    /// ([`Entropy::Libjpeg`]) decodes it, or says what is wrong.
    Corrupt,
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
