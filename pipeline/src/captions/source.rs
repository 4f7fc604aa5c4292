//! Which member carries a sample's captions, and what its text holds.

use serde::{Deserialize, Serialize};

/// Whether a text member holds one caption or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptionLines {
    /// Each line that is not blank is a caption: what `qfdata shard` writes.
    #[default]
    Each,
    /// The whole text is one caption, line breaks or not: what img2dataset writes and open_clip reads.
    One,
}

impl CaptionLines {
    /// As in the configuration file.
    pub fn name(self) -> &'static str {
        match self {
            CaptionLines::Each => "each",
            CaptionLines::One => "one",
        }
    }
}

impl std::str::FromStr for CaptionLines {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "each" => Ok(CaptionLines::Each),
            "one" => Ok(CaptionLines::One),
            _ => Err("expected each (a caption a line) or one (a caption a file)".into()),
        }
    }
}

/// Where a sample's captions are.
#[derive(Clone, Copy, Debug)]
pub struct CaptionSource<'a> {
    /// The member, JSON field or column to take, and no other; found by name where it is `None`.
    pub column: Option<&'a str>,
    /// What a text member holds.
    pub lines: CaptionLines,
}

impl Default for CaptionSource<'_> {
    fn default() -> Self {
        CaptionSource {
            column: None,
            lines: CaptionLines::Each,
        }
    }
}
