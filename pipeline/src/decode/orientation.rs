//! EXIF orientation: where it stands, and turning the pixels upright.

use image::metadata::Orientation;

use super::RgbImage;

/// Orientation of a TIFF-structured EXIF block (with or without the `Exif\0\0` prefix of JPEG);
/// upright if there is none or if it is malformed, as every viewer takes it.
pub(super) fn from_exif(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}

/// Turns a stored picture upright; free of cost when it is already.
pub(super) fn apply(image: RgbImage, orientation: Orientation) -> RgbImage {
    let RgbImage {
        width,
        height,
        mut data,
    } = image;
    let row_bytes = width as usize * 3;
    match orientation {
        Orientation::NoTransforms => {}
        Orientation::FlipHorizontal => mirror_rows(&mut data, row_bytes),
        Orientation::FlipVertical => reverse_rows(&mut data, row_bytes),
        Orientation::Rotate180 => {
            reverse_rows(&mut data, row_bytes);
            mirror_rows(&mut data, row_bytes);
        }
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => {
            // Upright pixel (x, y) is stored at column y or W-1-y, row x or H-1-x.
            let (flip_row, flip_column) = match orientation {
                Orientation::Rotate90 => (true, false),
                Orientation::Rotate270 => (false, true),
                Orientation::Rotate270FlipH => (true, true),
                _ => (false, false),
            };
            let mut upright = vec![0; data.len()];
            for (y, row) in upright.chunks_exact_mut(height as usize * 3).enumerate() {
                let column = if flip_column {
                    width as usize - 1 - y
                } else {
                    y
                };
                for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                    let stored_row = if flip_row { height as usize - 1 - x } else { x };
                    let at = stored_row * row_bytes + column * 3;
                    pixel.copy_from_slice(&data[at..at + 3]);
                }
            }
            return RgbImage {
                width: height,
                height: width,
                data: upright,
            };
        }
    }
    RgbImage {
        width,
        height,
        data,
    }
}

/// Mirrors each row of `[H, W, 3]` pixels left to right.
pub(crate) fn mirror_rows(data: &mut [u8], row_bytes: usize) {
    for row in data.chunks_exact_mut(row_bytes) {
        let mut pixels = row.chunks_exact_mut(3);
        while let (Some(left), Some(right)) = (pixels.next(), pixels.next_back()) {
            left.swap_with_slice(right);
        }
    }
}

fn reverse_rows(data: &mut [u8], row_bytes: usize) {
    let mut rows = data.chunks_exact_mut(row_bytes);
    while let (Some(top), Some(bottom)) = (rows.next(), rows.next_back()) {
        top.swap_with_slice(bottom);
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
        let image = apply(image, orientation);
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

    #[test]
    fn malformed_exif_is_upright() {
        let cases: [&[u8]; 5] = [
            b"",
            b"Exif\0\0",
            b"Exif\0\0II*\0",
            b"II*\0\xff\xff\xff\xff",
            b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
        ];
        for exif in cases {
            assert_eq!(from_exif(exif), Orientation::NoTransforms, "{exif:?}");
        }
        let six = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(from_exif(six), Orientation::Rotate90);
    }
}
