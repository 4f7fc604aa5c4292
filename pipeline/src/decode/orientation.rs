//! The map between stored and upright pixels.

use image::metadata::Orientation;

use super::CropBox;
use crate::pixels::RgbImage;

/// How a stored picture is turned to stand upright: the upright pixel (x, y) is the stored one at
/// column x and row y, or, transposed, at column y and row x; each counted from the far end if
/// flipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) transposed: bool,
    pub(crate) flip_columns: bool,
    pub(crate) flip_rows: bool,
}

impl From<Orientation> for Turn {
    fn from(orientation: Orientation) -> Turn {
        let (transposed, flip_columns, flip_rows) = match orientation {
            Orientation::NoTransforms => (false, false, false),
            Orientation::FlipHorizontal => (false, true, false),
            Orientation::Rotate180 => (false, true, true),
            Orientation::FlipVertical => (false, false, true),
            Orientation::Rotate90FlipH => (true, false, false),
            Orientation::Rotate90 => (true, false, true),
            Orientation::Rotate270FlipH => (true, true, true),
            Orientation::Rotate270 => (true, true, false),
        };
        Turn {
            transposed,
            flip_columns,
            flip_rows,
        }
    }
}

impl Turn {
    /// Upright (width, height) of a picture of this stored (width, height), and the reverse.
    pub(crate) fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transposed {
            (height, width)
        } else {
            (width, height)
        }
    }

    /// The stored region of an upright one, in a picture of this stored size that it lies within.
    pub(crate) fn stored(self, upright: CropBox, (width, height): (u32, u32)) -> CropBox {
        let CropBox {
            x,
            y,
            width: w,
            height: h,
        } = upright;
        let (x, y, w, h) = if self.transposed {
            (y, x, h, w)
        } else {
            (x, y, w, h)
        };
        CropBox {
            x: if self.flip_columns { width - x - w } else { x },
            y: if self.flip_rows { height - y - h } else { y },
            width: w,
            height: h,
        }
    }
}

/// Turns a stored picture upright; free of cost when it is already.
pub(crate) fn apply(image: RgbImage, turn: Turn) -> RgbImage {
    if turn == Turn::default() {
        return image;
    }
    let (width, height) = turn.size((image.width, image.height));
    let row_bytes = image.width as usize * 3;
    let mut data = vec![0; image.data.len()];
    for (y, row) in data.chunks_exact_mut(width as usize * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (column, line) = if turn.transposed { (y, x) } else { (x, y) };
            let column = match turn.flip_columns {
                true => image.width as usize - 1 - column,
                false => column,
            };
            let line = match turn.flip_rows {
                true => image.height as usize - 1 - line,
                false => line,
            };
            let at = line * row_bytes + column * 3;
            pixel.copy_from_slice(&image.data[at..at + 3]);
        }
    }
    RgbImage {
        width,
        height,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 3×2 picture whose pixels are `a b c / d e f`, read row by row after turning.
    fn turned(exif_value: u8) -> (u32, u32, String) {
        let data = b"abcdef".iter().flat_map(|&c| [c, c, c]).collect();
        let image = RgbImage::new(3, 2, data).expect("3×2");
        let orientation = Orientation::from_exif(exif_value).expect("1 to 8");
        let image = apply(image, orientation.into());
        let text = image.data().chunks_exact(3).map(|p| char::from(p[0]));
        (image.width(), image.height(), text.collect())
    }

    #[test]
    fn all_eight_orientations() {
        // Rows of the upright picture, by the definition of the EXIF tag (the side of the scene
        // that stored row 0 and stored column 0 are).
        let expected = [
            (1, 3, 2, "abcdef"),
            (2, 3, 2, "cbafed"),
            (3, 3, 2, "fedcba"),
            (4, 3, 2, "defabc"),
            (5, 2, 3, "adbecf"),
            (6, 2, 3, "daebfc"),
            (7, 2, 3, "fcebda"),
            (8, 2, 3, "cfbead"),
        ];
        for (value, width, height, pixels) in expected {
            let got = turned(value);
            assert_eq!(got, (width, height, pixels.to_owned()), "EXIF {value}");
        }
    }

    /// Cropping the turned picture, and turning the crop of the stored one, are the same.
    #[test]
    fn stored_regions() {
        let (width, height) = (7u32, 5u32);
        let data: Vec<u8> = (0..width * height).flat_map(|at| [at as u8; 3]).collect();
        let cut = |image: &RgbImage, at: CropBox| {
            let rows = (at.y..at.y + at.height).flat_map(|y| {
                let start = ((y * image.width + at.x) * 3) as usize;
                image.data[start..start + at.width as usize * 3].to_vec()
            });
            RgbImage::new(at.width, at.height, rows.collect()).expect("a region")
        };
        for value in 1..=8 {
            let turn = Turn::from(Orientation::from_exif(value).expect("1 to 8"));
            let stored = RgbImage::new(width, height, data.clone()).expect("7×5");
            let upright = apply(stored.clone(), turn);
            assert_eq!((upright.width, upright.height), turn.size((width, height)));
            for (x, y, w, h) in [(0, 0, 1, 1), (1, 2, 3, 2), (2, 0, 3, 5), (4, 4, 1, 1)] {
                let region = CropBox {
                    x,
                    y,
                    width: w,
                    height: h,
                };
                let from_stored = cut(&stored, turn.stored(region, (width, height)));
                assert_eq!(
                    apply(from_stored, turn),
                    cut(&upright, region),
                    "EXIF {value}"
                );
            }
        }
    }
}
