//! Orientation in EXIF blocks and XMP packets, wherever formats keep these, as PIL's
//! `Image.getexif` finds it.

use image::metadata::Orientation;
use memchr::memmem;

use super::tags::Directory;

const ORIENTATION: u16 = 0x0112;

/// Most bytes that a compressed text with an orientation in it may inflate to: PIL's limit.
pub(super) const MAX_TEXT_BYTES: u64 = 1 << 20;

/// What a file holds of both kinds.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata<'a> {
    /// A TIFF structure, behind any number of `Exif\0\0`.
    pub(super) exif: Option<std::borrow::Cow<'a, [u8]>>,
    pub(super) xmp: Option<std::borrow::Cow<'a, [u8]>>,
}

impl Metadata<'_> {
    /// The orientation: EXIF's if it has one, whatever it says, else XMP's; upright without any, and
    /// where it cannot be read, as every viewer takes it.
    pub(super) fn orientation(&self) -> Orientation {
        let exif = self.exif.as_deref().and_then(in_exif);
        let found = exif.or_else(|| self.xmp.as_deref().and_then(in_xmp));
        found.unwrap_or(Orientation::NoTransforms)
    }
}

/// Orientation of an EXIF block; `None` if it has none.
pub(super) fn in_exif(mut exif: &[u8]) -> Option<Orientation> {
    while let Some(behind) = exif.strip_prefix(b"Exif\0\0") {
        exif = behind;
    }
    // In EXIF there is no BigTIFF.
    let directory = Directory::first(exif)
        .filter(|_| exif.get(2..4) != Some(b"\0+") && exif.get(2..4) != Some(b"+\0"))?;
    in_directory(&directory)
}

/// Orientation of a directory; `None` if it has none.
pub(super) fn in_directory(directory: &Directory<'_>) -> Option<Orientation> {
    let field = directory.field(ORIENTATION)?;
    // A number of any kind counts, but not bytes.
    let number = field.number(0).filter(|_| !field.is_raw());
    let known = number.and_then(|number| Orientation::from_exif(u8::try_from(number).ok()?));
    Some(known.unwrap_or(Orientation::NoTransforms))
}

/// Orientation of an XMP packet, `tiff:Orientation="6"` or `<tiff:Orientation>6<`: the first that is
/// followed by a digit. `None` if it has none.
pub(super) fn in_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut behind = memmem::find_iter(xmp, NAME).map(|at| &xmp[at + NAME.len()..]);
    let digit = behind.find_map(|behind| match behind {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => {
            Some(digit - b'0')
        }
        _ => None,
    })?;
    Some(Orientation::from_exif(digit).unwrap_or(Orientation::NoTransforms))
}

/// The EXIF block of a text that ImageMagick wrote (`Raw profile type exif`): a name, a length, and
/// hexadecimal digits from the fourth line on.
pub(super) fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let mut lines = text.splitn(4, |&byte| byte == b'\n');
    let digits = lines.nth(3)?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut digits = digits
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace());
    let mut bytes = Vec::new();
    while let Some(high) = digits.next() {
        let byte = digit(high)? << 4 | digit(digits.next()?)?;
        bytes.push(byte as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_exif_is_upright() {
        let cases: [&[u8]; 7] = [
            b"",
            b"Exif\0\0",
            b"Exif\0\0II*\0",
            b"II*\0\xff\xff\xff\xff",
            b"MM\0*\0\0\0\x08\0\x01\x01\x12",
            b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\0\0\x06\0\0",
            b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\xff\xff\xff\xff\0\0\0\x06",
        ];
        for exif in cases {
            assert_eq!(in_exif(exif), None, "{exif:?}");
        }
        let nine = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0";
        assert_eq!(in_exif(nine), Some(Orientation::NoTransforms));
        let six = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(in_exif(six), Some(Orientation::Rotate90));
    }

    #[test]
    fn texts() {
        for (xmp, expected) in [
            (&b"<a tiff:Orientation=\"6\"/>"[..], Some(6)),
            (b"<tiff:Orientation>8</tiff:Orientation>", Some(8)),
            (b"tiff:Orientation tiff:Orientation=\"3\"", Some(3)),
            (b"<a tiff:Orientation='6'/>", None),
            (b"<tiff:Orientation> 6<", None),
            (b"tiff:Orientation=\"", None),
        ] {
            assert_eq!(
                in_xmp(xmp),
                expected.and_then(Orientation::from_exif),
                "{xmp:?}"
            );
        }
        let text = b"\nexif\n      4\n4d4D\n00 2a\n";
        assert_eq!(raw_profile(text).as_deref(), Some(&b"MM\0*"[..]));
        assert_eq!(raw_profile(b"\nexif\n 4\n4d4"), None);
        assert_eq!(raw_profile(b"\nexif\n 4\nzz"), None);
        assert_eq!(raw_profile(b"exif"), None);
    }
}
