//! img2dataset's resize modes: which size a picture gets, what of it is cut off or added.
//!
//! `keep_ratio` and `center_crop` bring the shorter side to the size that was asked for,
//! `keep_ratio_largest` and `border` the longer one; sides are rounded to the nearest pixel, as
//! albumentations' `SmallestMaxSize` and `LongestMaxSize` do. `center_crop` then cuts out the square in
//! the middle, `border` adds white up to a square. With `--only-if-bigger` a picture whose side is not
//! above the size stays as it is, crop and border included.

use clap::ValueEnum;
use qf_pipeline::decode::RgbImage;
use qf_pipeline::resize::ResizedPart;

/// How pictures are resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum ResizeMode {
    /// Not at all
    No,
    /// Longer side to the size, white added up to a square
    Border,
    /// Shorter side to the size
    KeepRatio,
    /// Shorter side to the size, the square in the middle cut out
    CenterCrop,
    /// Longer side to the size
    KeepRatioLargest,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) mode: ResizeMode,
    /// In pixels, at least 1.
    pub(super) size: u32,
    pub(super) only_if_bigger: bool,
}

/// What becomes of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    /// Width and height it is resized to.
    pub(super) scaled: (u32, u32),
    /// Width and height at the end, after the crop or the border.
    pub(super) canvas: (u32, u32),
}

impl Geometry {
    /// For a picture of this width and height; `None` if it stays as it is.
    pub(super) fn fit(&self, (width, height): (u32, u32)) -> Option<Fitted> {
        let side = match self.mode {
            ResizeMode::No => return None,
            ResizeMode::KeepRatio | ResizeMode::CenterCrop => width.min(height),
            ResizeMode::Border | ResizeMode::KeepRatioLargest => width.max(height),
        };
        if side == 0 || (self.only_if_bigger && side <= self.size) {
            return None;
        }
        let scale = f64::from(self.size) / f64::from(side);
        let scaled = |length: u32| ((f64::from(length) * scale).round_ties_even() as u32).max(1);
        let scaled = (scaled(width), scaled(height));
        let canvas = match self.mode {
            ResizeMode::CenterCrop | ResizeMode::Border => (self.size, self.size),
            _ => scaled,
        };
        let fitted = Fitted { scaled, canvas };
        (scaled != (width, height) || canvas != scaled).then_some(fitted)
    }
}

impl Fitted {
    /// The part of the scaled picture that is the canvas; `None` where white is added.
    pub(super) fn part(&self) -> Option<ResizedPart> {
        let (scaled, size) = (self.scaled, self.canvas);
        let before = |scaled: u32, size: u32| scaled.checked_sub(size).map(|beside| beside / 2);
        Some(ResizedPart {
            scaled,
            origin: (before(scaled.0, size.0)?, before(scaled.1, size.1)?),
            size,
        })
    }

    /// Cuts a scaled picture down to the canvas, or puts it in its middle on white.
    pub(super) fn place(&self, picture: RgbImage) -> Option<RgbImage> {
        let (from, to) = ((picture.width(), picture.height()), self.canvas);
        if from == to {
            return Some(picture);
        }
        // Columns and rows before the part: of the picture where it is larger, of white where it is smaller.
        let before = |from: u32, to: u32| (from.abs_diff(to) / 2) as usize;
        let (beside, above) = (before(from.0, to.0), before(from.1, to.1));
        let (width, height) = (to.0 as usize, to.1 as usize);
        let mut data = vec![255; width.checked_mul(height)?.checked_mul(3)?];
        let columns = from.0.min(to.0) as usize * 3;
        let (left_from, left_to) = match from.0 > to.0 {
            true => (beside * 3, 0),
            false => (0, beside * 3),
        };
        let (top_from, top_to) = match from.1 > to.1 {
            true => (above, 0),
            false => (0, above),
        };
        for row in 0..from.1.min(to.1) as usize {
            let source = (row + top_from) * from.0 as usize * 3 + left_from;
            let target = (row + top_to) * width * 3 + left_to;
            data[target..target + columns]
                .copy_from_slice(&picture.data()[source..source + columns]);
        }
        RgbImage::new(to.0, to.1, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(mode: ResizeMode, bigger: bool, size: (u32, u32)) -> Option<((u32, u32), (u32, u32))> {
        let geometry = Geometry {
            mode,
            size: 256,
            only_if_bigger: bigger,
        };
        geometry.fit(size).map(|f| (f.scaled, f.canvas))
    }

    /// Sizes as img2dataset's `Resizer` gives them, run over pictures of these sizes
    /// (`tests/shard_resize.rs` runs albumentations itself).
    #[test]
    fn sizes() {
        use ResizeMode::*;
        assert_eq!(fit(No, false, (640, 480)), None);
        assert_eq!(
            fit(KeepRatio, false, (640, 480)),
            Some(((341, 256), (341, 256)))
        );
        assert_eq!(
            fit(CenterCrop, false, (640, 480)),
            Some(((341, 256), (256, 256)))
        );
        assert_eq!(
            fit(KeepRatioLargest, false, (640, 480)),
            Some(((256, 192), (256, 192)))
        );
        assert_eq!(
            fit(Border, false, (640, 480)),
            Some(((256, 192), (256, 256)))
        );
        // Smaller ones grow, unless they are to stay.
        assert_eq!(
            fit(KeepRatio, false, (64, 128)),
            Some(((256, 512), (256, 512)))
        );
        assert_eq!(fit(KeepRatio, true, (64, 128)), None);
        assert_eq!(fit(CenterCrop, true, (256, 300)), None);
        assert_eq!(
            fit(CenterCrop, false, (256, 300)),
            Some(((256, 300), (256, 256)))
        );
        assert_eq!(fit(Border, true, (256, 20)), None);
        assert_eq!(fit(KeepRatio, false, (256, 300)), None);
        // A side never vanishes.
        assert_eq!(
            fit(KeepRatioLargest, false, (10_000, 3)),
            Some(((256, 1), (256, 1)))
        );
    }

    #[test]
    fn crops_are_from_the_middle_and_borders_white() {
        let picture = |w: u32, h: u32| {
            let data = (0..w * h).flat_map(|at| [(at % w) as u8, (at / w) as u8, 7]);
            RgbImage::new(w, h, data.collect()).unwrap()
        };
        let place = |from: (u32, u32), canvas| {
            let fitted = Fitted {
                scaled: from,
                canvas,
            };
            fitted.place(picture(from.0, from.1)).unwrap()
        };
        let cut = place((7, 4), (4, 4));
        assert_eq!(cut.data()[..3], [1, 0, 7]);
        assert_eq!(cut.data()[cut.data().len() - 3..], [4, 3, 7]);
        let framed = place((5, 2), (5, 5));
        // One row of white above, two below.
        assert!(framed.data()[..15].iter().all(|&sample| sample == 255));
        assert_eq!(framed.data()[15..18], [0, 0, 7]);
        assert_eq!(framed.data()[30 + 12..30 + 15], [4, 1, 7]);
        assert!(framed.data()[45..].iter().all(|&sample| sample == 255));
    }
}
