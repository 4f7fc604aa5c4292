//! What an image file is, as far as its header tells and a decoder does not say: frames, transparency,
//! depth, colour space.

use qf_pipeline::decode::ImageFormat;

/// What is worth knowing of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    pub(crate) animated: bool,
    pub(crate) alpha: bool,
    pub(crate) cmyk: bool,
    pub(crate) grey: bool,
    /// More than 8 bits per channel.
    pub(crate) deep: bool,
    /// A profile that names another colour space than sRGB.
    pub(crate) other_profile: bool,
}

/// Reads them; of damaged files as far as they go.
pub(crate) fn traits(format: ImageFormat, bytes: &[u8]) -> Traits {
    match format {
        ImageFormat::Jpeg => jpeg(bytes),
        ImageFormat::Png => png(bytes),
        ImageFormat::WebP => webp(bytes),
        ImageFormat::Gif => gif(bytes),
        ImageFormat::Bmp => Traits::default(),
        ImageFormat::Tiff => tiff(bytes),
    }
}

/// Extensions under which a format is stored.
pub(crate) fn extensions(format: ImageFormat) -> &'static [&'static str] {
    match format {
        ImageFormat::Jpeg => &["jpg", "jpeg", "jpe", "jfif"],
        ImageFormat::Png => &["png"],
        ImageFormat::WebP => &["webp"],
        ImageFormat::Gif => &["gif"],
        ImageFormat::Bmp => &["bmp"],
        ImageFormat::Tiff => &["tif", "tiff"],
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at + 2)?;
    Some(usize::from(pair[0]) << 8 | usize::from(pair[1]))
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(word)).ok()
}

fn le32(bytes: &[u8], at: usize) -> Option<usize> {
    let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(word)).ok()
}

