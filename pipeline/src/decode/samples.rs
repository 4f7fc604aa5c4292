//! Rows of packed samples, as PNG, GIF and TIFF store them, to RGB.

/// How pixels are stored.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Bits of a sample: 1, 2, 4, 8 or 16. Those below 8 are packed from the high bit on, each row
    /// beginning at a byte.
    pub(super) bits: u8,
    /// Samples of a pixel, with those that colour does not need.
    pub(super) samples: usize,
    /// Whether 16-bit samples have their high byte first.
    pub(super) big_endian: bool,
    pub(super) colour: Colour,
}

/// What the samples of a pixel mean.
#[derive(Clone, Debug)]
pub(super) enum Colour {
    /// One sample, 0 black or, inverted, white.
    Grey {
        inverted: bool,
    },
    /// One sample, an index. What is beyond the palette is black, as in PIL.
    Palette(Box<Palette>),
    Rgb,
    /// RGB that was multiplied by the fourth sample, alpha.
    RgbPremultiplied,
    /// Four inks, 0 none.
    Cmyk,
}

/// Colours by index.
pub(super) type Palette = [[u8; 3]; 256];

/// A palette of these bytes, RGB after RGB.
pub(super) fn palette(bytes: &[u8]) -> Box<Palette> {
    let mut palette = Box::new([[0; 3]; 256]);
    for (entry, colour) in palette.iter_mut().zip(bytes.chunks_exact(3)) {
        entry.copy_from_slice(colour);
    }
    palette
}

/// The greys from 0 to 255.
pub(super) fn grey_palette() -> Box<Palette> {
    Box::new(std::array::from_fn(|index| [index as u8; 3]))
}

impl Layout {
    /// Bytes of a row of `columns` pixels.
    pub(super) fn row_bytes(&self, columns: u32) -> usize {
        let bits = u64::from(columns) * self.samples as u64 * u64::from(self.bits);
        bits.div_ceil(8) as usize
    }

    /// Converts the pixels of a row from column `first` on to RGB, as many as `out` has room for;
    /// `scratch` is for samples on their way. 16 bits keep their high byte.
    ///
    /// # Panics
    /// If the row has fewer pixels.
    pub(super) fn to_rgb(&self, row: &[u8], first: usize, scratch: &mut Vec<u8>, out: &mut [u8]) {
        let (start, len) = (first * self.samples, out.len() / 3 * self.samples);
        if self.bits == 8 {
            return self.colour(&row[start..start + len], out);
        }
        scratch.clear();
        match self.bits {
            16 => {
                let high = usize::from(!self.big_endian);
                let samples = row[start * 2..(start + len) * 2].chunks_exact(2);
                scratch.extend(samples.map(|sample| sample[high]));
            }
            bits => {
                let per_byte = 8 / usize::from(bits);
                let most = (1 << bits) - 1;
                // Indices stay; grey becomes 0 to 255.
                let scale = match self.colour {
                    Colour::Palette(_) => 1,
                    _ => 255 / most,
                };
                scratch.extend((start..start + len).map(|at| {
                    let shift = 8 - usize::from(bits) * (at % per_byte + 1);
                    (row[at / per_byte] >> shift & most) * scale
                }));
            }
        }
        self.colour(scratch, out);
    }

    /// 8-bit samples to RGB.
    fn colour(&self, samples: &[u8], out: &mut [u8]) {
        let pixels = samples
            .chunks_exact(self.samples)
            .zip(out.chunks_exact_mut(3));
        match &self.colour {
            Colour::Rgb if self.samples == 3 => out.copy_from_slice(samples),
            Colour::Rgb => pixels.for_each(|(pixel, rgb)| rgb.copy_from_slice(&pixel[..3])),
            Colour::Grey { inverted } => {
                let flip = if *inverted { 255 } else { 0 };
                pixels.for_each(|(pixel, rgb)| rgb.fill(pixel[0] ^ flip));
            }
            Colour::Palette(palette) => {
                pixels
                    .for_each(|(pixel, rgb)| rgb.copy_from_slice(&palette[usize::from(pixel[0])]));
            }
            Colour::RgbPremultiplied => pixels.for_each(|(pixel, rgb)| {
                let alpha = u32::from(pixel[3]);
                for (channel, sample) in rgb.iter_mut().zip(pixel) {
                    let whole = (u32::from(*sample) * 255).checked_div(alpha);
                    *channel = whole.unwrap_or(0).min(255) as u8;
                }
            }),
            Colour::Cmyk => pixels.for_each(|(pixel, rgb)| {
                for (channel, ink) in rgb.iter_mut().zip(pixel) {
                    *channel = ink_on(*ink, 255 - pixel[3]);
                }
            }),
        }
    }
}

/// What ink leaves of the light that black leaves, as PIL converts CMYK: with `MULDIV255`, its
/// rounded a · b / 255.
pub(super) fn ink_on(ink: u8, light: u8) -> u8 {
    let product = u32::from(ink) * u32::from(light) + 128;
    let covered = ((product >> 8) + product) >> 8;
    (u32::from(light) - covered.min(u32::from(light))) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rgb(layout: &Layout, row: &[u8], first: usize, columns: usize) -> Vec<u8> {
        let mut out = vec![0; columns * 3];
        layout.to_rgb(row, first, &mut Vec::new(), &mut out);
        out
    }

    #[test]
    fn columns_are_found_at_every_depth() {
        let layout = |bits, samples, colour| Layout {
            bits,
            samples,
            big_endian: true,
            colour,
        };
        let grey = |inverted| Colour::Grey { inverted };
        assert_eq!(
            rgb(
                &layout(1, 1, grey(false)),
                &[0b0100_0001, 0b1000_0000],
                6,
                3
            ),
            [0, 0, 0, 255, 255, 255, 255, 255, 255]
        );
        assert_eq!(
            rgb(&layout(2, 1, grey(true)), &[0b00_01_10_11], 1, 3),
            [170, 170, 170, 85, 85, 85, 0, 0, 0]
        );
        assert_eq!(
            rgb(
                &layout(4, 1, Colour::Palette(palette(&[1, 2, 3, 4, 5, 6]))),
                &[0x01, 0x20],
                1,
                2
            ),
            [4, 5, 6, 0, 0, 0]
        );
        assert_eq!(
            rgb(&layout(16, 2, grey(false)), &[1, 2, 3, 4, 5, 6, 7, 8], 1, 1),
            [5, 5, 5]
        );
        assert_eq!(
            rgb(
                &layout(8, 4, Colour::RgbPremultiplied),
                &[10, 20, 200, 100, 1, 1, 1, 0],
                0,
                2
            ),
            [25, 51, 255, 0, 0, 0]
        );
        assert_eq!(
            rgb(&layout(8, 5, Colour::Cmyk), &[0, 255, 128, 0, 9], 0, 1),
            [255, 0, 127]
        );
        assert_eq!(layout(2, 1, grey(false)).row_bytes(5), 2);
    }
}
