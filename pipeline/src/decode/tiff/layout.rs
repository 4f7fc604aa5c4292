//! Which kind of pixels the tags of a directory describe: those that are read, all others by name.

use super::super::samples::{palette, Colour, Layout};
use super::super::tags::Directory;
use super::chunks::Compression;
use super::fields::{broken, number, tag, unsupported};
use crate::decode::DecodeError;

/// Most samples of a pixel, PIL's limit.
const MAX_SAMPLES: u64 = 6;

/// How pixels are stored.
pub(super) struct Kind {
    pub(super) layout: Layout,
    pub(super) compression: Compression,
    pub(super) predicted: bool,
    pub(super) planar: bool,
    pub(super) ycbcr: bool,
}

impl Kind {
    pub(super) fn read(directory: &Directory<'_>) -> Result<Kind, DecodeError> {
        let number = |tag, default| number(directory, tag, default);
        let compression =
            Compression::of(number(tag::COMPRESSION, 1)?, number(tag::T4_OPTIONS, 0)?);
        let compression = compression.map_err(unsupported)?;
        let photometric = number(tag::PHOTOMETRIC, 0)?;
        let samples = number(tag::SAMPLES, 1)?;
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(unsupported(format!("{samples} samples per pixel")));
        }
        let layout = Layout {
            bits: bits(directory, photometric)?,
            samples: samples as usize,
            big_endian: directory.is_big_endian(),
            colour: colour(directory, photometric)?,
        };
        let planar = number(tag::PLANAR, 1)? == 2 && samples > 1;
        let layout = match compression {
            Compression::Jpeg => jpeg_layout(layout, planar, photometric)?,
            _ => layout,
        };
        check(&layout, photometric, compression)?;
        if planar && layout.bits < 8 {
            return Err(unsupported(format!(
                "planes of {}-bit samples",
                layout.bits
            )));
        }
        Ok(Kind {
            predicted: is_predicted(directory, compression, &layout)?,
            ycbcr: photometric == 6,
            layout,
            compression,
            planar,
        })
    }
}

/// Bits of each sample.
fn bits(directory: &Directory<'_>, photometric: u64) -> Result<u8, DecodeError> {
    let all = |tag, default: u64| match directory.field(tag) {
        None => Ok(default),
        Some(field) => {
            let first = field.number(0);
            let equal = (1..field.len()).all(|index| field.number(index) == first);
            first
                .filter(|_| equal)
                .ok_or_else(|| unsupported("samples of several kinds"))
        }
    };
    let bits = all(tag::BITS, 1)?;
    match all(tag::SAMPLE_FORMAT, 1)? {
        1 | 4 => {}
        // PIL takes signed bytes of a grey picture as they are.
        2 if bits == 8 && photometric == 1 => {}
        2 => return Err(unsupported(format!("signed {bits}-bit samples"))),
        3 => return Err(unsupported("floating-point samples")),
        _ => return Err(unsupported("complex samples")),
    }
    match bits {
        1 | 2 | 4 | 8 | 16 => Ok(bits as u8),
        _ => Err(unsupported(format!("{bits}-bit samples"))),
    }
}

fn colour(directory: &Directory<'_>, photometric: u64) -> Result<Colour, DecodeError> {
    Ok(match photometric {
        0 | 1 => Colour::Grey {
            inverted: photometric == 0,
        },
        2 => {
            let extra = number(directory, tag::EXTRA_SAMPLES, 0)?;
            match extra {
                1 => Colour::RgbPremultiplied,
                _ => Colour::Rgb,
            }
        }
        3 => {
            let map = directory
                .field(tag::COLOUR_MAP)
                .ok_or_else(|| broken("its palette is missing"))?;
            // All reds, all greens, all blues, 16 bits each.
            let entries = map.len() / 3;
            let high = |index| (map.number(index).unwrap_or(0) >> 8) as u8;
            let colours = (0..entries.min(256))
                .flat_map(|index| [0, 1, 2].map(|channel| high(channel * entries + index)));
            Colour::Palette(palette(&colours.collect::<Vec<u8>>()))
        }
        5 => Colour::Cmyk,
        6 => Colour::Rgb,
        4 => return Err(unsupported("transparency mask")),
        8 => return Err(unsupported("CIE L*a*b* colour")),
        9 => return Err(unsupported("ICC L*a*b* colour")),
        10 => return Err(unsupported("ITU L*a*b* colour")),
        32803 => return Err(unsupported("colour filter array (raw camera data)")),
        32844 | 32845 => return Err(unsupported("LogLuv colour")),
        34892 => return Err(unsupported("linear raw camera data")),
        other => return Err(unsupported(format!("colour of the unknown kind {other}"))),
    })
}

/// What comes out of JPEG data: RGB, grey too, or four inks.
fn jpeg_layout(layout: Layout, planar: bool, photometric: u64) -> Result<Layout, DecodeError> {
    let (samples, colour) = match (photometric, layout.samples) {
        _ if planar => return Err(unsupported("planes of JPEG data")),
        (1, 1) | (2 | 6, 3) => (3, Colour::Rgb),
        (5, 4) => (4, Colour::Cmyk),
        _ => {
            return Err(unsupported(
                "JPEG data of this colour, with extra samples or inverted",
            ))
        }
    };
    match layout.bits {
        8 => Ok(Layout {
            samples,
            colour,
            ..layout
        }),
        bits => Err(unsupported(format!("JPEG data of {bits}-bit samples"))),
    }
}

/// Refuses what bits and samples cannot be.
fn check(layout: &Layout, photometric: u64, compression: Compression) -> Result<(), DecodeError> {
    let (name, least, fits) = match layout.colour {
        Colour::Grey { .. } => ("grey", 1, layout.bits >= 8 || layout.samples == 1),
        Colour::Palette(_) => (
            "palette",
            1,
            layout.bits == 8 || (layout.bits < 8 && layout.samples == 1),
        ),
        Colour::Rgb => ("RGB", 3, layout.bits >= 8),
        Colour::RgbPremultiplied => ("RGB with alpha", 4, layout.bits >= 8),
        Colour::Cmyk => ("CMYK", 4, layout.bits >= 8),
    };
    if layout.samples < least || !fits {
        return Err(unsupported(format!(
            "{name} of {} samples of {} bits",
            layout.samples, layout.bits
        )));
    }
    if photometric == 6 && compression != Compression::Jpeg {
        return Err(unsupported("YCbCr colour without JPEG data"));
    }
    if matches!(compression, Compression::Fax(_)) && (layout.bits, layout.samples) != (1, 1) {
        return Err(broken("fax codes of more than one bit per pixel"));
    }
    Ok(())
}

/// Whether samples are differences.
fn is_predicted(
    directory: &Directory<'_>,
    compression: Compression,
    layout: &Layout,
) -> Result<bool, DecodeError> {
    if !matches!(
        compression,
        Compression::Lzw | Compression::Deflate | Compression::Zstd
    ) {
        return Ok(false);
    }
    match number(directory, tag::PREDICTOR, 1)? {
        1 => Ok(false),
        2 if layout.bits >= 8 => Ok(true),
        2 => Err(unsupported(format!(
            "prediction of {}-bit samples",
            layout.bits
        ))),
        3 => Err(unsupported("floating-point prediction")),
        other => Err(broken(format!(
            "its prediction is of the unknown kind {other}"
        ))),
    }
}
