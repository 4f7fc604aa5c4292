//! Strips of a picture: what decoders hand to the resampler.

/// Where rows of luma and of chroma begin, in samples before the strip's own, if chroma is halved across.
pub(crate) const LUMA_BEFORE: usize = 4;

pub(crate) const CHROMA_BEFORE: usize = 1;

/// How chroma is sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Halved {
    /// A sample for two columns.
    pub(crate) across: bool,
    /// A sample for two rows.
    pub(crate) down: bool,
}

/// Rows of a region of a picture in luma and chroma (JFIF's YCbCr), chroma as it is sampled.
#[derive(Debug)]
pub struct ComponentStrip<'a> {
    /// The first of them, from the top of the first strip.
    pub first_row: u32,
    /// Columns and rows that come before the region, 0 or 1: chroma is sampled for pairs.
    pub before: (u32, u32),
    pub(crate) rows: usize,
    pub(crate) halved: Halved,
    /// Rows begin with the strip's first sample, or [`LUMA_BEFORE`] it.
    pub(crate) luma: [&'a [u8]; STRIP_ROWS],
    /// Cb and Cr. Rows begin with the strip's first sample, or [`CHROMA_BEFORE`] it. Those of the strip; if
    /// they are halved, ten: the first is the one above the strip's own eight, the last the one below.
    pub(crate) chroma: [[&'a [u8]; STRIP_ROWS]; 2],
}

/// Rows that are taken at a time.
pub const STRIP_ROWS: usize = 16;
