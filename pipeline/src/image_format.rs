//! Image formats, told by content: those that are decoded, and those that are only named.

use std::fmt;

/// The image formats that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG: sequential and progressive, Huffman and arithmetic coding, 8 and 12 bits.
    Jpeg,
    /// PNG; of an animated one the default image.
    Png,
    /// WebP, lossy and lossless; of an animated one the first frame.
    WebP,
    /// GIF; the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, integer samples; the first page.
    Tiff,
}

impl ImageFormat {
    /// Tells the format by the first bytes of a file; `None` if it is none of these.
    pub fn sniff(bytes: &[u8]) -> Option<ImageFormat> {
        const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
        if bytes.starts_with(b"\xff\xd8\xff") {
            Some(ImageFormat::Jpeg)
        } else if bytes.starts_with(PNG) {
            Some(ImageFormat::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(ImageFormat::WebP)
        } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Some(ImageFormat::Gif)
        } else if bytes.starts_with(b"BM") {
            Some(ImageFormat::Bmp)
        } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]
            .iter()
            .any(|magic| bytes.starts_with(*magic))
        {
            Some(ImageFormat::Tiff)
        } else {
            None
        }
    }

    /// The name used in messages, e.g. `JPEG`.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::Png => "PNG",
            ImageFormat::WebP => "WebP",
            ImageFormat::Gif => "GIF",
            ImageFormat::Bmp => "BMP",
            ImageFormat::Tiff => "TIFF",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Image formats that are recognised, so that errors and counters can name them, but not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForeignFormat {
    /// AVIF.
    Avif,
    /// HEIC and HEIF, what telephones store.
    Heic,
    /// Any other, by its name: `JPEG XL`, `PDF`.
    Other(&'static str),
}

/// Further formats by their first bytes.
const FOREIGN: [(&[u8], &str); 23] = [
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\0\0\x01\0", "ICO"),
    (b"icns", "ICNS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"gimp xcf", "XCF"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"FLIF", "FLIF"),
    (b"\x01\xda", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"SIMPLE  =", "FITS"),
    (b"AT&TFORM", "DjVu"),
    (b"/* XPM */", "XPM"),
];

impl ForeignFormat {
    /// Tells the format by the first bytes of a file; `None` for what no one of these is.
    pub fn sniff(bytes: &[u8]) -> Option<ForeignFormat> {
        if bytes.get(4..8) == Some(b"ftyp") {
            return brands(bytes);
        }
        let by_magic = FOREIGN.iter().find(|(magic, _)| bytes.starts_with(magic));
        if let Some((_, name)) = by_magic {
            return Some(ForeignFormat::Other(name));
        }
        if let [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t' | b'#', ..] = bytes {
            return Some(ForeignFormat::Other("PNM"));
        }
        let text = &bytes[..bytes.len().min(1024)];
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let text = text.trim_ascii_start();
        let is_xml = text.starts_with(b"<?xml")
            || text.starts_with(b"<!--")
            || text.starts_with(b"<!DOCTYPE svg");
        let is_svg =
            text.starts_with(b"<svg") || (is_xml && memchr::memmem::find(text, b"<svg").is_some());
        is_svg.then_some(ForeignFormat::Other("SVG"))
    }

    /// The format that an extension promises, of those in which photographs are stored: such a member
    /// is read, so that what becomes of its sample can be said.
    pub fn of_extension(name: &str) -> Option<ForeignFormat> {
        const EXTENSIONS: [(&str, ForeignFormat); 6] = [
            ("avif", ForeignFormat::Avif),
            ("heic", ForeignFormat::Heic),
            ("heif", ForeignFormat::Heic),
            ("jxl", ForeignFormat::Other("JPEG XL")),
            ("jp2", ForeignFormat::Other("JPEG 2000")),
            ("j2k", ForeignFormat::Other("JPEG 2000")),
        ];
        let extension = name.rsplit('.').next().unwrap_or(name);
        let mut known = EXTENSIONS.iter();
        known
            .find(|(known, _)| extension.eq_ignore_ascii_case(known))
            .map(|(_, format)| *format)
    }

    /// The name used in messages, e.g. `AVIF`.
    pub fn name(self) -> &'static str {
        match self {
            ForeignFormat::Avif => "AVIF",
            ForeignFormat::Heic => "HEIC",
            ForeignFormat::Other(name) => name,
        }
    }
}

impl fmt::Display for ForeignFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A file of the ISO base media format: by its major brand, then by the compatible ones, since
/// `mif1` and `msf1` are shared.
fn brands(bytes: &[u8]) -> Option<ForeignFormat> {
    let length = bytes.get(..4)?.try_into().map(u32::from_be_bytes).ok()?;
    let end = bytes.len().min(length as usize).min(256);
    let brands = bytes.get(8..end.max(12))?;
    let compatible = brands.get(8..).unwrap_or_default();
    let all = brands[..4]
        .chunks_exact(4)
        .chain(compatible.chunks_exact(4));
    for brand in all {
        match brand {
            b"avif" | b"avis" => return Some(ForeignFormat::Avif),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => {
                return Some(ForeignFormat::Heic)
            }
            b"jpx " | b"jp2 " => return Some(ForeignFormat::Other("JPEG 2000")),
            b"crx " => return Some(ForeignFormat::Other("Canon CR3")),
            _ => {}
        }
    }
    match &brands[..4] {
        b"mif1" | b"msf1" => Some(ForeignFormat::Heic),
        _ => None,
    }
}

/// Whether a member of this name or extension is an image: `jpg`, `JPEG`, `seg.png`, `0001.webp`.
/// What counts is the part after the last dot, or the whole name if it has none.
pub fn is_image_extension(name: &str) -> bool {
    const EXTENSIONS: [&str; 10] = [
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff",
    ];
    let extension = name.rsplit('.').next().unwrap_or(name);
    EXTENSIONS
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// For the message about bytes of no known format: what else they look like, or the first of them.
pub(super) fn describe_unknown(bytes: &[u8]) -> String {
    let text: Vec<u8> = bytes
        .iter()
        .take(256)
        .copied()
        .skip_while(u8::is_ascii_whitespace)
        .take(9)
        .map(|byte| byte.to_ascii_lowercase())
        .collect();
    if bytes.is_empty() {
        "an empty file".to_owned()
    } else if text.starts_with(b"<!doctype") || text.starts_with(b"<html") {
        "it looks like an HTML page".to_owned()
    } else if bytes.get(4..8) == Some(b"ftyp") {
        "it looks like a video".to_owned()
    } else {
        let head: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("they begin with {}", head.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_are_not_decoded_have_names() {
        let avif = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf";
        let heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic";
        for (bytes, expected) in [
            (&b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"[..], Some("AVIF")),
            (&avif[..], Some("AVIF")),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Some("HEIC")),
            (heic, Some("HEIC")),
            (b"\0\0\0\x10ftypmif1\0\0\0\0", Some("HEIC")),
            (b"\0\0\0\x0cftyp", None),
            (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41", None),
            (b"\0\0\0\x0cjP  \r\n\x87\n", Some("JPEG 2000")),
            (b"\xff\x4f\xff\x51\0", Some("JPEG 2000")),
            (b"\xff\x0a\xfa", Some("JPEG XL")),
            (b"\0\0\0\x0cJXL \r\n\x87\n", Some("JPEG XL")),
            (b"8BPS\0\x01", Some("PSD")),
            (b"%PDF-1.7", Some("PDF")),
            (b"  <svg xmlns=", Some("SVG")),
            (
                b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn --><svg",
                Some("SVG"),
            ),
            (b"<?xml version='1.0'?><html>", None),
            (b"P6\n2 2\n255\n", Some("PNM")),
            (b"P6x", None),
            (b"\0\0\x01\0\x01\0", Some("ICO")),
            (b"<!DOCTYPE html>", None),
            (b"", None),
        ] {
            let found = ForeignFormat::sniff(bytes);
            assert_eq!(found.map(ForeignFormat::name), expected, "{bytes:?}");
        }
        assert_eq!(
            ForeignFormat::of_extension("a.AVIF"),
            Some(ForeignFormat::Avif)
        );
        assert_eq!(
            ForeignFormat::of_extension("heif"),
            Some(ForeignFormat::Heic)
        );
        assert_eq!(ForeignFormat::of_extension("jpg"), None);
    }
}