/// Whether an ICC profile, as bytes, names one of the common spaces that are wider than sRGB. Names are
/// ASCII or UTF-16.
fn is_other_profile(profile: &[u8]) -> bool {
    const NAMES: [&str; 5] = [
        "Adobe RGB",
        "Display P3",
        "ProPhoto",
        "Wide Gamut",
        "Rec. 2020",
    ];
    let head = &profile[..profile.len().min(64 << 10)];
    NAMES.iter().any(|name| {
        let wide: Vec<u8> = name.bytes().flat_map(|byte| [0, byte]).collect();
        contains(head, name.as_bytes()) || contains(head, &wide)
    })
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn jpeg(bytes: &[u8]) -> Traits {
    let mut traits = Traits::default();
    let mut at = 2;
    while let (Some(&marker), Some(len)) = (bytes.get(at + 1), be16(bytes, at + 2)) {
        if bytes[at] != 0xff || len < 2 || marker == 0xda {
            break;
        }
        let body = bytes.get(at + 4..at + 2 + len).unwrap_or_default();
        match (marker, body) {
            // Frame headers; C4, C8 and CC are tables.
            (0xc0..=0xcf, [bits, _, _, _, _, components, ..])
                if !matches!(marker, 0xc4 | 0xc8 | 0xcc) =>
            {
                traits.deep = *bits > 8;
                traits.grey = *components == 1;
                traits.cmyk = *components == 4;
            }
            (0xe2, body) if body.starts_with(b"ICC_PROFILE\0") => {
                traits.other_profile |= is_other_profile(body);
            }
            _ => {}
        }
        at += 2 + len;
    }
    traits
}

fn png(bytes: &[u8]) -> Traits {
    let mut traits = Traits::default();
    let mut at = 8;
    while let (Some(len), Some(name)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) {
        let body = bytes.get(at + 8..).unwrap_or_default();
        match (name, body) {
            (b"IHDR", [_, _, _, _, _, _, _, _, bits, colour, ..]) => {
                traits.deep = *bits == 16;
                traits.grey = matches!(colour, 0 | 4);
                traits.alpha = matches!(colour, 4 | 6);
            }
            (b"tRNS", _) => traits.alpha = true,
            (b"acTL", _) => traits.animated = be32(body, 0).is_some_and(|frames| frames > 1),
            (b"IDAT" | b"IEND", _) => break,
            _ => {}
        }
        let Some(next) = at.checked_add(12).and_then(|at| at.checked_add(len)) else {
            break;
        };
        at = next;
    }
    traits
}

fn webp(bytes: &[u8]) -> Traits {
    let mut traits = Traits::default();
    match bytes.get(12..16) {
        Some(b"VP8X") => {
            let flags = bytes.get(20).copied().unwrap_or(0);
            traits.animated = flags & 0x02 != 0;
            traits.alpha = flags & 0x10 != 0;
            if flags & 0x20 != 0 {
                let end = le32(bytes, 34).and_then(|len| len.checked_add(38));
                let profile = end.and_then(|end| bytes.get(38..end));
                traits.other_profile =
                    bytes.get(30..34) == Some(b"ICCP") && profile.is_some_and(is_other_profile);
            }
        }
        // 14 bits each of width and height, then the bit for alpha.
        Some(b"VP8L") => traits.alpha = bytes.get(24).is_some_and(|byte| byte & 0x10 != 0),
        _ => {}
    }
    traits
}

fn gif(bytes: &[u8]) -> Traits {
    let mut traits = Traits::default();
    let colours = |flags: u8| match flags & 0x80 {
        0 => 0,
        _ => 3usize << ((flags & 7) + 1),
    };
    let Some(&flags) = bytes.get(10) else {
        return traits;
    };
    let mut at = 13 + colours(flags);
    let mut frames = 0;
    let blocks = |mut at: usize| loop {
        match bytes.get(at) {
            None => return at,
            Some(0) => return at + 1,
            Some(&len) => at += 1 + usize::from(len),
        }
    };
    while let Some(&introducer) = bytes.get(at) {
        match introducer {
            b'!' => {
                let is_control = bytes.get(at + 1) == Some(&0xf9);
                let flags = bytes.get(at + 3).copied().unwrap_or(0);
                traits.alpha |= frames == 0 && is_control && flags & 1 != 0;
                at = blocks(at + 2);
            }
            b',' => {
                frames += 1;
                if frames > 1 {
                    traits.animated = true;
                    break;
                }
                let flags = bytes.get(at + 9).copied().unwrap_or(0);
                at = blocks(at + 11 + colours(flags));
            }
            _ => break,
        }
    }
    traits
}

fn tiff(bytes: &[u8]) -> Traits {
    let mut traits = Traits::default();
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        let fold = |number: usize, byte: &u8| number << 8 | usize::from(*byte);
        Some(match big_endian {
            true => bytes.iter().fold(0, fold),
            false => bytes.iter().rev().fold(0, fold),
        })
    };
    let Some((directory, count)) = number(4, 4).and_then(|at| Some((at, number(at, 2)?))) else {
        return traits;
    };
    for entry in (0..count).map(|entry| directory + 2 + 12 * entry) {
        let (Some(tag), Some(value)) = (number(entry, 2), number(entry + 8, 2)) else {
            break;
        };
        match tag {
            // Bits per sample: two at most stand in the entry, of which the first tells.
            258 => {
                let several = number(entry + 4, 4).is_some_and(|count| count > 2);
                let bits = match several {
                    true => number(entry + 8, 4).and_then(|at| number(at, 2)),
                    false => Some(value),
                };
                traits.deep = bits.is_some_and(|bits| bits > 8);
            }
            262 => {
                traits.grey = value < 2;
                traits.cmyk = value == 5;
            }
            338 => traits.alpha = matches!(value, 1 | 2),
            _ => {}
        }
    }
    let end = number(directory + 2 + 12 * count, 4);
    traits.animated = end.is_some_and(|next| next != 0);
    traits
}
