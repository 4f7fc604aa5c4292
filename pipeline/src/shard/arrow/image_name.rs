//! Key and member name of an image from its path and its first bytes.

/// Extensions that an image member may have.
pub const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// Name of an image whose path and bytes tell nothing; its decoder will say what is wrong.
const FALLBACK_EXTENSION: &str = "jpg";
/// A longer path is no use as a key.
const MAX_KEY_BYTES: usize = 4096;

/// WebDataset key of a path: all of it up to the first dot of its base name. `None` where that
/// leaves no base name.
pub(super) fn key_of(path: &str) -> Option<&str> {
    let base_start = path.rfind('/').map_or(0, |slash| slash + 1);
    let base = path.get(base_start..)?;
    let stem = base.split('.').next().unwrap_or(base);
    let key = path.get(..base_start + stem.len())?;
    (!stem.is_empty() && key.len() <= MAX_KEY_BYTES).then_some(key)
}

/// One of [`IMAGE_EXTENSIONS`]: the path's last extension, else what the bytes begin like, else
/// `jpg`.
pub(super) fn extension_of(path: Option<&str>, bytes: &[u8]) -> &'static str {
    let from_path = path.and_then(|path| {
        let (_, extension) = path.rsplit_once('.')?;
        IMAGE_EXTENSIONS
            .into_iter()
            .find(|known| extension.eq_ignore_ascii_case(known))
    });
    from_path
        .or_else(|| sniff(bytes))
        .unwrap_or(FALLBACK_EXTENSION)
}

fn sniff(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some("jpg"),
        [0x89, b'P', b'N', b'G', ..] => Some("png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        [b'G', b'I', b'F', b'8', ..] => Some("gif"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some("tiff"),
        [b'B', b'M', ..] => Some("bmp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_webdataset() {
        for (path, expected) in [
            ("000.jpg", Some("000")),
            ("a/b/000.seg.png", Some("a/b/000")),
            ("a.b/000.jpg", Some("a.b/000")),
            ("noext", Some("noext")),
            ("", None),
            (".jpg", None),
            ("a/.jpg", None),
            ("a/", None),
        ] {
            assert_eq!(key_of(path), expected, "{path}");
        }
        assert_eq!(key_of(&"x".repeat(5000)), None);
    }

    #[test]
    fn extensions_are_always_known_ones() {
        for (path, bytes, expected) in [
            (Some("a/0.JPG"), &b"GIF89a"[..], "jpg"),
            (Some("0.v2.jpeg"), b"", "jpeg"),
            (Some("0.txt"), b"\x89PNG\r\n", "png"),
            (Some("noext"), b"RIFF\x00\x00\x00\x00WEBPVP8 ", "webp"),
            (None, b"\xff\xd8\xff\xe0", "jpg"),
            (None, b"GIF89a", "gif"),
            (None, b"II*\x00", "tiff"),
            (None, b"MM\x00*", "tiff"),
            (None, b"BM\x00", "bmp"),
            (None, b"hello", "jpg"),
            (None, b"", "jpg"),
        ] {
            assert_eq!(extension_of(path, bytes), expected, "{path:?} {bytes:?}");
        }
    }
}
