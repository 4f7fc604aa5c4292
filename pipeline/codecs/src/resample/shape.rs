//! What is resized to what.

/// A rectangle in pixels, which need not be whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Area {
    /// Distance of its left edge from the left of what it lies in.
    pub left: f64,
    /// Distance of its upper edge from the top.
    pub top: f64,
    /// From its left edge to its right edge.
    pub width: f64,
    /// From its upper edge to its lower edge.
    pub height: f64,
}

impl Area {
    /// All of something of this size.
    pub fn whole(width: f64, height: f64) -> Area {
        Area {
            width,
            height,
            ..Area::default()
        }
    }
}

/// The size of a part of a picture, and what it is resized to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Pixels of a row, the part's and those before it.
    pub width: usize,
    /// Rows, the part's and those before it.
    pub height: usize,
    /// Columns and rows that come before the part, and have no influence.
    pub before: (usize, usize),
    /// What of the part becomes the whole result. What lies beyond the part has no influence.
    pub area: Area,
    /// Side S of the result, in pixels.
    pub size: usize,
    /// Whether the result is mirrored left to right.
    pub mirrored: bool,
    /// Whether its last row comes first.
    pub upside_down: bool,
}

impl Shape {
    /// Whether sizes and area fit each other.
    pub(super) fn is_valid(&self) -> bool {
        let area = self.area;
        let inside = |start: f64, length: f64, len: usize| {
            start >= 0.0 && length > 0.0 && start + length <= len as f64
        };
        let part = (
            self.width.saturating_sub(self.before.0),
            self.height.saturating_sub(self.before.1),
        );
        inside(area.left, area.width, part.0)
            && inside(area.top, area.height, part.1)
            && self.size > 0
            && self.width.checked_mul(3).is_some()
            && self.out_len().is_some()
    }

    /// Bytes of the result, 3 · S · S.
    pub(super) fn out_len(&self) -> Option<usize> {
        self.size.checked_mul(self.size)?.checked_mul(3)
    }

    /// Whether so many rows of the part are in `pixels`.
    pub(super) fn has_rows(&self, rows: usize, pixels: &[u8], stride: usize) -> bool {
        let row = 3 * self.width;
        let above = rows
            .checked_sub(1)
            .and_then(|above| above.checked_mul(stride));
        let needed = above.and_then(|above| above.checked_add(row));
        (row <= stride || rows == 1) && needed.is_some_and(|needed| needed <= pixels.len())
    }
}
