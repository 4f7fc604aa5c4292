//! Layouts of 8-bit RGB images, as types.
//!
//! Decoders and image files hold pixels interleaved: [`RgbImage`], `[H, W, 3]`. Networks take them
//! planar: `[3, S, S]`, all red samples, then all green, then all blue, each plane row by row from the
//! top. Both are bytes of the same number, so a slice does not tell which it is: these types do.

/// Channels of an image: red, green, blue.
const CHANNELS: usize = 3;

/// Bytes of a planar image of side `size`.
pub(crate) fn image_len(size: usize) -> usize {
    CHANNELS * size * size
}

/// A square image, `[3, S, S]` u8, RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanarRgb {
    size: usize,
    samples: Vec<u8>,
}

impl PlanarRgb {
    /// A black image of side `size`, to be written.
    pub fn black(size: usize) -> PlanarRgb {
        PlanarRgb {
            size,
            samples: vec![0; image_len(size)],
        }
    }

    /// Side S, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `[3, S, S]`
    pub fn as_bytes(&self) -> &[u8] {
        &self.samples
    }

    /// The image, to write to.
    pub fn as_mut(&mut self) -> PlanarRgbMut<'_> {
        PlanarRgbMut {
            size: self.size,
            samples: &mut self.samples,
        }
    }

    /// A batch of this image alone.
    pub fn as_batch(&self) -> PlanarBatch<'_> {
        PlanarBatch {
            size: self.size,
            samples: &self.samples,
        }
    }
}

/// A square image in memory of someone else's, a row of a batch say: `[3, S, S]` u8, RGB.
#[derive(Debug)]
pub struct PlanarRgbMut<'a> {
    size: usize,
    samples: &'a mut [u8],
}

impl<'a> PlanarRgbMut<'a> {
    /// The memory of an image of side `size`; `None` if its length is not 3 · S · S bytes.
    pub fn new(size: usize, samples: &'a mut [u8]) -> Option<PlanarRgbMut<'a>> {
        (samples.len() == image_len(size)).then_some(PlanarRgbMut { size, samples })
    }

    /// Side S, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `[3, S, S]`
    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.samples
    }

    /// Red, green and blue samples, `[S, S]` each.
    pub(crate) fn planes(&mut self) -> [&mut [u8]; CHANNELS] {
        let (red, rest) = self.samples.split_at_mut(self.size * self.size);
        let (green, blue) = rest.split_at_mut(self.size * self.size);
        [red, green, blue]
    }
}

/// Images of one size: `[B, 3, S, S]` u8, RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanarBatch<'a> {
    size: usize,
    samples: &'a [u8],
}

impl<'a> PlanarBatch<'a> {
    /// Images of side `size`, one behind the other; `None` if the bytes are no whole number of them.
    pub fn new(size: usize, samples: &'a [u8]) -> Option<PlanarBatch<'a>> {
        let whole = size > 0 && samples.len().is_multiple_of(image_len(size));
        whole.then_some(PlanarBatch { size, samples })
    }

    /// Number of images B.
    pub fn len(&self) -> usize {
        self.samples.len() / image_len(self.size).max(1)
    }

    /// Whether it holds no image.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Side S, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `[B, 3, S, S]`
    pub fn shape(&self) -> [usize; 4] {
        [self.len(), CHANNELS, self.size, self.size]
    }

    /// The samples, row major.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.samples
    }

    /// The planes of all images in turn, `[S, S]` each: red, green, blue, red, ...
    pub(crate) fn planes(&self) -> impl Iterator<Item = &'a [u8]> {
        self.samples.chunks_exact((self.size * self.size).max(1))
    }

    /// The same images in memory of their own.
    pub fn to_images(&self) -> PlanarImages {
        PlanarImages {
            size: self.size,
            samples: self.samples.to_vec(),
        }
    }

    /// An image of the batch with its pixels interleaved, to be looked at or written to a file; `None`
    /// if there are fewer.
    pub fn to_rgb_image(&self, index: usize) -> Option<RgbImage> {
        let mut planes = self.planes().skip(index.checked_mul(CHANNELS)?);
        let (red, green, blue) = (planes.next()?, planes.next()?, planes.next()?);
        let pixels = red.iter().zip(green).zip(blue);
        let pixels = pixels.flat_map(|((&red, &green), &blue)| [red, green, blue]);
        let side = u32::try_from(self.size).ok()?;
        RgbImage::new(side, side, pixels.collect())
    }
}

/// Images of one size that own their memory: `[B, 3, S, S]` u8, RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanarImages {
    size: usize,
    samples: Vec<u8>,
}

impl PlanarImages {
    /// None yet, of side `size`.
    pub fn new(size: usize) -> PlanarImages {
        PlanarImages {
            size,
            samples: Vec::new(),
        }
    }

    /// Adds an image behind the others.
    ///
    /// # Panics
    ///
    /// If its side is another.
    pub fn push(&mut self, image: &PlanarRgb) {
        assert_eq!(image.size, self.size, "side of an image of a batch");
        self.samples.extend_from_slice(&image.samples);
    }

    /// All of them.
    pub fn as_batch(&self) -> PlanarBatch<'_> {
        PlanarBatch {
            size: self.size,
            samples: &self.samples,
        }
    }
}

/// An upright 8-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// `[H, W, 3]`
    pub(crate) data: Vec<u8>,
}

impl RgbImage {
    /// Takes over `data`, `[height, width, 3]` u8, row major; `None` if its length is another, or
    /// if a side is zero.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<RgbImage> {
        let expected = u64::from(width) * u64::from(height);
        let fits = expected > 0 && expected.checked_mul(3) == u64::try_from(data.len()).ok();
        fits.then_some(RgbImage {
            width,
            height,
            data,
        })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[H, W, 3]` u8, RGB, row major.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        assert!(PlanarRgbMut::new(2, &mut [0; 12]).is_some());
        assert!(PlanarRgbMut::new(2, &mut [0; 11]).is_none());
        for (size, bytes) in [(16, 767), (16, 769), (0, 10), (0, 0)] {
            assert!(PlanarBatch::new(size, &vec![0; bytes]).is_none());
        }
        let empty = PlanarBatch::new(16, &[]).expect("no image is a whole number of images");
        assert_eq!((empty.shape(), empty.is_empty()), ([0, 3, 16, 16], true));
        assert_eq!(empty.to_rgb_image(0), None);
    }

    #[test]
    fn planes_and_pixels() {
        let mut image = PlanarRgb::black(2);
        for (plane, first) in image.as_mut().planes().into_iter().zip([10, 20, 30]) {
            for (sample, value) in plane.iter_mut().zip(first..) {
                *sample = value;
            }
        }
        let planar = [10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33];
        assert_eq!(image.as_bytes(), planar);
        let mut images = PlanarImages::new(2);
        images.push(&PlanarRgb::black(2));
        images.push(&image);
        let batch = images.as_batch();
        assert_eq!(batch.shape(), [2, 3, 2, 2]);
        let pixels = batch.to_rgb_image(1).expect("the second");
        let interleaved = [10, 20, 30, 11, 21, 31, 12, 22, 32, 13, 23, 33];
        assert_eq!((pixels.width(), pixels.data()), (2, &interleaved[..]));
        assert_eq!(batch.to_rgb_image(2), None);
    }
}
