//! How an image is decoded: how far it may be reduced, and what becomes of damage.

use qf_codecs::jpeg::Scale;
use serde::{Deserialize, Serialize};

/// How far a JPEG may be reduced while it is decoded, before it is resized to S × S pixels.
///
/// The inverse transform can deliver 1/8, 2/8 or 4/8 of the size for less work. The smallest of
/// them is taken whose crop is still at least a factor k larger than S on both sides. The
/// signal-to-noise ratios given here are against the decode at full size, and hold on every
/// photograph of the tests at S = 224. They depend on the content: fine detail suffers more, and at
/// a smaller S photographs of the same size have more of it (42 dB at S = 96, k = 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeQuality {
    /// Never reduced: the pixels of a whole decode.
    Exact,
    /// k = 2.4: at least 50 dB. (2 gives 49.0 dB on one photograph.)
    #[default]
    Balanced,
    /// k = 1.5: at least 40 dB. (1.25 gives 36.4 dB on one photograph.)
    Fast,
}

impl DecodeQuality {
    /// The scale at which to decode a crop of this size that will be resized to `size` × `size`.
    pub(super) fn scale(self, crop: (u32, u32), size: u32) -> Scale {
        let factor = match self {
            DecodeQuality::Exact => return Scale::Full,
            DecodeQuality::Balanced => 2.4,
            DecodeQuality::Fast => 1.5,
        };
        let needed = f64::from(size) * factor;
        let enough =
            |scale: &Scale| f64::from(crop.0.min(crop.1)) / f64::from(scale.reduction()) >= needed;
        Scale::ALL.into_iter().find(enough).unwrap_or(Scale::Full)
    }
}

/// What becomes of an image whose data ends early or does not decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTruncated {
    /// An error. Damage below the crop is not looked at, but the end of the data must be there: a
    /// JPEG's end marker; all rows of other formats, though not what follows them.
    #[default]
    Error,
    /// What is missing is grey in a JPEG, black in a PNG, in a GIF what its frame does not cover, as
    /// PIL does it with `LOAD_TRUNCATED_IMAGES`. Of other formats still an error.
    Grey,
}
